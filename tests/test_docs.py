"""The documentation is true: files it names exist, commands it shows are valid, OPTIONS is
fresh.
"""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import unforget
from common.command_line import build_parser
from docs.options_page import PAGE, SETTINGS, load_settings, options_page

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [path for path in PAGES if path.name not in ("LOG.md", "CHANGELOG.md")]  # of their day
NAMES = {path.name: path for path in PAGES}
# Files that a command leaves, or that a reader is asked to bring.
NOT_OURS = re.compile(r"^(RUN/|runs/|path/|my|gsm8k/|ailuminate/|svamp/|xstest/|config\.json|FILE)")


def test_the_options_page_is_fresh():
    expected = options_page()
    assert PAGE.read_text(encoding="utf-8") == expected, "run: python -m docs.options_page"


def test_every_command_is_on_the_options_page():
    assert set(SETTINGS) == set(unforget.COMMANDS)


def shell_lines(text: str) -> Iterator[str]:
    """The commands in indented and fenced blocks, continued lines joined, and in `code`."""
    joined = re.sub(r"\\\n\s*", " ", text)
    command = r"(?:python|unforget|torchrun) "
    for line in joined.splitlines():
        match = re.match(rf"\s*(?:\$ )?({command}.*)", line)
        if match:
            yield match.group(1)
        else:
            yield from re.findall(rf"`({command}[^`]*)`", line)


def script_calls(line: str) -> Iterator[tuple[str, list[str]]]:
    """The scripts that a line of shell calls, with their options."""
    for command in re.split(r"&&|;", line):
        words = shlex.split(command, comments=True)
        for position, word in enumerate(words):
            name = word.removesuffix(".py")
            called = word.endswith(".py") or (position and words[position - 1] == "unforget")
            if called and name in SETTINGS:
                yield name, words[position + 1 :]
                break


def documented_calls() -> list[tuple[str, str, tuple[str, ...]]]:
    calls = []
    for name, path in NAMES.items():
        for line in shell_lines(path.read_text(encoding="utf-8")):
            calls += [(name, script, tuple(words)) for script, words in script_calls(line)]
    return calls


@pytest.mark.parametrize(("page", "script", "words"), documented_calls())
def test_a_documented_command_is_valid(page, script, words):
    """Its options exist and take such values; whether the files exist is not looked at."""
    build_parser(load_settings(script), None).parse_args(words)


def test_commands_are_found():
    line = "python generate.py --shots 3 --no-adapter && unforget judge --run runs/x   # verdicts"
    found = [("generate", ["--shots", "3", "--no-adapter"]), ("judge", ["--run", "runs/x"])]
    assert list(script_calls(line)) == found
    assert len(documented_calls()) > 10


@pytest.mark.parametrize("page", NAMES)
def test_files_that_a_page_names_are_there(page):
    text = NAMES[page].read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+\.(?:py|md|yaml|yml|cfg|toml|html|ipynb))`", text)
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = []
    for name in sorted({*named, *linked}):
        near = [ROOT / name, NAMES[page].parent / name]
        inside = any(ROOT.glob(f"*/{name}"))
        if not NOT_OURS.match(name) and not inside and not any(path.exists() for path in near):
            missing.append(name)
    assert missing == []


def test_modules_that_contributing_names_hold_what_it_says():
    from data.svamp import SVAMP
    from guards.llama_guard import LlamaGuard
    from llama.config import FAMILIES

    text = NAMES["CONTRIBUTING.md"].read_text(encoding="utf-8")
    for attribute in ("name", "title", "default_model", "max_new_tokens"):
        value = getattr(LlamaGuard, attribute)
        quoted = f'"{value}"' if isinstance(value, str) else str(value)
        assert f"{attribute} = {quoted}" in text
    assert f'name = "{SVAMP.name}"' in text and f'file_format = "{SVAMP.file_format}"' in text
    assert f'"{FAMILIES["qwen2"].architecture}"' in text and FAMILIES["qwen2"].qkv_bias
    assert import_module("data.registry").TASKS["svamp"].title == SVAMP.title
