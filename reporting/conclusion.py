"""The result in sentences, before any table: what each run gained and gave up against the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from reporting.comparison import Comparison, Comparisons
from reporting.load_runs import Run
from reporting.scores import column_title, headline_scores, without_over_refusal

SIGNIFICANCE = 0.05
BETTER, WORSE, UNCHANGED = "better", "worse", "no significant change"


@dataclass(frozen=True)
class Change:
    """A score's change: "GSM8K accuracy", "25.0 → 75.0 %", "+50.0 points"."""

    score: str
    shares: str
    points: str

    def __str__(self) -> str:
        return f"{self.score} {self.shares} ({self.points})"


@dataclass(frozen=True)
class Conclusion:
    """Gains and losses of a run against the first, by BETTER, WORSE and UNCHANGED."""

    run: int
    name: str
    first: str
    changes: dict[str, list[Change]]
    unknown: str = ""  # what must be known beside and was not measured

    def __str__(self) -> str:
        texts = []
        for verdict, changes in self.changes.items():
            texts.append(f"{verdict}: {', '.join(map(str, changes))}")
        texts += [self.unknown] if self.unknown else []
        return f"{self.name} against {self.first}: {'; '.join(texts)}."


def conclude(runs: Sequence[Run], comparisons: Comparisons) -> list[Conclusion]:
    """A conclusion for every run of which a main score could be paired.

    Better and worse are what the paired test finds at SIGNIFICANCE.
    """
    lacking = without_over_refusal(runs)
    conclusions = []
    for index, run in enumerate(runs):
        pairs = [pair for pair in comparisons.pairs if pair.run == index]
        changes: dict[str, list[Change]] = {}
        for verdict in (BETTER, WORSE, UNCHANGED):
            found = [_change(runs, pair) for pair in pairs if _verdict(pair) == verdict]
            if found:
                changes[verdict] = found
        unknown = "over-refusal was not measured" if run.name in lacking else ""
        if changes:
            conclusions.append(Conclusion(index, run.name, runs[0].name, changes, unknown))
    return conclusions


def _change(runs: Sequence[Run], pair: Comparison) -> Change:
    title = column_title(pair.score, headline_scores(runs))
    shares = f"{100 * pair.share_before:.1f} → {100 * pair.share_after:.1f} %"
    return Change(title, shares, f"{100 * pair.difference:+.1f} points")


def _verdict(pair: Comparison) -> str:
    if pair.p_value >= SIGNIFICANCE:
        return UNCHANGED
    return BETTER if len(pair.gained) > len(pair.lost) else WORSE
