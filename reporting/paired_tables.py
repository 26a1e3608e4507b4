"""Tables of the first run against each other one: paired tests, in all and by group."""

from collections.abc import Iterator, Sequence

from data.intervals import holm, mcnemar_test, paired_interval
from reporting.comparison import Comparison, Comparisons
from reporting.format_and_ability import count_endings, format_and_ability
from reporting.load_runs import Run
from reporting.rates import make_rate
from reporting.scores import column_title, headline_scores
from reporting.tables import EMPTY, Table, make_table, percent_interval

SECTION = "Compared in pairs"
MOST_GROUPS = 20  # rows of one comparison by group
ABOUT_PAIRS = (
    "Before is {first}. Points are differences in percentage points with 95 % intervals for pairs "
    "(Bonett and Price 2012). Lost: answers that became worse; gained: better. p: exact two-sided "
    "McNemar test. Needed: prompts with which that test would show such a difference four times in "
    "five, at 5 % significance."
)
ABOUT_GROUPS = (
    "Each group in which an answer flipped is tested on its own. With many tests some p are small "
    "by chance: {adjusted} is p adjusted for all of them (Holm 1979), and that is the one to read."
)
ABOUT_FORMAT = (
    "Accuracy is the share of answers with a '####' times the share of those that are right. A "
    "change of it, in points, is split into what the format and what the ability account for."
)
ADJUSTED = "p, Holm"


def paired_tables(runs: Sequence[Run], comparisons: Comparisons) -> list[Table]:
    """The tables of what was compared; without those that nothing is in."""
    tables = [_paired_table(runs, comparisons), *_group_tables(runs, comparisons)]
    tables += _format_tables(runs, comparisons)
    return [table for table in tables if table]


def _paired_table(runs: Sequence[Run], comparisons: Comparisons) -> Table | None:
    if not comparisons.pairs and not comparisons.refused:
        return None
    scores = headline_scores(runs)
    rows = []
    for pair in comparisons.pairs:
        title = column_title(pair.score, scores)
        rows.append((runs[pair.run].name, title, *_paired_cells(pair)))
    header = "run|measure|n|before|after|points|lost|gained|p|needed".split("|")
    notes = [ABOUT_PAIRS.format(first=runs[0].name)] if comparisons.pairs else []
    notes += _pair_notes(runs, comparisons)
    indices = tuple(pair.run for pair in comparisons.pairs)
    return Table("Paired comparison", tuple(header), rows, indices, "\n".join(notes), SECTION)


def _pair_notes(runs: Sequence[Run], comparisons: Comparisons) -> Iterator[str]:
    """Notes on what each pair does not share, and on what was not paired."""
    differing: dict[tuple[str, str], dict[str, None]] = {}
    for pair in comparisons.pairs:
        if pair.differs_in:
            tasks = differing.setdefault((runs[pair.run].name, pair.differs_in), {})
            tasks[pair.score.task.title] = None
    for (run, differences), tasks in differing.items():
        yield f"{run} differs in {differences} on {', '.join(tasks)}."
    for pair in comparisons.pairs:
        run = runs[pair.run].name
        if pair.only_before or pair.only_after:
            yield (
                f"{run}, {pair.score.title}: {pair.total} {pair.score.task.unit} are common "
                f"to both, {pair.only_before} are only in {runs[0].name} and "
                f"{pair.only_after} only in {run}."
            )
    if comparisons.refused:
        yield f"Not paired: {' '.join(comparisons.refused)}"


def _paired_cells(pair: Comparison) -> tuple[str, ...]:
    return (
        f"{pair.total:,}",
        f"{100 * pair.share_before:.1f}",
        f"{100 * pair.share_after:.1f}",
        format_points(pair.difference, pair.interval),
        f"{len(pair.lost)}",
        f"{len(pair.gained)}",
        format_p(pair.p_value),
        EMPTY if pair.needed is None else f"{pair.needed:,}",
    )


