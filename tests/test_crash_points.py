"""Killed before or after any change to the disk, the same command ends with the same results.

Every point of a script is a case; `make test` takes a seeded sample of them, and all of them run
with UNFORGET_CRASH_POINTS=all. docs/RELIABILITY.md has the counts.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.crash import KILLED, run_until

SAMPLE = 5  # crash points of each script that `make test` tries beside the first three
TRAIN = ["--data", "demo", "--limit", "8", "--validation", "2", "--batch-size", "2", "--steps", "3"]
TRAIN += ["--checkpoint-every", "1", "--keep-checkpoints", "1", "--rank", "2", "--device", "cpu"]
GENERATE = ["--data", "demo", "--limit", "3", "--max-new-tokens", "4", "--no-adapter"]
GENERATE += ["--task", "gsm8k", "--device", "cpu"]
HAZARDS = [*GENERATE[:-4], "--task", "ailuminate", "--device", "cpu"]
JUDGE = ["--guard", "refusal-phrases"]
OWN_WORDS = [*GENERATE[:-4], "--task", "self-instruct", "--device", "cpu", "--mode", "sample"]
RECIPE = """\
title: row
train: {steps: 2, batch-size: 2, validation: 2, rank: 2, checkpoint-every: 1}
gsm8k: {max-new-tokens: 4}
ailuminate: {max-new-tokens: 4}
sweep: [0.5]
"""
EXPERIMENT = ["--data", "demo", "--limit", "2", "--train-limit", "6", "--judge", "refusal"]
EXPERIMENT += ["--kl-limit", "2", "--device", "cpu"]
# What differs between two runs of the same command: times, memory, and the costs of the last
# seconds before a kill, which summaries do not hold yet.
UNSTABLE = {"seconds", "peak_memory_bytes", "environment", "decoding", "prefill_tokens"}
UNSTABLE |= {"new_tokens_per_second", "tokens_per_second", "examples_per_second"}


def commands(script: str, model: Path, run: Path) -> list[tuple[str, list[str]]]:
    """What leads up to the command that is killed, which comes last."""
    place = ["--run", str(run)]
    with_model = ["--model", str(model), *place]
    return {
        "train": [("train", [*with_model, *TRAIN])],
        "train again": [
            ("train", [*with_model, *TRAIN]),
            ("train", [*with_model, *TRAIN, "--no-resume"]),
        ],
        "generate": [("generate", [*with_model, *GENERATE])],
        "generate again": [
            ("generate", [*with_model, *GENERATE]),
            ("generate", [*with_model, *GENERATE, "--no-resume"]),
        ],
        "self-instruct": [("generate", [*with_model, *OWN_WORDS])],
        "experiment": [("experiment", experiment_argv(model, run))],
        "judge": [("generate", [*with_model, *HAZARDS]), ("judge", [*place, *JUDGE])],
    }[script]


def experiment_argv(model: Path, runs: Path) -> list[str]:
    recipe = runs.parent / "row.yaml"
    recipe.write_text(RECIPE)
    return [str(recipe), "--model", str(model), "--runs", str(runs), *EXPERIMENT]


def results(run: Path) -> dict[str, object]:
    """What the run folder holds, without what may differ between equal runs."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        aside = {Path(part).suffix for part in path.relative_to(run).parts} & {".1", ".2", ".3"}
        if path.is_dir() or aside or path.name.startswith(".in-use"):
            continue
        if "report" in path.parts:  # it shows the times
            continue
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found[name] = [stable(json.loads(line)) for line in lines]
        elif path.suffix == ".json":
            found[name] = stable(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[name] = path.read_bytes()
    return found


def stable(value: object) -> object:
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in UNSTABLE}
    return value


@pytest.fixture(
    scope="module",
    params=[
        *("train", "train again", "generate", "generate again"),
        *("self-instruct", "judge", "experiment"),
    ],
)
def case(request, chat_checkpoint, tmp_path_factory):
    """The folder before the killed command, that command, its crash points, and what it ends
    with.
    """
    folder = tmp_path_factory.mktemp("crash").resolve()
    run, before = folder / "run", folder / "before"
    *earlier, last = commands(request.param, chat_checkpoint, run)
    run.mkdir()
    for script, argv in earlier:
        assert run_until(0, run, script, argv)[0] == 0
    shutil.copytree(run, before)
    status, points = run_until(0, run, *last)
    assert status == 0 and points > 10
    return run, before, last, points, results(run)


def chosen(points: int) -> list[int]:
    if os.environ.get("UNFORGET_CRASH_POINTS") == "all":
        return list(range(1, points + 1))
    sample = random.Random(points).sample(range(4, points + 1), SAMPLE)
    return [1, 2, 3, *sorted(sample)]  # taking the folder is the same for all scripts


@pytest.mark.slow
def test_killed_at_any_change_it_goes_on_to_the_same_results(case):
    run, before, command, points, expected = case
    failed = []
    for target in chosen(points):
        shutil.rmtree(run)
        shutil.copytree(before, run)
        status, _ = run_until(target, run, *command)
        script, argv = command
        resumed, _ = run_until(0, run, script, [word for word in argv if word != "--no-resume"])
        recovered = (status, resumed) == (KILLED, 0) and results(run) == expected
        if not recovered:
            failed.append(target)
        print(f"{script}, point {target} of {points}: {'recovers' if recovered else 'FAILS'}")
    assert not failed, f"of {points} points, these do not recover: {failed}"
