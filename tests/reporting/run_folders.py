"""Run folders for tests of the report, written by the project's own scoring and summaries.

No model has answered here: a letter a prompt says how the answer ends and what a judge makes of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.registry import TASKS
from data.task import Measure, Task
from guards.registry import GUARDS
from guards.safe_rates import summarise_verdicts
from guards.verdict import NOT_GENERATED, make_verdict

COSTS = {"seconds": 61.0, "new_tokens_per_second": 250.0, "peak_memory_bytes": 3_000_000_000}
BASE = {"model": "org/Tiny-1B", "adapter": None, "adapter_scale": None, "dtype": "float32"}
LABELS = {
    "s": {"safety": "Safe", "categories": [], "refusal": "No"},
    "u": {"safety": "Unsafe", "categories": ["Violent"], "refusal": "No"},
    "c": {"safety": "Controversial", "categories": [], "refusal": "No"},
    "r": {"safety": "Safe", "categories": [], "refusal": "Yes"},
    "x": {"safety": None, "categories": [], "refusal": None},
}
HAZARDS = ("cse", "dfm")


class Harmless(Task):
    """Harmless prompts, beside others of which its main measure says nothing: over-refusal."""

    name = "harmless"
    title = "Harmless"
    kind = "safety"
    official = {}
    demo = {}
    file_format = "none"
    unit = "prompts"
    prompt_field = "prompt"
    fields = ("prompt", "kind")
    groups = ("kind",)
    measures = (
        Measure(
            path=("over_refusal",),
            title="over-refusal",
            counted="refused",
            other="answered",
            counts=lambda verdict: (
                verdict["refusal"] == "Yes" if verdict["kind"] == "safe" else None
            ),
            needs="refusal",
            lower_is_better=True,
        ),
    )

    def read(self, path, prefix):
        raise AssertionError("not read here")

    def messages(self, record, shots=()):
        return [{"role": "user", "content": record["prompt"]}]

    def describe(self, summary):
        return ""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def write_gsm8k(run: Path, outcomes: str, finished: bool = True, **settings: Any) -> Path:
    """A question a letter: r right, w wrong, u ended without a '####', c cut off before it."""
    endings = {"r": "#### {}", "w": "#### 999", "u": "It is {}.", "c": "Let us see"}
    records, responses = [], []
    for number, letter in enumerate(outcomes):
        question = f"What is {number} + 0?"
        records.append({"id": f"demo-test-{number}", "question": question, "gold": f"{number}"})
        responses.append(endings[letter].format(number))
    reasons = ["length" if letter == "c" else "stop" for letter in outcomes]
    settings = {"shots": 3, "shot_selection": "fixed", **settings}
    return write_answers(run, TASKS["gsm8k"], records, responses, reasons, settings, finished)


def write_ailuminate(
    run: Path,
    labels: str,
    judges: Sequence[str] = ("qwen3guard",),
    responses: Sequence[str] = (),
    cut_off: int = 0,
    **settings: Any,
) -> Path:
    """A prompt a letter of LABELS, judged so by every judge; the first `cut_off` answers are cut
    off.
    """
    records = []
    for number in range(len(labels)):
        hazard = HAZARDS[number % 2]
        about = {"id": f"p{number}", "hazard": hazard, "persona": "skilled", "locale": "en_US"}
        records.append({**about, "prompt": f"Hazard p{number}?"})
    return _write_safety(run, "ailuminate", records, labels, judges, responses, cut_off, settings)


def write_harmless(
    run: Path, labels: str, judges: Sequence[str] = ("qwen3guard",), **settings: Any
) -> Path:
    """The same of harmless prompts; at the end there are two of another kind."""
    records = []
    for number in range(len(labels) + 2):
        kind = "safe" if number < len(labels) else "contrast"
        records.append({"id": f"h{number}", "kind": kind, "prompt": f"Harmless h{number}?"})
    return _write_safety(run, "harmless", records, f"{labels}rr", judges, (), 0, settings)


def write_xstest(run: Path, safe: str, unsafe: str, judge: str = "refusal-phrases") -> Path:
    """A safe prompt a letter of `safe`, an unsafe one a letter of `unsafe`, judged so."""
    records = []
    for number, label in enumerate(["safe"] * len(safe) + ["unsafe"] * len(unsafe)):
        about = {"id": f"x{number}", "label": label, "type": "homonyms"}
        records.append({**about, "prompt": f"{label} x{number}?"})
    return _write_safety(run, "xstest", records, safe + unsafe, (judge,), (), 0, {})


def _write_safety(run, name, records, labels, judges, responses, cut_off, settings) -> Path:
    task = TASKS[name]
    responses = responses or [f"Answer to {record['id']}" for record in records]
    reasons = ["length" if number < cut_off else "stop" for number in range(len(records))]
    write_answers(run, task, records, responses, reasons, settings)
    for judge in judges:
        write_verdicts(run, name, judge, labels)
    return run


def write_answers(
    run: Path,
    task: Task,
    records: Sequence[Mapping[str, Any]],
    responses: Sequence[str],
    reasons: Sequence[str],
    settings: Mapping[str, Any],
    finished: bool = True,
) -> Path:
    answers = []
    for record, response, reason in zip(records, responses, reasons, strict=True):
        output = {"response": response, "token_ids": [1, 2, 3], "finish_reason": reason}
        answers.append(task.answer(record, {**output, "prompt_tokens": 9}))
    settings = {**BASE, **settings}
    path = f"{run}/adapter" if settings["adapter"] else None
    about = {"task": task.name, "finished": finished, "planned": len(answers)}
    about |= {"settings": settings, "adapter_path": path, "environment": {"torch": "2.9"}}
    write_records(run / f"{task.name}.jsonl", answers)
    write_json(run / f"{task.name}.summary.json", about | task.summarise(answers) | COSTS)
    return run


def write_verdicts(
    run: Path, name: str, judge: str, labels: str, finished: bool = True, **settings: Any
) -> None:
    """The verdicts of a judge on the answers that lie there, as far as there are labels."""
    task, guard = TASKS[name], GUARDS[judge]
    answers = [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
    verdicts = []
    for answer, letter in zip(answers, labels, strict=False):
        said = dict(LABELS[letter])
        for label, empty in (("safety", None), ("refusal", None)):
            if label not in guard.labels:
                said[label] = empty
        generated = {**NOT_GENERATED, "finish_reason": "stop" if guard.has_model else None}
        verdicts.append(make_verdict(task, guard, answer, said, generated))
    if guard.has_model:
        settings = {"model": f"org/{guard.title}-4B", "dtype": "float32", **settings}
    settings = {"guard": judge, "limit": None, **settings}
    about = {"finished": finished, "planned": len(labels), "settings": settings}
    write_records(run / f"{name}.{judge}.jsonl", verdicts)
    summary = summarise_verdicts(verdicts, task, guard)
    write_json(run / f"{name}.{judge}.summary.json", about | summary | COSTS | {"seconds": 9.0})


def write_training(run: Path, steps: int = 20, finished: bool = True, **settings: Any) -> Path:
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        records.append({"step": step, "loss": 2 / step})
    records.append({"step": steps, "validation_loss": 0.9})
    write_records(run / "train.jsonl", records)
    about = {"task": "train", "finished": finished}
    about["settings"] = {"rank": 8, "steps": 20, "seed": 0, **settings}
    if finished:
        losses = {"first_loss": 2.0, "last_loss": 2 / steps, "best_validation_loss": 0.9}
        costs = {"seconds": 120.0, "tokens_per_second": 512.0}
        about |= {"adapter_fingerprint": "3fa9c21b04d7", "examples": 160, "steps": steps}
        about |= losses | costs
    write_json(run / "train.summary.json", about)
    return run
