"""Skill against safety: each run as a point, and each adapter's way as its scale goes up."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from reporting.discrimination import Difference, discrimination
from reporting.load_runs import Run, short_names
from reporting.plot_style import (
    GREY,
    LABEL_WIDTH,
    Label,
    make_figure,
    place_labels,
    render,
    run_color,
    run_marker,
    style,
)
from reporting.rates import Rate
from reporting.reproduction_table import ABOUT_BASELINES, BASELINES, ORIGINAL_FIGURES
from reporting.scores import Score, column_title, headline_scores
from reporting.yardstick import Yardstick, best_of_each_model, common_questions, model_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 7  # whose error bars do not hide each other
PLACES = 20  # on a line between two points that labels keep clear of
NARROWEST = 0.12  # of an axis of shares, lest a small difference look large
FRONTIER_CAPTION = (
    "What is gained and what is given up as the adapter's scale goes from 0, the base model, along "
    "the arrow; each line is one adapter, with 95 % intervals."
)


@dataclass(frozen=True)
class Point:
    """A run's skill and safety."""

    run: int
    skill: Rate
    safety: Rate | Difference


@dataclass(frozen=True)
class Panel:
    """Points over one measure of safety; `score` is None for a difference of two."""

    title: str
    score: Score | None
    points: list[Point]


def skill_score(runs: Sequence[Run]) -> Score | None:
    """The skill that the plots are drawn over: the first that a run has."""
    for score in headline_scores(runs):
        if not score.is_safety and any(_has(score, run) for run in runs):
            return score
    return None


def safety_scores(runs: Sequence[Run]) -> list[Score]:
    """The safety scores that a run has, each in a panel of its own: they are not comparable."""
    scores = headline_scores(runs)
    return [score for score in scores if score.is_safety and any(_has(score, r) for r in runs)]


def _has(score: Score, run: Run) -> bool:
    return score.rate(run) is not None


def points_of(runs: Sequence[Run], skill: Score, safety: Score) -> list[Point]:
    """The runs that have both."""
    points = []
    for index, run in enumerate(runs):
        across, up = skill.rate(run), safety.rate(run)
        if across and up:
            points.append(Point(index, across, up))
    return points


def scatter_caption(runs: Sequence[Run]) -> str:
    """Caption of the picture of skill against safety, the grey points included."""
    caption = "Skill against safety, with 95 % intervals; one panel for each measure of safety."
    skill = skill_score(runs)
    if skill and _yardstick(runs, skill):
        caption += " Dashed: the untouched model at its best, by whichever prompt and reading."
    for score in safety_scores(runs) if skill else ():
        if skill and _has_baselines(skill, score, points_of(runs, skill, score)):
            return f"{caption} {ABOUT_BASELINES}"
    return caption


def scatter_png(runs: Sequence[Run], dark: bool = False) -> bytes | None:
    """Skill against each measure of safety, with 95 % intervals; None if no run has both."""
    skill = skill_score(runs)
    panels = _panels(runs, skill) if skill else []
    if not skill or not panels:
        return None
    names = short_names(runs, LABEL_WIDTH)
    yardstick = _yardstick(runs, skill)
    with style(dark):
        figure, all_axes = make_figure(len(panels))
        labels = []
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_points(axes, panel.points)
            labels.append([_point_label(names[point.run], point) for point in panel.points])
            if panel.score and _has_baselines(skill, panel.score, panel.points):
                labels[-1] += _draw_baselines(axes)
            axes.set_ylabel(panel.title)
            axes.yaxis.set_major_formatter(as_percent if panel.score else as_points)
            axes.set_ylim(_limits([axes.dataLim.intervaly]))
            if yardstick:
                axes.axvline(yardstick.rate, color=GREY, linestyle="--", linewidth=1)
        all_axes[-1].set_xlabel(skill.title)
        all_axes[-1].xaxis.set_major_formatter(as_percent)
        all_axes[0].set_xlim(_limits([axes.dataLim.intervalx for axes in all_axes]))
        for axes, beside in zip(all_axes, labels, strict=True):
            place_labels(axes, beside)
        return render(figure)


