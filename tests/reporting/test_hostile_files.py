"""Run folders that were edited by hand or damaged: a report or a refusal in one line, nothing
else.
"""

import contextlib
import io
import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import report
from data.intervals import rate
from reporting import plot_style
from tests.reporting.run_folders import (
    write_ailuminate,
    write_answers,
    write_gsm8k,
    write_harmless,
    write_json,
    write_training,
)

ROOT = Path(__file__).parents[2]
CASES = 150  # in `make test`; the slow job takes the other seeds
VALUES = (
    *(None, True, False, 0, 1, -1, 7, 2**70, -0.5, 1e308, float("nan"), float("inf"), 0.5),
    *(
        "",
        "x",
        "1",
        "\x1b[31m\u202e",
        "a.b",
        "..",
        "Safe",
        "Yes",
        "length",
        "\ud800",
        "$_{",
        "none",
    ),
    *([], {}, [[]], [None], {"a": {"b": {}}}, ["x"] * 5, {"count": 1, "total": 0, "rate": 3}),
)


@pytest.fixture
def pristine(tmp_path, harmless, monkeypatch) -> Path:
    """Two runs with every file that the report reads."""
    monkeypatch.setattr(plot_style, "is_available", lambda: False)
    folder = tmp_path / "pristine"
    for name, letters in (("base", "rrwu"), ("tuned", "rwrc")):
        run = folder / name
        write_training(run, steps=3)
        write_gsm8k(run, letters)
        write_ailuminate(run, "srux", judges=("qwen3guard", "refusal-phrases"), cut_off=1)
        write_harmless(run, "sr")
        write_json(run / "recipe.json", {"title": "row", "original": {"gsm8k": 43.2, "safe": 84.2}})
        training = {"records": 18, "dropped": 2, "sources": {"rewrite": 15, "gold": 3}}
        training["log_likelihood"] = {"answers": 15, "gold": -1.1, "own": -0.8}
        about = {"task": "self-instruct", "finished": True, "right": rate(15, 20)}
        write_json(run / "self-instruct.summary.json", about | {"training": training})
        mean = {"mean": 0.2, "low": 0.1, "high": 0.3, "answers": 4}
        settings = {"limit": 2, "gsm8k": {"model": "org/Tiny-1B"}}
        write_json(run / "kl.summary.json", {"settings": settings, "gsm8k": mean})
    return folder


def places_in(value, path=()):
    """The path of every value in a JSON value."""
    yield path
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        yield from places_in(item, (*path, key))


def edit(value, path, chance: random.Random):
    """Replace, remove or rename what is at `path`."""
    if not path:
        return chance.choice(VALUES)
    target = value
    for key in path[:-1]:
        target = target[key]
    action = chance.random()
    if action < 0.7:
        target[path[-1]] = chance.choice(VALUES)
    elif action < 0.85 or isinstance(target, list):
        del target[path[-1]]
    else:
        target[chance.choice(["", "x", "a.b", "\x1b", "by_hazard"])] = target.pop(path[-1])
    return value


def damage(path: Path, chance: random.Random) -> None:
    """One edit of a file, by somebody who knows JSON, or by a disk that does not."""
    content = path.read_bytes()
    lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
    action = chance.random()
    if action < 0.8:
        place = chance.randrange(len(lines))
        value = json.loads(lines[place])
        lines[place] = json.dumps(edit(value, chance.choice(list(places_in(value))), chance))
        path.write_text("\n".join(lines) + "\n")
    elif action < 0.85:
        path.write_text("\n".join([*lines, chance.choice(lines)]) + "\n")  # a line twice
    elif action < 0.9:
        path.write_bytes(content[: chance.randrange(len(content))])
    elif action < 0.95:
        cut = chance.randrange(len(content))
        noise = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
        path.write_bytes(content[:cut] + noise + content[cut + 3 :])
    else:
        path.unlink()


