"""One run at a time writes to a folder, and what it replaces is kept."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from common import run_folder
from common.errors import UserError
from common.run_folder import HOLDER, free_run, prepare_run, release_runs, set_aside

ROOT = Path(run_folder.__file__).parent.parent
HOLD = """
import sys
from pathlib import Path
from common.run_folder import prepare_run
prepare_run(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def release():
    yield
    release_runs()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the run folder .* another with --run"):
        prepare_run(tmp_path / "file" / "run")
    prepare_run(tmp_path / "new" / "run")
    release_runs()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == [run_folder.LOCK]


@pytest.fixture
def other_process(tmp_path):
    """A process that has taken tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_on_the_folder_is_refused_until_the_first_ends(other_process, tmp_path):
    expected = rf"run is in use by process {other_process.pid} on \S+ since .* --run \S+run-2"
    with pytest.raises(UserError, match=expected):
        prepare_run(tmp_path / "run")
    other_process.stdin.close()
    assert other_process.wait(10) == 0
    prepare_run(tmp_path / "run")


def test_the_lock_of_a_killed_process_is_stale(other_process, tmp_path):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait(10)
    assert (tmp_path / "run" / run_folder.HOLDER).exists()
    prepare_run(tmp_path / "run")
    assert (
        json.loads((tmp_path / "run" / run_folder.HOLDER).read_text())["pid"] != other_process.pid
    )


def test_a_holder_that_cannot_be_read_is_no_traceback(other_process, tmp_path):
    (tmp_path / "run" / run_folder.HOLDER).write_text("{")
    with pytest.raises(UserError, match="is in use by another process"):
        prepare_run(tmp_path / "run")


def test_several_ranks_are_one_run(other_process, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    prepare_run(tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="in use"):
        prepare_run(tmp_path / "run")


def test_the_steps_of_one_process_share_its_folder(tmp_path):
    prepare_run(tmp_path / "run")
    prepare_run(tmp_path / "x" / ".." / "run")


def test_the_last_three_are_kept(tmp_path):
    path, folder = tmp_path / "gsm8k.jsonl", tmp_path / "adapter"
    for number in range(5):
        path.write_text(str(number))
        folder.mkdir()
        (folder / "weights").write_text(str(number))
        kept = set_aside(path, tmp_path / "missing", folder)
        assert kept == [tmp_path / "gsm8k.jsonl.1", tmp_path / "adapter.1"]
        assert not path.exists() and not folder.exists()
    names = ["gsm8k.jsonl.1", "gsm8k.jsonl.2", "gsm8k.jsonl.3"]
    assert [(tmp_path / name).read_text() for name in names] == ["4", "3", "2"]
    assert not (tmp_path / "gsm8k.jsonl.4").exists() and not (tmp_path / "adapter.4").exists()
    assert (tmp_path / "adapter.3" / "weights").read_text() == "2"


def test_the_advised_run_is_free(tmp_path):
    assert free_run(tmp_path / "run") == tmp_path / "run-2"
    (tmp_path / "run-2").mkdir()
    assert free_run(tmp_path / "run") == tmp_path / "run-3"


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def no_locks(self):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    prepare_run(tmp_path)
    assert (tmp_path / HOLDER).exists()
    release_runs()
    assert not (tmp_path / HOLDER).exists()
