"""`make gpu` without a GPU: it says what it would do, and a rehearsal runs its checks."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[1]


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_it_says_what_it_would_do(without_gpu, tmp_path, capsys):
    assert gpu.main(["--log", str(tmp_path / "gpu.log")]) == 0
    printed = capsys.readouterr().out
    assert "nothing was checked" in printed
    assert all(gpu.describe(check) in printed for check in gpu.CHECKS)
    assert not list(tmp_path.iterdir()), "no log of checks that were not made"


def test_a_failed_check_is_written_down_and_ends_no_other(monkeypatch, tmp_path, capsys):
    def check_that_fails(machine: gpu.Machine) -> list[str]:
        """Something."""
        raise AssertionError("it is wrong")

    def check_that_passes(machine: gpu.Machine) -> list[str]:
        """Something else."""
        return ["seen"]

    monkeypatch.setattr(gpu, "CHECKS", (check_that_fails, check_that_passes))
    assert gpu.main(["--rehearse", "--log", str(tmp_path / "gpu.log")]) == 1
    log = (tmp_path / "gpu.log").read_text()
    assert "no evidence of any GPU" in log
    assert "[FAILED" in log and "it is wrong" in log
    assert "[ok" in log and "    seen" in log
    assert "1 of 2 checks passed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rehearsal_runs_every_check_on_the_cpu(tmp_path, capsys):
    assert gpu.main(["--rehearse", "--log", str(tmp_path / "gpu.log")]) == 0
    assert (tmp_path / "gpu.log").read_text().count("[ok") == len(gpu.CHECKS)
    assert "FAILED" not in capsys.readouterr().out


def test_every_check_has_a_row_in_the_page():
    page = (ROOT / "docs" / "GPU.md").read_text(encoding="utf-8")
    for check in gpu.CHECKS:
        assert f"| {check.__name__.removeprefix('check_')} |" in page
