"""A change in accuracy, split into what the answers' format and what the ability accounts for."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.reasoning import strip_reasoning
from data.scoring import MARKER
from reporting.run_parts import Answer


@dataclass(frozen=True)
class Endings:
    """Counts of how answers end that are scored behind a '####'."""

    total: int
    marked: int  # have a '####'
    right: int  # of those
    cut_off: int  # of the others
    unmarked: int  # ended without it


def count_endings(answers: Sequence[Answer]) -> Endings:
    """Count by the task's main measure; reasoning is no part of an answer."""
    marked, right, cut_off = 0, 0, 0
    for answer in answers:
        if MARKER in strip_reasoning(answer.response):
            marked += 1
            right += bool(answer.outcomes[0])
        elif answer.cut_off:
            cut_off += 1
    total = len(answers)
    return Endings(total, marked, right, cut_off, total - marked - cut_off)


def format_and_ability(before: Endings, after: Endings) -> tuple[float, float] | None:
    """The two parts of a change in accuracy; they add up to it.

    Accuracy is (share with a '####') x (share right of those). Each factor's change counts times
    the mean of the other (Kitagawa 1955, JASA 50:1168-1194). None where a run has no '####' at all:
    nothing is known of its ability then.
    """
    if not before.marked or not after.marked:
        return None
    format_before, format_after = before.marked / before.total, after.marked / after.total
    ability_before, ability_after = before.right / before.marked, after.right / after.marked
    return (
        (format_after - format_before) * (ability_before + ability_after) / 2,
        (ability_after - ability_before) * (format_before + format_after) / 2,
    )