def _panels(runs: Sequence[Run], skill: Score) -> list[Panel]:
    """A panel for each measure of safety that has points, and one for how well they go together."""
    scores = safety_scores(runs)
    panels = []
    for score in scores:
        panels.append(Panel(axis_title(score, scores), score, points_of(runs, skill, score)))
    for score in scores:
        if score.is_over_refusal:
            points = []
            for index, run in enumerate(runs):
                across, up = skill.rate(run), discrimination(run, score)
                if across and up:
                    points.append(Point(index, across, up))
            judge = column_title(score, scores).removeprefix(score.title)
            title = f"{score.task.title}, unsafe less harmless refused, points{judge}"
            panels.append(Panel(title, None, points))
    return [panel for panel in panels if panel.points]


def _yardstick(runs: Sequence[Run], skill: Score) -> Yardstick | None:
    """The untouched model at its best, where that is not the first run as the plot shows it.

    None as well where runs are of several models or have answered other questions: then one line
    would not be right for all points.
    """
    task = skill.task.name
    best = best_of_each_model(runs, task)
    if len(best) != 1 or best[0].is_first_run:
        return None
    own = runs[best[0].run].answers[task]
    for part in (run.answers[task] for run in runs if _has(skill, run)):
        common = len(common_questions(own, part))
        if not common == len(own.records) == len(part.records) or model_of(part) != model_of(own):
            return None
    return best[0]


def _has_baselines(skill: Score, safety: Score, points: Sequence[Point]) -> bool:
    """True if the course's baselines are figures of just these two scores, and near the points.

    Points of another size of model would be crushed into a corner by them.
    """
    first, second = ORIGINAL_FIGURES
    scores = (skill.task.name, safety.task.name, safety.judge)
    if scores != (first.task, second.task, second.judge):
        return False
    rates = [point.skill for point in points]
    lowest, highest = min(rate.low for rate in rates), max(rate.high for rate in rates)
    return any(lowest <= baseline.skill <= highest for baseline in BASELINES)


def _point_label(text: str, point: Point) -> Label:
    spans = (point.skill.low, point.skill.high), (point.safety.low, point.safety.high)
    return Label(text, point.skill.rate, point.safety.rate, run_color(point.run), spans)


def axis_title(score: Score, scores: Sequence[Score]) -> str:
    title = column_title(score, scores)
    return f"{title}, lower is better" if score.measure.lower_is_better else title


def _draw_points(axes: "Axes", points: Sequence[Point]) -> None:
    """Points with error bars; of those at one place the later ones are smaller, so all are seen."""
    seen: dict[tuple[float, float], int] = {}
    for point in points:
        place = (point.skill.rate, point.safety.rate)
        below = seen[place] = seen.get(place, -1) + 1
        axes.errorbar(
            point.skill.rate,
            point.safety.rate,
            xerr=error_sides(point.skill),
            yerr=error_sides(point.safety),
            fmt=run_marker(point.run),
            color=run_color(point.run),
            markersize=max(3, 8 - 2 * below),
            elinewidth=0.9,
            capsize=0 if len(points) > FEW_POINTS else 2,
            alpha=0.6 if len(points) > FEW_POINTS else 0.9,
            zorder=3 + below,
        )


def _draw_baselines(axes: "Axes") -> list[Label]:
    labels = []
    for baseline in BASELINES:
        axes.plot(baseline.skill, baseline.safety, "D", color=GREY, markersize=5)
        labels.append(Label(baseline.name, baseline.skill, baseline.safety, GREY))
    return labels


