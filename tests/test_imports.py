"""The walls between the packages: who may import whom, and what never loads torch.

Imports point one way: llama -> lora -> scripts, data -> guards -> reporting -> scripts, and
`common` lies below the scripts. An entry ending in ".*" below means the package and all in it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "llama": {"llama.*"},
    "lora": {
        "lora.*",
        "llama.*",
        "data.checked",
        "data.examples",
        "data.records",
        "common.ranks",
        "common.distributed",
        "common.runs",
    },
    "data": {"data.*", "common.*"},
    "guards": {"guards.*", "data.*", "common.*"},
    "reporting": {"reporting.*", "guards.*", "data.*", "common.*"},
    "common": {"common.*", "llama.*", "lora.*", "data.*", "guards.*"},
    "recipes": {"recipes.*", "common.*", "data.*", "guards.*"},
}
# Their modules, and these scripts, run without torch, directly and through whatever they import.
TORCH_FREE_PACKAGES = ("data", "guards", "reporting")
TORCH_FREE_SCRIPTS = ("report",)
ARGPARSE_HOMES = ("common.options", "common.command_line")
# Exceptions that are known and on their way out. An entry that is no longer needed fails too.
PENDING: set[str] = set()


def package_files() -> Iterator[tuple[str, Path]]:
    """Each package module's dotted name, with its file; data/demo holds a script of its own."""
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent.name == "demo":
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path


def script_names() -> list[str]:
    return sorted(path.stem for path in ROOT.glob("*.py"))


def imported_names(source: str) -> Iterator[str]:
    """Each dotted name that `source` imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def allows(rules: set[str], name: str) -> bool:
    """Whether `name`, a module or something in one, is covered by a rule."""
    for rule in rules:
        prefix = rule.removesuffix(".*")
        if name == prefix or name.startswith(prefix + "."):
            return True
    return False


def broken_walls(module: str, source: str) -> list[str]:
    """The imports of a package's module that the rules forbid, as lines of text."""
    ours = {*MAY_IMPORT, *script_names()}
    package = module.partition(".")[0]
    broken = []
    for name in imported_names(source):
        top = name.partition(".")[0]
        if top in ours and not allows(MAY_IMPORT[package], name):
            broken.append(f"{module} imports {name}")
        if top == "torch" and package in TORCH_FREE_PACKAGES:
            broken.append(f"{module} imports {name}")
        if top == "argparse" and module not in ARGPARSE_HOMES:
            broken.append(f"{module} imports {name}")
    return broken


def assert_only_pending(found: set[str], verb: str) -> None:
    """Fail with the violations not in PENDING, and with entries of PENDING that are none."""
    expected = {entry for entry in PENDING if verb in entry}
    wrong = [f"forbidden: {entry}" for entry in sorted(found - expected)]
    wrong += [f"no longer needed in PENDING: {entry}" for entry in sorted(expected - found)]
    assert not wrong, "\n".join(wrong)


def test_packages_import_only_what_lies_below_them():
    found = set()
    for module, path in package_files():
        found.update(broken_walls(module, path.read_text(encoding="utf-8")))
    assert_only_pending(found, " imports ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llama.model", "from common.errors import UserError"),
        ("llama.model", "import data"),
        ("data.gsm8k", "from torch import Tensor"),
        ("data.gsm8k", "def load():\n    from llama.model import Decoder"),
        ("guards.guard", "from reporting import tables"),
        ("reporting.tables", "import torch.nn as nn"),
        ("lora.loop", "from data.gsm8k import GSM8K"),
        ("lora.loop", "from argparse import Namespace"),
        ("common.runs", "import train"),
        ("common.runs", "from generate import main"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(broken_walls(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora.loop", "from data import records\nfrom data.examples import Example\nimport torch"),
        ("data.gsm8k", "from common.errors import UserError\nimport json"),
        ("common.options", "import argparse"),
    ],
)
def test_an_import_of_what_lies_below_is_not_found(module, source):
    assert broken_walls(module, source) == []


# Imports one module after the other; prints which first loads torch, the decoder or LoRA.
TRANSITIVE = """
import importlib, sys
HARMLESS = {"llama", "llama.errors"}
reported = set()
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = {module.partition(".")[0] for module in set(sys.modules) - HARMLESS}
    for top in sorted(loaded & {"torch", "llama", "lora"} - reported):
        print(f"{name} loads {top}")
        reported.add(top)
"""


def test_data_guards_and_reporting_load_neither_torch_nor_the_model():
    modules = []
    for module, _ in package_files():
        if module.partition(".")[0] in TORCH_FREE_PACKAGES:
            modules.append(module)
    command = [sys.executable, "-c", TRANSITIVE, *modules, *TORCH_FREE_SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert_only_pending(set(done.stdout.splitlines()), " loads ")


def test_every_script_does_nothing_but_offer_main():
    """A script can be imported without running: only definitions, constants and the guard."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    assignments = (ast.Assign, ast.AnnAssign, ast.AugAssign)
    for name in script_names():
        tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "main" in functions, f"{name}.py has no main"
        arguments = functions["main"].args
        assert [argument.arg for argument in arguments.args] == ["argv"], f"{name}.main"
        assert len(arguments.defaults) == 1, f"{name}.main works bare"
        for node in tree.body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            guard = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
            harmless = docstring or guard or isinstance(node, definitions + assignments)
            assert harmless, f"{name}.py:{node.lineno} is executed on import"
