"""What a report says of its first run against each other one: paired tests, and format apart from
ability.
"""

from data.intervals import rate
from reporting.comparison import TITLES, Comparison, compare, format_and_ability, split_accuracy
from reporting.load_runs import Run
from reporting.tables import Table, percent_interval

ABOUT_PAIRS = (
    "Points are differences in percentage points with 95 % paired bootstrap intervals. p: exact McNemar test, the "
    "chance of flips at least as one-sided if neither run were better. Needed: questions that would show such a "
    "difference four times in five."
)
ABOUT_FORMAT = (
    "Accuracy is the share of answers with a '####' times the share of those that are right. A change of it, in "
    "points, is split into what the format and what the ability account for."
)


def compare_runs(runs: list[Run]) -> tuple[list[tuple[int, Comparison]], list[str]]:
    """Every other run against the first, by its index, and in words what could not be paired."""
    comparisons, refused = [], []
    for index, run in enumerate(runs[1:], start=1):
        for task, title in TITLES.items():
            try:
                comparison = compare(runs[0], run, task)
            except ValueError as error:
                refused.append(f"{run.name}, {title}: {error}.")
                continue
            if comparison:
                comparisons.append((index, comparison))
    return comparisons, refused


def paired_tables(runs: list[Run]) -> list[Table]:
    """The tables of what was compared; without those that nothing is in."""
    tables = [_paired_table(runs), _format_table(runs)]
    return [table for table in tables if table]


def _paired_table(runs: list[Run]) -> Table | None:
    if len(runs) < 2:
        return None
    comparisons, refused = compare_runs(runs)
    note = " ".join([ABOUT_PAIRS, *([f"Not paired: {' '.join(refused)}"] if refused else [])])
    header = (
        "run",
        "measure",
        "n",
        runs[0].name,
        "this run",
        "points",
        "lost",
        "gained",
        "p",
        "needed",
    )
    rows = [(runs[index].name, *_paired_row(comparison)) for index, comparison in comparisons]
    if not rows and not refused:
        return None
    return Table("Paired comparison", header, rows, note, tuple(index for index, _ in comparisons))


def _paired_row(comparison: Comparison) -> tuple[str, ...]:
    low, high = comparison.interval
    before, after = (
        100 * good / comparison.total for good in (comparison.good_before, comparison.good_after)
    )
    return (
        comparison.measure,
        f"{comparison.total:,}",
        f"{before:.1f}",
        f"{after:.1f}",
        f"{100 * comparison.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{len(comparison.lost)}",
        f"{len(comparison.gained)}",
        format_p(comparison.p_value),
        "-" if comparison.needed is None else f"{comparison.needed:,}",
    )


def format_p(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _format_table(runs: list[Run]) -> Table | None:
    answered = [
        (index, run.parts["gsm8k"]) for index, run in enumerate(runs) if "gsm8k" in run.parts
    ]
    answered = [(index, part) for index, part in answered if part.finished and part.records]
    if not answered:
        return None
    paired = {
        index
        for index, comparison in compare_runs(runs)[0]
        if comparison.measure.startswith("GSM8K")
    }
    rows = []
    for index, part in answered:
        counts, total = split_accuracy(part.records), len(part.records)
        changes = (
            format_and_ability(runs[0].parts["gsm8k"].records, part.records)
            if index in paired
            else None
        )
        rows.append(
            (
                runs[index].name,
                *(
                    f"{100 * counts[name] / total:.1f}"
                    for name in ("marker", "cut_off", "unmarked")
                ),
                percent_interval(rate(counts["right"], counts["marker"])),
                *(
                    ("-", "-")
                    if changes is None
                    else (f"{100 * change:+.1f}" for change in changes)
                ),
            )
        )
    header = (
        "run",
        "has ####",
        "cut off without",
        "ended without",
        "right of those with",
        "format",
        "ability",
    )
    return Table(
        "Format and ability on GSM8K",
        header,
        rows,
        ABOUT_FORMAT,
        tuple(index for index, _ in answered),
    )
