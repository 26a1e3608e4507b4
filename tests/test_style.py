"""Habits that no linter checks: how docstrings begin, and whose name a comparison may hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from data.registry import TASKS
from guards.registry import GUARDS

ROOT = Path(__file__).parents[1]
# A docstring's first sentence says in the field's terms what is done or returned.
OPENINGS = re.compile(r"(What|How|Whether|Where|Which|Of|When|Who)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
REGISTRIES = {"data", "guards"}  # a task and a guard know their own names


def source_files() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("tests", "build") or any(part.startswith(".") for part in parts):
            continue
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_docstrings_begin_with_a_verb_or_a_noun_phrase():
    wrong = []
    for path, tree in source_files():
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            if text and OPENINGS.match(text):
                wrong.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def test_no_branch_asks_for_a_tasks_or_a_guards_name():
    """A task or a guard is an object: what is particular to it stands in its own file."""
    names = {*TASKS, *GUARDS}
    wrong = []
    for path, tree in source_files():
        if path.relative_to(ROOT).parts[0] in (*REGISTRIES, "benchmarks"):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare):
                continue
            constants = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if any(constant.value in names for constant in constants):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_no_instance_has_its_forward_replaced():
    """A fast path is a module or a switch: who reads the class reads what runs."""
    wrong = []
    for path, tree in source_files():
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr == "forward":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)
