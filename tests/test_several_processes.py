"""generate.py under torchrun: the records of one process, one summary, resumption, failures."""

import time
from pathlib import Path

import pytest
import torch

import generate
from common import answering_job, distributed
from common.answering import DEFAULT_TASKS
from common.distributed import device_of_rank, shard_by_work
from common.errors import UserError
from data.records import read_json, read_jsonl
from tests.processes import torchrun

pytestmark = pytest.mark.slow  # every process imports torch
SAMPLED = [
    "--data",
    "demo",
    "--limit",
    "9",
    "--shots",
    "2",
    "--max-new-tokens",
    "12",
    "--temperature",
    "1",
]


def by_id(path: Path) -> dict:
    return {record["id"]: record for record in read_jsonl(path)}


@pytest.fixture
def options(chat_checkpoint, tmp_path):
    return lambda folder: [
        "--model",
        str(chat_checkpoint),
        "--run",
        str(tmp_path / folder),
        *SAMPLED,
    ]


@pytest.fixture
def as_rank(monkeypatch):
    """Be rank N of two without the other one, for whom nothing waits."""

    def become(number):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")

    monkeypatch.setattr(distributed.torch.distributed, "init_process_group", lambda *a, **k: None)
    monkeypatch.setattr(distributed.torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.torch.distributed, "barrier", lambda: None)
    return become


@pytest.mark.slow
def test_two_processes_answer_as_one_does(options, tmp_path):
    """Sampled answers to both tasks, added to what one process began."""
    assert generate.main(options("one")) == 0
    assert generate.main([*options("two"), "--task", "gsm8k", "--limit", "2"]) == 0
    result = torchrun("generate.py", *options("two"))
    assert result.returncode == 0, result.stderr
    for task in DEFAULT_TASKS:
        assert by_id(tmp_path / "two" / f"{task}.jsonl") == by_id(
            tmp_path / "one" / f"{task}.jsonl"
        )
        one, two = (
            read_json(tmp_path / folder / f"{task}.summary.json") for folder in ("one", "two")
        )
        assert two["finished"] and two["environment"]["processes"] == 2
        costs = {
            "seconds",
            "prefill_tokens",
            "new_tokens_per_second",
            "decoding",
            "peak_memory_bytes",
            "environment",
        }
        assert {k: v for k, v in two.items() if k not in costs} == {
            k: v for k, v in one.items() if k not in costs
        }
        for count in ("prompt_tokens", "new_tokens"):
            assert two["decoding"][count] == one["decoding"][count] == two[count]
        assert two["new_tokens_per_second"] == pytest.approx(
            two["new_tokens"] / two["seconds"], rel=0.01
        )
    questions = [record["id"] for record in read_jsonl(tmp_path / "two" / "gsm8k.jsonl")]
    assert questions == [f"demo-test-{i}" for i in range(9)], "in the order of the questions"
    assert result.stdout.count("gsm8k: ") == 1, "rank 0 alone talks"
    assert not list((tmp_path / "two").glob("*rank*"))


def test_two_processes_sample_and_rewrite_as_one_does(options, tmp_path):
    """Attempts, then the rewriting of what none of them solved: here, of every question."""
    sampled = ["--task", "self-instruct", "--mode", "sample", "--samples", "2", "--limit", "3"]
    sampled += ["--keep", "distinct", "--fallback", "rewrite"]
    assert generate.main([*options("one"), *sampled]) == 2, "a random model solves nothing"
    result = torchrun("generate.py", *options("two"), *sampled)
    assert result.returncode and "none of the 3 answers has the right" in result.stderr
    for name, count in (("self-instruct", 6), ("self-instruct-rewrite", 3)):
        one, two = (by_id(tmp_path / folder / f"{name}.jsonl") for folder in ("one", "two"))
        assert one == two and len(one) == count
    assert not list((tmp_path / "two").glob("*rank*"))


def test_two_processes_vote_as_one_does(options, tmp_path):
    votes = ["--task", "gsm8k", "--samples", "3", "--limit", "3"]
    assert generate.main([*options("one"), *votes]) == 0
    result = torchrun("generate.py", *options("two"), *votes)
    assert result.returncode == 0, result.stderr
    one, two = (by_id(tmp_path / folder / "gsm8k-samples.jsonl") for folder in ("one", "two"))
    assert one == two and list(two) == [f"demo-test-{i}#{k}" for i in range(3) for k in range(3)]


