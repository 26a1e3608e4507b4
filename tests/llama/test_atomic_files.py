"""Files are there whole or not at all, and what could not be written is named with the free
space.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llama.atomic_files import atomic_write, remove_folder
from lora.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
# The kernel refuses to write more than 20 kB to a file, as a full disk would.
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.path.insert(0, {str(ROOT)!r})
"""


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file_and_no_part_of_a_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "write", ["save_file({'a': torch.ones(9000)}, p)", "p.write_text('x' * 36000)"]
)
def test_a_full_disk_is_one_line_with_file_and_free_space(write, tmp_path):
    code = f"""{LIMITED}
import torch; from safetensors.torch import save_file
from pathlib import Path
from llama.atomic_files import atomic_write
from llama.errors import UserError
try:
    with atomic_write(Path({str(tmp_path)!r}) / "weights") as p:
        {write}
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path / 'weights'}: cannot be written ("), done.stderr
    assert "File too large" in done.stdout and "MiB free on its disk" in done.stdout
    assert done.stdout.count("\n") == 1 and os.listdir(tmp_path) == []


def test_a_folder_is_gone_under_its_name_before_its_files_are(tmp_path, monkeypatch):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "a").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before a file is removed
    remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    folder.mkdir()
    remove_folder(folder)
    remove_folder(folder)  # nothing there: nothing to do
    assert os.listdir(tmp_path) == []


def test_weights_may_be_read_by_whoever_may_read_other_new_files(tmp_path):
    """safetensors gives its files to the owner alone (0600)."""
    (tmp_path / "other").write_text("")
    usual = (tmp_path / "other").stat().st_mode
    with atomic_write(tmp_path / "weights") as path:
        save_file({"w": torch.ones(2)}, path)
    assert (tmp_path / "weights").stat().st_mode == usual
    checkpoint = save_checkpoint(tmp_path / "checkpoints", 1, {"w": torch.ones(2)}, {})
    assert {path.stat().st_mode for path in checkpoint.iterdir()} == {usual}
