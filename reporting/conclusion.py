"""The result in sentences, before any table: what each run gained and gave up against the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from reporting.comparison import Comparison, Comparisons
from reporting.load_runs import Run
from reporting.paired_tables import format_p
from reporting.scores import all_scores, column_title, headline_scores, lacks_over_refusal

SIGNIFICANCE = 0.05
BETTER, WORSE, UNCHANGED = "better", "worse", "no significant change"


@dataclass(frozen=True)
class Change:
    """How a score moved: `GSM8K accuracy 25.0 → 75.0 %`, BETTER, `+50.0 points [...], p = ...`."""

    score: str
    verdict: str
    about: str

    def __str__(self) -> str:
        return f"{self.score}, {self.verdict} ({self.about})"


@dataclass(frozen=True)
class Conclusion:
    """What a run gained and gave up against the first."""

    run: int
    name: str
    first: str
    changes: list[Change]
    unknown: str = ""  # what must be known beside and was not measured

    def __str__(self) -> str:
        texts = [*map(str, self.changes), *([self.unknown] if self.unknown else [])]
        return f"{self.name} against {self.first}: {'; '.join(texts)}."


def conclude(runs: Sequence[Run], comparisons: Comparisons) -> list[Conclusion]:
    """A conclusion for every run of which a main score could be paired."""
    lacking = {run.name for run in runs if lacks_over_refusal(run, all_scores(runs))}
    conclusions = []
    for index, run in enumerate(runs):
        changes = [_change(runs, pair) for pair in comparisons.pairs if pair.run == index]
        if changes:
            unknown = "over-refusal was not measured" if run.name in lacking else ""
            conclusions.append(Conclusion(index, run.name, runs[0].name, changes, unknown))
    return conclusions


def _change(runs: Sequence[Run], pair: Comparison) -> Change:
    title = column_title(pair.score, headline_scores(runs))
    low, high = pair.interval
    p_value = format_p(pair.p_value)
    p_text = f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}"
    points = f"{100 * pair.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    return Change(
        f"{title} {100 * pair.share_before:.1f} → {100 * pair.share_after:.1f} %",
        _verdict(pair),
        f"{points}, {p_text}, n = {pair.total:,}",
    )


def _verdict(pair: Comparison) -> str:
    if pair.p_value >= SIGNIFICANCE:
        return UNCHANGED
    return BETTER if len(pair.gained) > len(pair.lost) else WORSE
