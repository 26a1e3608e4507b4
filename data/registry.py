"""The tasks there are, by name and in the order of a report's columns."""

from difflib import get_close_matches

from common.errors import UserError
from data.ailuminate import AILuminate
from data.gsm8k import GSM8K
from data.svamp import SVAMP
from data.task import Task
from data.xstest import XSTest

TASKS: dict[str, Task] = {task.name: task for task in (GSM8K(), SVAMP(), AILuminate(), XSTest())}


def get_task(name: str, *others: str) -> Task:
    """The task called `name`. UserError, with the nearest name, if there is none.

    `others` are names that are valid where this one came from, but of no registered task.
    """
    if name not in TASKS:
        known = [*TASKS, *others]
        close = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"unknown task {name!r}: expected one of {', '.join(known)}{hint}")
    return TASKS[name]


def tasks_of_kind(kind: str) -> list[Task]:
    """The registered tasks of kind "skill" or "safety"."""
    return [task for task in TASKS.values() if task.kind == kind]
