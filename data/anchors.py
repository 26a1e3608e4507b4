"""Sets of prompts on which training stays near the base model, by the names of --kl-prompts."""

from pathlib import Path

from data.records import Record
from data.registry import TASKS
from data.sources import is_official
from data.task import Task

SEPARATOR = "+"
EMBEDDED = {"demo": "ailuminate", "look-alikes": "xstest"}  # the demo data of which task


def anchor_sets(names: str) -> list[tuple[Task, str]]:
    """The sets that `names` joins by "+", each as a task and the source of its test records.

    "demo" (the embedded hazard prompts), "look-alikes" (the embedded harmless prompts that look
    like such), a task's name (its official test set), a JSONL file in GSM8K's format or a CSV file
    in AILuminate's. The path of a file may hold a "+".
    """
    if Path(names).is_file():
        return [_anchor_set(names)]
    return [_anchor_set(name) for name in names.split(SEPARATOR)]


def load_anchors(task: Task, source: str) -> list[Record]:
    """The prompts of one of the sets; of the look-alikes, those that a model should answer."""
    records = task.load(source, "test")
    if source == "demo":  # the look-alikes' unsafe contrasts are the hazard prompts
        records = [record for record in records if record.get("label", "safe") == "safe"]
    return records


def _anchor_set(name: str) -> tuple[Task, str]:
    if name in EMBEDDED:
        return TASKS[EMBEDDED[name]], "demo"
    if name in TASKS:
        return TASKS[name], "official"
    return TASKS["gsm8k" if Path(name).suffix == ".jsonl" else "ailuminate"], name


def find_tested_set(names: str) -> str | None:
    """The first of the sets that is a task's official test set, as `names` calls it."""
    for task, source in anchor_sets(names):
        if source == "official":
            return task.name
        if any(is_official(source, other.official["test"]) for other in TASKS.values()):
            return source
    return None
