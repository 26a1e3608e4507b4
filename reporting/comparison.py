"""Two runs on the same prompts: which answers flipped, and whether chance explains it.

    comparison = compare(base, tuned, "gsm8k")
    len(comparison.lost), len(comparison.gained), comparison.p_value

Every pair is one prompt answered twice, so what is hard for both runs cancels out: a paired test
finds differences that two overlapping intervals hide. It holds for the same prompts only, so all
else is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from data.intervals import mcnemar_test, paired_interval, questions_needed
from data.scoring import MARKER
from reporting.cautions import judge_label
from reporting.load_runs import Part, Run
from reporting.sample_answers import PROMPT_FIELDS, Answer, judged_answers, outcome_labels

TITLES = {"gsm8k": "GSM8K", "ailuminate": "AILuminate"}
SHOT_SETTINGS = ("shots", "shot_selection", "shots_sha256", "embedder", "pooling")


@dataclass(frozen=True)
class Flip:
    """One prompt whose answer was good in one run and not in the other."""

    id: str
    prompt: str
    before: Answer
    after: Answer


@dataclass(frozen=True)
class Comparison:
    """A run (`after`) against another (`before`) on the same `total` prompts."""

    measure: str
    good: str  # what a good answer is called: "right", "safe", "refused"
    bad: str
    total: int
    good_before: int
    lost: list[Flip]
    gained: list[Flip]

    @property
    def good_after(self) -> int:
        return self.good_before - len(self.lost) + len(self.gained)

    @property
    def difference(self) -> float:
        """In shares, not in percent."""
        return (len(self.gained) - len(self.lost)) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return paired_interval(len(self.lost), len(self.gained), self.total)

    @property
    def p_value(self) -> float:
        return mcnemar_test(len(self.lost), len(self.gained))

    @property
    def needed(self) -> int | None:
        """Questions that would show a difference like this one four times in five."""
        return questions_needed(self.difference, (len(self.lost) + len(self.gained)) / self.total)


def compare(before: Run, after: Run, task: str) -> Comparison | None:
    """Pair the answers of two runs to `task`, "gsm8k" or "ailuminate"; None if one of them has
    none, or no verdicts.

    ValueError, saying what differs, unless both finished and answered the same prompts, with the
    same shots, judged alike. The model, its adapter, how it decodes and its system prompt may
    differ: they are what is compared.
    """
    names = (task,) if task == "gsm8k" else (task, "judge")
    if any(name not in run.parts for run in (before, after) for name in names):
        return None
    problems = [
        f"{run.name}: {name} is unfinished"
        for run in (before, after)
        for name in names
        if not run.parts[name].finished
    ]
    problems = problems or _differences(before, after, task)
    if problems:
        raise UserError("; ".join(problems))
    answers = [judged_answers(index, run, task) for index, run in enumerate((before, after))]
    prompts = {record["id"]: record[PROMPT_FIELDS[task]] for record in before.parts[task].records}
    flips = [
        Flip(name, prompts[name], answers[0][name], answers[1][name]) for name in sorted(prompts)
    ]
    good, bad = outcome_labels(task, [before, after])
    return Comparison(
        measure="GSM8K accuracy" if task == "gsm8k" else f"AILuminate, {good}",
        good=good,
        bad=bad,
        total=len(prompts),
        good_before=sum(bool(answer.good) for answer in answers[0].values()),
        lost=[flip for flip in flips if flip.before.good and not flip.after.good],
        gained=[flip for flip in flips if flip.after.good and not flip.before.good],
    )


def _differences(before: Run, after: Run, task: str) -> list[str]:
    """Why these answers are no pairs, in words."""
    one, other = before.parts[task], after.parts[task]
    found = []
    if task == "gsm8k":
        names = [
            *SHOT_SETTINGS,
            *(["seed"] if one.settings.get("shot_selection") == "random" else []),
        ]
        found += [
            f"{name} is {one.settings.get(name)!r} in {before.name} and {other.settings.get(name)!r} in {after.name}"
            for name in names
            if one.settings.get(name) != other.settings.get(name)
        ]
    asked = [_prompts(part, task) for part in (one, other)]
    for run, mine, theirs in ((before, *asked), (after, *reversed(asked))):
        if alone := sorted(mine.keys() - theirs.keys()):
            found.append(
                f"{len(alone)} of {len(mine)} prompts are only in {run.name} ({alone[0]}, ...)"
            )
    changed = sorted(
        name for name in asked[0].keys() & asked[1].keys() if asked[0][name] != asked[1][name]
    )
    if changed:
        found.append(
            f"{len(changed)} prompts have the same id and another text ({changed[0]}, ...)"
        )
    if task == "ailuminate" and not found:
        found += _judging_differences(before, after)
    return found


def _judging_differences(before: Run, after: Run) -> list[str]:
    judges = [judge_label(run.parts["judge"]) for run in (before, after)]
    if judges[0] != judges[1]:
        return [f"{before.name} was judged by {judges[0]}, {after.name} by {judges[1]}"]
    return [
        f"{len(waiting)} answers of {run.name} are not judged ({waiting[0]}, ...)"
        for run in (before, after)
        if (
            waiting := sorted(
                name for name, a in judged_answers(0, run, "ailuminate").items() if a.good is None
            )
        )
    ]


def _prompts(part: Part, task: str) -> dict[str, tuple[str, Any]]:
    return {
        record["id"]: (record[PROMPT_FIELDS[task]], record.get("gold")) for record in part.records
    }


def split_accuracy(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How GSM8K answers end: `marker` (has a '####'), `right` of those, `cut_off` and `unmarked` of
    the others.
    """
    marked = [record for record in records if MARKER in record["response"]]
    cut_off = sum(
        record.get("finish_reason") == "length"
        for record in records
        if MARKER not in record["response"]
    )
    return {
        "marker": len(marked),
        "right": sum(record["correct"] for record in marked),
        "cut_off": cut_off,
        "unmarked": len(records) - len(marked) - cut_off,
    }


def format_and_ability(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> tuple[float, float] | None:
    """Split a change in accuracy into what the format and what the ability account for; the two add
    up to it.

    Accuracy is (share with a '####') x (share right of those). Each factor's change counts times
    the mean of the other (Kitagawa 1955, JASA 50:1168-1194). None where a run has no '####' at all:
    nothing is known of its ability then.
    """
    shares = []
    for records in (before, after):
        counts = split_accuracy(records)
        if not counts["marker"]:
            return None
        shares.append((counts["marker"] / len(records), counts["right"] / counts["marker"]))
    (format_before, ability_before), (format_after, ability_after) = shares
    return (
        (format_after - format_before) * (ability_before + ability_after) / 2,
        (ability_after - ability_before) * (format_before + format_after) / 2,
    )