@pytest.mark.slow
def test_what_killed_ranks_have_finished_is_kept(options, tmp_path, as_rank, monkeypatch, capsys):
    """Two ranks are cut off, one of them in the middle of a line; then one process goes on, and
    then two.
    """
    assert generate.main([*options("whole"), "--task", "gsm8k"]) == 0
    whole = by_id(tmp_path / "whole" / "gsm8k.jsonl")
    real, asked = answering_job.generate, []

    def cut_off(model, prompts, *arguments, on_finish, **more):
        def stop_after_two(i, output):
            on_finish(i, output)
            asked.append(i)
            if len(asked) % 2 == 0:
                raise KeyboardInterrupt

        return real(model, prompts, *arguments, on_finish=stop_after_two, **more)

    run = tmp_path / "run"
    monkeypatch.setattr(answering_job, "generate", cut_off)
    for number in (0, 1):
        as_rank(number)
        assert generate.main([*options("run"), "--task", "gsm8k"]) == 130
        assert f"rank {number}: interrupted" in capsys.readouterr().err
    costs = [read_json(run / f"gsm8k.rank{number}.json") for number in (0, 1)]
    assert (
        not (run / "gsm8k.jsonl").exists() and not read_json(run / "gsm8k.summary.json")["finished"]
    )
    kept = {**by_id(run / "gsm8k.rank0.jsonl"), **by_id(run / "gsm8k.rank1.jsonl")}
    assert len(kept) == 4 and kept.items() <= whole.items()
    with open(run / "gsm8k.rank1.jsonl", "a") as file:
        file.write('{"id": "demo-te')

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert generate.main([*options("run"), "--task", "gsm8k"]) == 130  # two more, by one process
    assert len(by_id(run / "gsm8k.jsonl")) == 6 and not list(run.glob("*rank*"))
    summary = read_json(run / "gsm8k.summary.json")
    assert summary["seconds"] > max(cost["seconds"] for cost in costs)
    result = torchrun("generate.py", *options("run"), "--task", "gsm8k")
    assert result.returncode == 0, result.stderr
    assert by_id(run / "gsm8k.jsonl") == whole
    assert read_json(run / "gsm8k.summary.json")["new_tokens"] == sum(
        len(r["token_ids"]) for r in whole.values()
    )


def test_parts_are_not_mixed_with_other_settings(options, tmp_path, as_rank, monkeypatch, capsys):
    run, part = tmp_path / "run", tmp_path / "run" / "gsm8k.rank1.jsonl"
    assert generate.main([*options("run"), "--task", "gsm8k", "--limit", "1"]) == 0
    as_rank(1)
    assert generate.main([*options("run"), "--task", "gsm8k"]) == 0
    before = part.read_text()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert generate.main([*options("run"), "--task", "gsm8k", "--seed", "1"]) == 2
    assert "was made with --seed = 0, now it is 1" in capsys.readouterr().err
    assert part.read_text() == before
    summary = (run / "gsm8k.summary.json").rename(run / "away.json")
    (run / "gsm8k.jsonl").unlink()
    assert generate.main([*options("run"), "--task", "gsm8k"]) == 2
    assert "gsm8k.rank1.jsonl is there without gsm8k.summary.json" in capsys.readouterr().err
    summary.rename(run / "gsm8k.summary.json")
    assert (
        generate.main(
            [*options("run"), "--task", "gsm8k", "--seed", "1", "--limit", "1", "--no-resume"]
        )
        == 0
    )
    assert not part.exists() and list(by_id(run / "gsm8k.jsonl")) == ["demo-test-0"]


FAILING = """
import os, sys
import generate
from common import answering_job
if os.environ["RANK"] == "1":
    def generate_nothing(*arguments, **options):
        raise generate.UserError("the device is on fire")
    answering_job.generate = generate_nothing
sys.exit(generate.main())
"""


@pytest.mark.slow
def test_a_failing_rank_ends_the_run_with_its_message(options, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    result = torchrun(script, *options("run"), "--task", "gsm8k")
    assert result.returncode != 0
    assert "rank 1: error: the device is on fire\n" in result.stderr
    assert "in answer_tasks" not in result.stderr, "a traceback of ours"
    assert not read_json(tmp_path / "run" / "gsm8k.summary.json")["finished"]


@pytest.mark.slow
def test_bad_input_is_reported_once(options, tmp_path):
    result = torchrun("generate.py", *options("run"), "--adapter", tmp_path / "nowhere")
    assert result.returncode != 0
    assert (
        result.stderr.count("no such folder") == 1 and "rank 0: error: --adapter" in result.stderr
    )


def test_each_process_has_a_device_of_its_own(as_rank, monkeypatch):
    as_rank(1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 1)
    assert current == [1], "streams and graphs are made on the current device"
    assert device_of_rank(torch.device("cuda:0")) == torch.device("cuda", 0), "named by the user"
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 processes, but 1 CUDA devices .*--nproc-per-node 1$"):
        device_of_rank(torch.device("cuda"))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_even_and_keep_alike_prompts_together(processes):
    prompts = [[group, 5, 6, 7, i] for i in range(10) for group in (9, 3, 4)] + [
        [1, *range(60)],
        [2, *range(60)],
    ]
    shares = shard_by_work(prompts, 10, processes)
    assert len(shares) == processes
    assert sorted(i for share in shares for i in share) == list(range(len(prompts)))
    work = [sum(10 + (61 if len(prompts[i]) > 5 else 1) for i in share) for share in shares]
    assert max(work) - min(work) < 2 * 71
    if processes == 3:
        kept = [{prompts[i][0] for i in share} for share in shares]
        assert sum(map(len, kept)) <= 5 + 2, "a group is cut only where a share ends"
    begin = time.perf_counter()
    shares = shard_by_work([[i] for i in range(100_000)], 10, processes)
    assert time.perf_counter() - begin < 5 and sum(map(len, shares)) == 100_000, "not quadratic"
    assert shard_by_work([], 10, 2) == [[], []] and shard_by_work([[1]], 10, 2) in (
        [[0], []],
        [[], [0]],
    )