def reported(folder: Path, *options: str) -> tuple[int, str]:
    """The exit status of report.py on both runs, and what it said on standard error."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = report.main([str(folder / "base"), str(folder / "tuned"), *options])
    return status, error.getvalue()


def run_cases(pristine: Path, seeds: range) -> int:
    """Damage and report; return how many were refused."""
    refused = 0
    for seed in seeds:
        chance = random.Random(seed)
        folder = pristine.with_name("damaged")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        files = sorted(folder.glob("*/*.json*"))
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            path = chance.choice(files)
            if path.exists() and path.stat().st_size:
                with contextlib.suppress(ValueError, KeyError, IndexError):  # damaged before
                    damage(path, chance)
        options = chance.choice([[], [], ["--flips"], ["--wrong", "3"], ["--format", "json"]])
        output = ["--output", str(folder.with_name("out"))]
        before = {path: path.read_bytes() for path in folder.glob("*/*")}
        status, error = reported(folder, *options, *output)
        assert status in (0, 2), seed
        if status == 2:
            refused += 1
            assert error.startswith("error: ") and error.count("\n") == 1, (seed, error)
            assert error.strip().isprintable(), (seed, error)
        assert {path: path.read_bytes() for path in folder.glob("*/*")} == before, seed
    return refused


def test_files_as_they_are_are_reported(pristine):
    assert reported(pristine, "--output", str(pristine.with_name("out"))) == (0, "")


@pytest.mark.slow
def test_edited_run_files_are_reported_or_refused_in_one_line(pristine):
    refused = run_cases(pristine, range(CASES))
    assert 0.2 * CASES < refused < 0.9 * CASES  # the edits reach the checks, and not only these


def write_large_run(run: Path, records: int, hazards: int, safe: int) -> None:
    """As many answers to two tasks, judged, with as many tokens as real ones have."""
    from data.registry import TASKS
    from tests.reporting.run_folders import write_verdicts

    rows = range(records)
    asked = [{"id": f"g{i}", "question": f"Question {i}?", "gold": f"{i}"} for i in rows]
    answer = "So she sold 48 + 24 = 72 clips in all. " * 15
    responses = [f"{answer}#### {i if i % 3 else 'x'}" for i in rows]
    write_answers(run, TASKS["gsm8k"], asked, responses, ["stop"] * records, {"shots": 3})
    prompts = []
    for i in rows:
        about = {"hazard": f"hz_{i % hazards}", "persona": "skilled", "locale": "en_US"}
        prompts.append({"id": f"p{i}", "prompt": f"How does one do {i}?", **about})
    responses = [f"{answer}{i}" for i in rows]
    write_answers(run, TASKS["ailuminate"], prompts, responses, ["stop"] * records, {})
    tokens = json.dumps(list(range(100_000, 100_250)))
    for name in ("gsm8k", "ailuminate"):
        path = run / f"{name}.jsonl"
        path.write_text(path.read_text().replace("[1, 2, 3]", tokens))
    labels = "".join("s" if i * 7919 % 10 < safe else "u" for i in rows)
    write_verdicts(run, "ailuminate", "qwen3guard", labels)


# The report, and what it took at most: a parent's `ru_maxrss` counts its other children too.
REPORT = """
import re, sys
from pathlib import Path
import report
status = report.main(sys.argv[1:])
print(re.search("VmHWM:.*", Path("/proc/self/status").read_text())[0])
sys.exit(status)
"""


@pytest.mark.slow
def test_large_runs_are_reported_in_bounded_time_and_memory(tmp_path):
    """Two runs of 10,000 records and 200 hazards: under 10 s, 500 MB and a page of 1 MB."""
    for name, safe in (("base", 8), ("tuned", 6)):
        write_large_run(tmp_path / name, 10_000, 200, safe)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", REPORT, str(tmp_path / "base"), str(tmp_path / "tuned")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Of the processor, so that nobody else's work on the machine counts.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    peak = int(done.stdout.rpartition("VmHWM:")[2].split()[0])
    assert peak < 500_000  # kilobytes
    assert (tmp_path / "base" / "report" / "report.html").stat().st_size < 1_000_000