def frontier_png(runs: Sequence[Run], dark: bool = False) -> bytes | None:
    """Skill against safety along the scale of each adapter, a panel for each measure of safety.

    None if no adapter was run at two scales. A base run belongs to every adapter of its model that
    was answered with the same settings, at scale 0.
    """
    skill = skill_score(runs)
    scores = safety_scores(runs) if skill else []
    panels = [(score, scale_lines(runs, skill, score)) for score in scores if skill]
    panels = [(score, lines) for score, lines in panels if lines]
    if not skill or not panels:
        return None
    names = short_names(runs, LABEL_WIDTH)
    with style(dark):
        figure, all_axes = make_figure(len(panels))
        labels = []
        for axes, (score, lines) in zip(all_axes, panels, strict=True):
            labels.append([label for line in lines for label in _draw_line(axes, line, names)])
            axes.set_ylabel(axis_title(score, scores))
            axes.yaxis.set_major_formatter(as_percent)
        all_axes[-1].set_xlabel(skill.title)
        all_axes[-1].xaxis.set_major_formatter(as_percent)
        for axes, beside, (_, lines) in zip(all_axes, labels, panels, strict=True):
            axes.margins(0.1)
            place_labels(axes, beside, avoid=[place for line in lines for place in _along(line)])
        return render(figure)


ScaleLine = list[tuple[float, Point]]  # by scale


def scale_lines(runs: Sequence[Run], skill: Score, safety: Score) -> list[ScaleLine]:
    """For each adapter that was run at two or more scales, its points by scale."""
    adapters: dict[tuple[str, str], dict[float, Point]] = {}
    bases: dict[str, Point] = {}
    for point in points_of(runs, skill, safety):
        settings = runs[point.run].answers[skill.task.name].settings
        varied = ("adapter", "adapter_scale")
        common = repr(sorted((k, v) for k, v in settings.items() if k not in varied))
        if settings.get("adapter") is None:
            bases[common] = point
        else:
            scale = settings.get("adapter_scale")
            if isinstance(scale, int | float):
                adapters.setdefault((repr(settings["adapter"]), common), {})[scale] = point
    lines = []
    for (_, common), scales in adapters.items():
        if common in bases:
            scales.setdefault(0.0, bases[common])
        if len([scale for scale in scales if scale]) > 1:
            lines.append([(scale, scales[scale]) for scale in sorted(scales)])
    return lines


def _draw_line(axes: "Axes", line: ScaleLine, names: Sequence[str]) -> list[Label]:
    """The line with an arrow from each scale to the next, and its labels."""
    last = line[-1][1].run
    color = run_color(last)
    labels = []
    for scale, point in line:
        axes.errorbar(
            point.skill.rate,
            point.safety.rate,
            xerr=error_sides(point.skill),
            yerr=error_sides(point.safety),
            fmt=run_marker(last),
            color=color,
            markersize=5,
            elinewidth=0.7,
            alpha=0.8,
        )
        text = f"{names[last]}, {scale:g}" if point is line[-1][1] else f"{scale:g}"
        labels.append(_point_label(text, point))
    for (_, one), (_, other) in pairwise(line):
        ends = [(point.skill.rate, point.safety.rate) for point in (one, other)]
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 3, "shrinkB": 3}
        axes.annotate("", ends[1], xytext=ends[0], arrowprops=arrow)
    return labels


def _along(line: ScaleLine) -> list[tuple[float, float]]:
    """Places close to each other along the line."""
    places = []
    for (_, one), (_, other) in pairwise(line):
        for step in range(PLACES):
            share = step / PLACES
            x = (1 - share) * one.skill.rate + share * other.skill.rate
            places.append((x, (1 - share) * one.safety.rate + share * other.safety.rate))
    return places


def error_sides(rate: Rate | Difference) -> list[list[float]]:
    """The lengths of the interval below and above the share, as `errorbar` takes them."""
    return [[max(0.0, rate.rate - rate.low)], [max(0.0, rate.high - rate.rate)]]


def _limits(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Around all intervals, at least NARROWEST wide, within about 0 to 100 %; differences of
    shares may lie below 0.
    """
    low, high = min(map(min, intervals)), max(map(max, intervals))
    reach = max(NARROWEST / 2, 0.6 * (high - low))
    lowest = -0.02 if low >= 0 else -1.02
    return max(lowest, (low + high) / 2 - reach), min(1.02, (low + high) / 2 + reach)


def as_percent(value: float, _position: float) -> str:
    return f"{100 * value:g} %" if -1e-9 <= value <= 1 + 1e-9 else ""


def as_points(value: float, _position: float) -> str:
    """A difference of shares, which may be negative."""
    return f"{100 * value:g}" if -1 - 1e-9 <= value <= 1 + 1e-9 else ""
