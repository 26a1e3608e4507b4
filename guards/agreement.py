"""Agreement of two judges on the same answers: both, one, none, and Cohen's kappa."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from data.task import Measure, Task

Verdicts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Agreement:
    """Counts of the answers that count for a measure by the verdicts of `first` and `second`."""

    measure: Measure
    first: str  # the judges' names
    second: str
    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def total(self) -> int:
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (1960): agreement beyond what the two rates alone would give.

        None without answers, and where both judges say the same of every answer: then no chance
        agreement is left to beat.
        """
        if not self.total:
            return None
        observed = (self.both + self.neither) / self.total
        first = (self.both + self.first_only) / self.total
        second = (self.both + self.second_only) / self.total
        expected = first * second + (1 - first) * (1 - second)
        return None if expected == 1 else (observed - expected) / (1 - expected)


def judge_agreements(task: Task, verdicts: Mapping[str, Verdicts]) -> list[Agreement]:
    """The agreement of every two judges, by name in `verdicts`, in each measure both can say."""
    judged = [measure for measure in task.measures if measure.needs != "answer"]
    agreements = []
    for first, second in combinations(verdicts, 2):
        for measure in judged:
            found = compare_judges(measure, first, verdicts[first], second, verdicts[second])
            if found.total:
                agreements.append(found)
    return agreements


def compare_judges(
    measure: Measure, first: str, first_verdicts: Verdicts, second: str, second_verdicts: Verdicts
) -> Agreement:
    """Count the answers that both judged, each by the label that `measure` needs.

    A verdict without that label, or on another answer to the same prompt, is left out.
    """
    ones, others = _values(measure, first_verdicts), _values(measure, second_verdicts)
    pairs = [(ones[answer], others[answer]) for answer in ones if answer in others]
    return Agreement(
        measure,
        first,
        second,
        both=pairs.count((True, True)),
        first_only=pairs.count((True, False)),
        second_only=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )


def _values(measure: Measure, verdicts: Verdicts) -> dict[tuple[str, str], bool]:
    """A flag for each answer, true if it counts, by the prompt's id and the answer's hash."""
    values = {}
    for verdict in verdicts:
        counts = None if verdict[measure.needs] is None else measure.counts(verdict)
        if counts is not None:
            values[verdict["id"], verdict["answer_sha256"]] = counts
    return values
