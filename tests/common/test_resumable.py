"""A job keeps what is finished, whoever is killed when, and costs the same for each record."""

import contextlib
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.resumable import ResumableJob
from data.records import Record, numbered_jsonl, read_json, read_jsonl


class Squares(ResumableJob):
    """The squares of numbers."""

    counted = "even"

    def __init__(self, run: Path, count: int, resume: bool = True) -> None:
        self.summed = 0
        planned = [{"id": str(number)} for number in range(count)]
        super().__init__(run, "squares", planned, {"shots": 1}, resume, torch.device("cpu"))

    def read(self, path: Path) -> Iterator[Record]:
        for _, record in numbered_jsonl(path, may_be_cut=True) if path.exists() else ():
            yield record

    def facts(self, record: Record) -> Record:
        return {
            "square": record["square"],
            "prompt_tokens": record["prompt_tokens"],
            "new_tokens": 1,
        }

    def result(self, done: list[Record]) -> Record:
        self.summed += 1
        return {"sum": sum(record["square"] for record in done)}

    def counts(self, facts: Mapping[str, Any]) -> bool | None:
        return None if facts["square"] == 0 else facts["square"] % 2 == 0


def work(job: Squares, most: int | None = None) -> None:
    with job.recording(len(job.to_do)) as add:
        for record in job.to_do[:most]:
            square = int(record["id"]) ** 2
            add({"id": record["id"], "square": square, "prompt_tokens": 2})


def test_an_interrupted_job_goes_on(tmp_path):
    work(Squares(tmp_path, 9), most=4)
    unfinished = read_json(tmp_path / "squares.summary.json")
    assert (unfinished["finished"], unfinished["planned"], unfinished["sum"]) == (False, 9, 14)
    job = Squares(tmp_path, 9)
    assert [record["id"] for record in job.to_do] == ["4", "5", "6", "7", "8"]
    work(job)
    summary = job.write_summary(finished=True)
    assert (summary["task"], summary["sum"], summary["new_tokens"]) == ("squares", 204, 9)
    assert summary == read_json(tmp_path / "squares.summary.json")
    assert [record["square"] for record in read_jsonl(job.path)] == [n * n for n in range(9)]


def test_the_progress_bar_shows_the_share_of_all_finished_records(tmp_path, monkeypatch):
    work(Squares(tmp_path, 9), most=4)
    job, texts = Squares(tmp_path, 9), []
    monkeypatch.setattr(
        "common.resumable.tqdm.set_postfix_str", lambda bar, text, refresh: texts.append(text)
    )
    work(job)
    assert texts[-1] == "even 50.0%", "of the eight that the share says anything of"


def test_a_record_costs_the_same_however_many_there_are(tmp_path):
    """No pass over all records for each of them: 9 ms a record at 30,000 with one."""
    job = Squares(tmp_path, 20_000)
    begin = time.perf_counter()
    work(job)
    seconds = time.perf_counter() - begin
    assert job.summed == 2, "one summary at the beginning, one at the end"
    assert seconds < 10, "with a pass for each record it takes minutes"


def test_memory_holds_the_facts_of_a_record_and_none_of_its_texts(tmp_path):
    """What a record costs until the job ends is its place in a dictionary, whatever it holds."""
    job = Squares(tmp_path, 5000)
    with job.recording(5000) as add:
        tracemalloc.start()
        for record in job.to_do:
            text = record["id"] * 200  # of its own for each
            add({"id": record["id"], "square": 4, "prompt_tokens": 2, "response": text})
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held / 5000 < 150, "bytes a record"
    assert job.write_summary(finished=True)["sum"] == 20_000
    assert Squares(tmp_path, 5000).write_summary(finished=True)["sum"] == 20_000, "read back"


def test_no_resume_keeps_what_was_there(tmp_path, capsys):
    work(Squares(tmp_path, 4))
    job = Squares(tmp_path, 9, resume=False)
    assert len(job.to_do) == 9
    work(job, most=2)
    assert f"{job.path}: 4 records kept as squares.jsonl.1" in capsys.readouterr().out
    assert len(read_jsonl(job.path)) == 2 and len(read_jsonl(f"{job.path}.1")) == 4
    assert read_json(tmp_path / "squares.summary.json.1")["planned"] == 4
    assert read_json(tmp_path / "squares.summary.json")["planned"] == 9


def test_parts_of_killed_ranks_are_kept_too(tmp_path):
    work(Squares(tmp_path, 4), most=1)
    (tmp_path / "squares.rank1.jsonl").write_text(json.dumps({"id": "3", "square": 9}) + "\n")
    work(Squares(tmp_path, 4, resume=False))
    assert [record["id"] for record in read_jsonl(tmp_path / "squares.jsonl.1")] == ["0", "3"]
    assert not list(tmp_path.glob("*rank*"))


@pytest.mark.parametrize("removed", range(5))
def test_costs_of_parts_count_once_wherever_the_joining_is_killed(removed, tmp_path, monkeypatch):
    work(Squares(tmp_path, 9), most=1)
    summary = read_json(tmp_path / "squares.summary.json")
    before, tokens = summary["seconds"], summary["decoding"]["new_tokens"]
    for number in (0, 1):
        part = tmp_path / f"squares.rank{number}.jsonl"
        record = {"id": f"{number + 3}", "square": (number + 3) ** 2, "prompt_tokens": 2}
        part.write_text(json.dumps(record) + "\n")
        costs = {"part": f"name{number}", "seconds": 50.0 + number, "decoding": {"new_tokens": 7}}
        part.with_suffix(".json").write_text(json.dumps(costs))
    unlink, left = Path.unlink, iter([True] * removed)

    def unlink_until_killed(path: Path, missing_ok: bool = False) -> None:
        if "rank" in path.name and not next(left, False):
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_until_killed)
    with contextlib.suppress(KeyboardInterrupt):
        work(Squares(tmp_path, 9), most=1)
    monkeypatch.setattr(Path, "unlink", unlink)
    job = Squares(tmp_path, 9)
    work(job)
    summary = job.write_summary(finished=True)
    assert summary["seconds"] == pytest.approx(before + 51, abs=3), "the slower one's, once"
    assert summary["decoding"]["new_tokens"] == tokens + 14
    assert "joined_parts" not in summary and not list(tmp_path.glob("*rank*"))
    assert len(read_jsonl(job.path)) == 9


def test_a_summary_without_records_stands_in_nobodys_way(tmp_path):
    work(Squares(tmp_path, 4))
    (tmp_path / "squares.jsonl").unlink()
    assert len(Squares(tmp_path, 4).to_do) == 4


FILLING = """
import resource, signal, sys
from pathlib import Path
from common.cli import run_script
from tests.common import test_resumable

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a disk that is full soon
run = Path(sys.argv[1])
sys.exit(run_script(lambda _: test_resumable.work(test_resumable.Squares(run, 500)), None))
"""


@pytest.mark.slow
def test_a_disk_that_gets_full_loses_no_record(tmp_path):
    command = [sys.executable, "-c", FILLING, str(tmp_path)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]  # behind the progress bar
    assert "squares.jsonl: cannot be written (File too large; " in last and "free" in last
    assert "Traceback" not in result.stderr
    job = Squares(tmp_path, 500)
    assert 20 < len(job.finished) < 500
    work(job)
    assert [record["square"] for record in read_jsonl(job.path)] == [n * n for n in range(500)]
