"""Changes of each run from the first, as pairs tell them: a row a run, a mark a score."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.comparison import Comparison
from reporting.load_runs import Run, short_names
from reporting.plot_style import (
    COLORS,
    GREY,
    LABEL_WIDTH,
    MARKERS,
    make_figure,
    render,
    style,
)
from reporting.scores import column_title
from reporting.tradeoff_plots import skill_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANGES_CAPTION = (
    "Change of safety measures from the first run, over the prompts that both have answered, with "
    "95 % intervals for pairs; an interval that crosses the line is no change that these show."
)
ROW_HEIGHT, MARGINS = 0.42, 1.1  # inches
SPREAD = 0.24  # between the marks of one row, in rows; less where they are many


def changes_png(
    runs: Sequence[Run], pairs: Sequence[Comparison], dark: bool = False
) -> bytes | None:
    """Differences from the first run in every safety score; None if nothing was paired in one."""
    pairs = [pair for pair in pairs if pair.score.is_safety]
    if not pairs:
        return None
    scores = list(dict.fromkeys(pair.score for pair in pairs))
    shown = sorted({pair.run for pair in pairs})
    spread = min(SPREAD, 0.8 / len(scores))
    with style(dark):
        figure, (axes,) = make_figure(panels=1)
        figure.set_figheight(MARGINS + ROW_HEIGHT * len(shown))
        for place, score in enumerate(scores):
            own = [pair for pair in pairs if pair.score == score]
            offset = spread * ((len(scores) - 1) / 2 - place)
            rows = [offset - shown.index(pair.run) for pair in own]
            _draw_changes(axes, own, rows, place, column_title(score, scores))
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks([-row for row in range(len(shown))], _row_titles(runs, shown))
        axes.set_ylim(0.5 - len(shown), 0.5)
        axes.set_xlabel(f"points more or fewer than {short_names(runs, LABEL_WIDTH)[0]}")
        figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
        return render(figure)


def _draw_changes(
    axes: "Axes", pairs: Sequence[Comparison], rows: Sequence[float], place: int, title: str
) -> None:
    """One score's marks, in points, with their intervals."""
    differences = [100 * pair.difference for pair in pairs]
    below = [100 * (pair.difference - pair.interval[0]) for pair in pairs]
    above = [100 * (pair.interval[1] - pair.difference) for pair in pairs]
    axes.errorbar(
        differences,
        rows,
        xerr=[below, above],
        fmt=MARKERS[place % len(MARKERS)],
        color=COLORS[place % len(COLORS)],
        markersize=6,
        linewidth=1.3,
        label=title,
    )


def _row_titles(runs: Sequence[Run], shown: Sequence[int]) -> list[str]:
    """The runs' names, each with its skill if that was measured."""
    names, skill = short_names(runs, LABEL_WIDTH), skill_score(runs)
    titles = []
    for index in shown:
        rate = skill.rate(runs[index]) if skill else None
        about = f"\n{skill.task.title} {100 * rate.rate:.1f} %" if skill and rate else ""
        titles.append(names[index] + about)
    return titles
