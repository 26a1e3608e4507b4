"""Two runs on the same prompts: which answers flipped, and whether chance explains it.

    comparison = compare(base, tuned, score)
    len(comparison.lost), len(comparison.gained), comparison.p_value

Every pair is one prompt answered twice, so what is hard for both runs cancels out: a paired test
finds differences that two overlapping intervals hide. It holds for the same prompts only: what is
common to both runs is paired, and what else the runs do not share is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from common.errors import UserError
from data.intervals import mcnemar_test, paired_interval, questions_needed
from reporting.load_runs import Run
from reporting.run_parts import Answer
from reporting.scores import Score, headline_scores, judge_title
from reporting.setting_differences import describe_differences, setting_differences


@dataclass(frozen=True)
class Comparison:
    """The run number `run` of a report (`after`) against its first (`before`) in one score.

    Ids stand for the answers: `lost` became worse, `gained` better. Shares are those of the
    measure: where less of it is better, more lost than gained is a positive difference.
    """

    score: Score
    run: int
    total: int  # prompts that both answered
    good_before: int
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    only_before: int = 0  # prompts that were not answered by both
    only_after: int = 0
    differs_in: str = ""  # the settings that the two do not share
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of each paired id

    @property
    def good_after(self) -> int:
        return self.good_before - len(self.lost) + len(self.gained)

    @property
    def share_before(self) -> float:
        return self._share(self.good_before)

    @property
    def share_after(self) -> float:
        return self._share(self.good_after)

    def _share(self, good: int) -> float:
        counted = self.total - good if self.score.measure.lower_is_better else good
        return counted / self.total

    @property
    def difference(self) -> float:
        """The measure's difference, in shares; rounding aside, `share_after - share_before`."""
        return (self._risen - self._fallen) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference; see `data.intervals.paired_interval`."""
        return paired_interval(self._fallen, self._risen, self.total)

    @property
    def _risen(self) -> int:
        """Answers that count for the measure now and did not before."""
        return len(self.lost) if self.score.measure.lower_is_better else len(self.gained)

    @property
    def _fallen(self) -> int:
        return len(self.gained) if self.score.measure.lower_is_better else len(self.lost)

    @cached_property
    def p_value(self) -> float:
        return mcnemar_test(len(self.lost), len(self.gained))

    @cached_property
    def needed(self) -> int | None:
        """Prompts with which the test would show a difference like this one four times in five."""
        flips = len(self.lost) + len(self.gained)
        return questions_needed(self.difference, flips / self.total)


@dataclass(frozen=True)
class Comparisons:
    """Every other run of a report against its first, and in words what could not be paired."""

    pairs: list[Comparison]
    refused: list[str]


def compare_runs(runs: Sequence[Run]) -> Comparisons:
    """Pair the first run with each other one in every main score."""
    pairs, refused = [], []
    scores = headline_scores(runs)
    for index, run in enumerate(runs[1:], start=1):
        for score in scores:
            try:
                comparison = compare(runs[0], run, score, index)
            except UserError as error:
                refused.append(f"{run.name}, {score.title}: {error}.")
                continue
            if comparison:
                pairs.append(comparison)
    return Comparisons(pairs, refused)


def compare(before: Run, after: Run, score: Score, index: int = 1) -> Comparison | None:
    """Pair the answers of two runs to the prompts that both have; None if one of them has none.

    UserError, saying what is in the way, unless both are finished, have prompts in common and agree
    on what stands under each id, and one and the same judge has judged them. Everything else, such
    as the model, the shots or the system prompt, may differ: that is what is compared.
    """
    ones, others = score.part(before), score.part(after)
    answers = before.answers.get(score.task.name), after.answers.get(score.task.name)
    if ones is None or others is None or answers[0] is None or answers[1] is None:
        return None
    unfinished = []
    for run, parts in ((before, (answers[0], ones)), (after, (answers[1], others))):
        names = dict.fromkeys(part.name for part in parts if not part.finished)
        unfinished += [f"{run.name}: {name} is unfinished" for name in names]
    if unfinished:
        raise UserError("; ".join(unfinished))
    if score.judge is not None:
        _refuse_other_judge(before, after, score)
    prompts = [{answer.id: answer for answer in part.records} for part in answers if part]
    _refuse_changed_prompts(*prompts)
    good = [score.outcomes(before), score.outcomes(after)]
    common = sorted(good[0].keys() & good[1].keys() & prompts[0].keys() & prompts[1].keys())
    if not common:
        raise UserError(f"{before.name} and {after.name} have no {score.task.unit} in common")
    return Comparison(
        score=score,
        run=index,
        total=len(common),
        good_before=sum(good[0][name] for name in common),
        lost=tuple(name for name in common if good[0][name] and not good[1][name]),
        gained=tuple(name for name in common if good[1][name] and not good[0][name]),
        only_before=len(good[0]) - len(common),
        only_after=len(good[1]) - len(common),
        differs_in=describe_differences(setting_differences(answers[0], answers[1])),
        groups={name: prompts[0][name].groups for name in common},
    )


def _refuse_other_judge(before: Run, after: Run, score: Score) -> None:
    """UserError unless the verdicts came by the same settings, whatever these are."""
    ones, others = score.part(before), score.part(after)
    assert ones is not None and others is not None and score.judge is not None
    differences = setting_differences(ones, others)
    if differences:
        raise UserError(
            f"{before.name} and {after.name} were not judged alike by {judge_title(score.judge)}: "
            f"{describe_differences(differences)}"
        )


def _refuse_changed_prompts(ones: Mapping[str, Answer], others: Mapping[str, Answer]) -> None:
    changed = []
    for name in sorted(ones.keys() & others.keys()):
        one, other = ones[name], others[name]
        if (one.prompt, one.gold) != (other.prompt, other.gold):
            changed.append(name)
    if changed:
        raise UserError(
            f"{len(changed)} prompts have the same id and another text ({changed[0]}, ...)"
        )