def format_points(difference: float, interval: tuple[float, float]) -> str:
    """`+12.3 [+8.1, +16.4]`, in percentage points."""
    low, high = interval
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def format_p(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _group_tables(runs: Sequence[Run], comparisons: Comparisons) -> Iterator[Table]:
    """A table for each field by which the task's answers are grouped, such as the hazard."""
    scores = headline_scores(runs)
    for score in scores:
        pairs = [pair for pair in comparisons.pairs if pair.score == score]
        for name in score.task.groups:
            rows: list[tuple[int, tuple[str, ...]]] = []
            hidden = 0
            for pair in pairs:
                tested = _tested_groups(pair, name)
                for cells in tested[:MOST_GROUPS]:
                    rows.append((pair.run, (runs[pair.run].name, *cells)))
                hidden += len(tested[MOST_GROUPS:])
            note = ABOUT_GROUPS.format(adjusted=ADJUSTED)
            if hidden:
                note += f" {hidden} rows with larger p are left out."
            header = ("run", name, "n", "points", "lost", "gained", "p", ADJUSTED)
            title = f"{column_title(score, scores)} by {name}"
            table = make_table(title, header, rows, note, SECTION)
            if table:
                yield table


def _tested_groups(pair: Comparison, name: str) -> list[tuple[str, ...]]:
    """The cells of each group in which an answer flipped, the smallest p first."""
    totals: dict[str, int] = {}
    flips: dict[str, list[int]] = {}
    for groups in pair.groups.values():
        totals[groups[name]] = totals.get(groups[name], 0) + 1
    for place, ids in enumerate((pair.lost, pair.gained)):
        for answer in ids:
            flips.setdefault(pair.groups[answer][name], [0, 0])[place] += 1
    if len(totals) < 2:
        return []
    values = sorted(flips, key=lambda value: (mcnemar_test(*flips[value]), value))
    p_values = [mcnemar_test(*flips[value]) for value in values]
    rows: list[tuple[str, ...]] = []
    for value, p_value, adjusted in zip(values, p_values, holm(p_values), strict=True):
        lost, gained = flips[value]
        risen, fallen = (lost, gained) if pair.score.measure.lower_is_better else (gained, lost)
        total = totals[value]
        points = format_points((risen - fallen) / total, paired_interval(fallen, risen, total))
        cells = (f"{total:,}", points, f"{lost}", f"{gained}", format_p(p_value))
        rows.append((value, *cells, format_p(adjusted)))
    return rows


def _format_tables(runs: Sequence[Run], comparisons: Comparisons) -> Iterator[Table]:
    """A table for each task whose summaries say how many answers have a '####'."""
    for score in headline_scores(runs):
        if score.judge is not None:
            continue
        paired = {pair.run for pair in comparisons.pairs if pair.score == score}
        rows = []
        for index, run in enumerate(runs):
            part = run.answers.get(score.task.name)
            if part and part.records and ("has_marker",) in part.rates:
                rows.append((index, _format_cells(runs, index, score.task.name, index in paired)))
        header = "run|has ####|cut off without|ended without|right of those with|format|ability"
        title = f"Format and ability on {score.task.title}"
        table = make_table(title, header.split("|"), rows, ABOUT_FORMAT, SECTION)
        if table:
            yield table


def _format_cells(runs: Sequence[Run], index: int, task: str, paired: bool) -> tuple[str, ...]:
    endings = count_endings(runs[index].answers[task].records)
    shares = [
        f"{100 * count / endings.total:.1f}"
        for count in (endings.marked, endings.cut_off, endings.unmarked)
    ]
    changes = (EMPTY, EMPTY)
    if paired:
        parts = format_and_ability(count_endings(runs[0].answers[task].records), endings)
        if parts:
            changes = (f"{100 * parts[0]:+.1f}", f"{100 * parts[1]:+.1f}")
    right = make_rate(endings.right, endings.marked)
    return (runs[index].name, *shares, percent_interval(right), *changes)
