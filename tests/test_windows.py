"""What Windows lacks is not needed: every module is imported and files are written without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.run_folder import prepare_run, release_runs
from data.records import write_json
from llama.atomic_files import atomic_write
from lora.checkpoint import load_checkpoint, save_checkpoint
from tests.test_imports import package_files, script_names

ROOT = Path(__file__).parents[1]
HIDDEN = ("resource", "fcntl", "termios", "pwd", "grp")  # modules of Unix alone
HIDE = f"""
import importlib, sys
for name in {HIDDEN!r}:
    sys.modules[name] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_every_module_is_imported_without_unix_modules():
    names = [*(name for name, _ in package_files()), *script_names()]
    command = [sys.executable, "-c", HIDE, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def windows(monkeypatch):
    """No `resource`, and no descriptor of a folder."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    monkeypatch.setattr(shutil, "_use_fd_functions", False, raising=False)
    really_open = os.open

    def open_file(path, *arguments, **keywords):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", open_file)


def test_files_are_written_where_folders_cannot_be_opened(windows, tmp_path):
    prepare_run(tmp_path / "run")
    release_runs()
    write_json(tmp_path / "run" / "a.json", {"a": 1})
    with atomic_write(tmp_path / "run" / "b") as path:
        path.write_text("b")
    saved = save_checkpoint(tmp_path / "run", 1, {"w": torch.ones(2)}, {"seconds": 1.0})
    assert load_checkpoint(saved)[1] == {"seconds": 1.0}
    assert (tmp_path / "run" / "b").read_text() == "b"
