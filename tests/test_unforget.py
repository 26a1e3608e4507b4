"""The console command and the package that pip installs."""

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import unforget
from common.command_line import build_parser
from docs.options_page import load_settings

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"unforget"}


def listed(section: str, key: str) -> set[str]:
    """A comma-separated value of setup.cfg as a set."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {name.strip() for name in config[section][key].split(",")}


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in `folder`, which Python looks into first; ours come after it."""
    path = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=path, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_script_is_a_command_and_is_installed():
    assert set(unforget.COMMANDS) == SCRIPTS
    assert listed("options", "py_modules") == SCRIPTS | {"unforget"}


def test_every_package_is_installed():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert set(unforget.PACKAGES) == folders
    assert listed("options", "packages") == folders


def test_a_package_has_one_lower_bound():
    """`make lowest` installs every bound at once; two for one package cannot be met."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    requirements = [
        config["options"]["install_requires"],
        *config["options.extras_require"].values(),
    ]
    bounds: dict[str, set[str]] = {}
    for line in "\n".join(requirements).split():
        name, _, bound = line.partition(">=")
        bounds.setdefault(name, set()).add(bound)
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_help_lists_the_commands(capsys):
    assert unforget.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in SCRIPTS:
        assert f"  {name} " in printed


def test_without_a_command_it_says_what_there_is(capsys):
    assert unforget.main([]) == 2
    assert "unforget COMMAND" in capsys.readouterr().out


def test_an_unknown_command_gets_the_nearest_named(capsys):
    assert unforget.main(["generat"]) == 2
    assert "did you mean generate?" in capsys.readouterr().err


def test_a_command_is_the_script_under_its_own_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unforget", "report", "--help"])
    with pytest.raises(SystemExit) as stop:
        unforget.main()
    assert stop.value.code == 0
    assert "usage: unforget report" in capsys.readouterr().out


def test_a_users_own_modules_of_the_same_names_are_left_alone(tmp_path):
    for name in SCRIPTS | set(unforget.PACKAGES):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    done = run_in(tmp_path, "-m", "unforget", "report", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
    direct = run_in(tmp_path, "-c", "import report")
    assert "the wrong package" in direct.stderr, "the files do not get in the way: test something"


def test_the_decoder_is_importable_beside_a_users_data_module(tmp_path):
    for name in ("data", "common", "train"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    done = run_in(tmp_path, "-c", "from llama import ModelConfig; print(ModelConfig.__name__)")
    assert done.stdout == "ModelConfig\n", done.stderr


def test_the_usage_is_there_at_once(tmp_path):
    code = "import sys, unforget; unforget.main(['--help']); print('torch' in sys.modules)"
    done = run_in(tmp_path, "-c", code)
    assert done.stdout.endswith("\nFalse\n"), done.stderr


def tracked_files() -> list[str]:
    """What git would check out, with the changes of the moment; without git, no test."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file(tmp_path):
    if int(version("setuptools").partition(".")[0]) < 68:
        pytest.skip("setuptools 68 or newer builds the wheel")
    tree = tmp_path / "tree"
    expected = set()
    for name in tracked_files():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        top = name.partition("/")[0]
        if top in unforget.PACKAGES or name.removesuffix(".py") in SCRIPTS:
            expected.add(name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(tree)]
    subprocess.run(command, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"unforget-{unforget.version()}-")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    left_out = expected - held
    assert left_out == {
        name for name in expected if name.startswith("data/demo/") and ".py" in name
    }


def test_the_version_to_cite_is_this_one():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {unforget.version()}\n" in citation


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_advice_when_memory_runs_out_names_options_of_that_script(name):
    script = importlib.import_module(name)
    advice = getattr(script, "OUT_OF_MEMORY", "")
    parser = build_parser(load_settings(name), None)
    known = set(parser._option_string_actions)
    assert set(re.findall(r"--[a-z-]+", advice)) <= known
    assert advice or not {"--batch-size", "--quantize"} & known, "there is something to advise"
