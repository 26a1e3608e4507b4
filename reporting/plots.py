"""The report's pictures as PNG bytes, light or dark: losses, skill against safety, distances.

Skills are drawn by their main score, safety tasks by the main score of each of their judges,
whatever tasks the registry holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from reporting.change_plots import CHANGES_CAPTION, changes_png
from reporting.comparison import Comparison
from reporting.load_runs import Run, short_names
from reporting.plot_style import (
    LABEL_WIDTH,
    LINES,
    Label,
    make_figure,
    place_labels,
    render,
    run_color,
    run_marker,
    style,
)
from reporting.rates import Rate
from reporting.scores import Score, without_over_refusal
from reporting.side_files import Mean
from reporting.tradeoff_plots import (
    FRONTIER_CAPTION,
    as_percent,
    axis_title,
    error_sides,
    frontier_png,
    safety_scores,
    scatter_caption,
    scatter_png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAMES = ("loss.png", "changes.png", "scatter.png", "frontier.png", "divergence.png")
LOSS_CAPTION = "Training loss: each step (faint), smoothed, and on held-out examples (points)."
DIVERGENCE_CAPTION = "Safety against the distance from the base model, with 95 % intervals."
WIDE_SPAN = 20  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Picture:
    """A plot as PNG bytes for either colour scheme."""

    file_name: str
    caption: str
    light: bytes
    dark: bytes


def draw_pictures(runs: Sequence[Run], pairs: Sequence[Comparison] = ()) -> list[Picture]:
    """The plots that these runs have anything for; `pairs` compare the first with the others."""
    plots: list[tuple[str, str, Callable[..., bytes | None]]] = [
        ("loss.png", LOSS_CAPTION, loss_png),
        ("changes.png", CHANGES_CAPTION, partial(changes_png, pairs=pairs)),
        ("scatter.png", scatter_caption(runs), scatter_png),
        ("frontier.png", FRONTIER_CAPTION, frontier_png),
        ("divergence.png", DIVERGENCE_CAPTION, divergence_png),
    ]
    lacking = without_over_refusal(runs)
    missing = f" Over-refusal was not measured in {', '.join(lacking)}." if lacking else ""
    pictures = []
    for file_name, caption, plot in plots:
        light, dark = plot(runs, dark=False), plot(runs, dark=True)
        if light is not None and dark is not None:
            about = caption if plot is loss_png else caption + missing
            pictures.append(Picture(file_name, about, light, dark))
    return pictures


def loss_png(runs: Sequence[Run], dark: bool = False) -> bytes | None:
    """Training loss by optimizer step, raw (faint) and smoothed, with validation losses as points.

    None if no run has logged a loss. Runs keep their colours even where some have no curve.
    """
    from matplotlib.ticker import MaxNLocator

    trained = [(index, run.training) for index, run in enumerate(runs)]
    curves = [(index, training) for index, training in trained if training and training.losses]
    if not curves:
        return None
    names = short_names(runs, LABEL_WIDTH)
    with style(dark):
        figure, (axes,) = make_figure(panels=1)
        labels = []
        for index, training in curves:
            color = run_color(index)
            steps, losses = list(training.losses), list(training.losses.values())
            line, smoothed = LINES[index % len(LINES)], smooth(losses)
            axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed, color=color, linestyle=line, linewidth=1.8)
            held_out = training.validation_losses
            marker = run_marker(index)
            axes.plot(list(held_out), list(held_out.values()), marker, color=color, markersize=5)
            labels.append(Label(names[index], steps[-1], smoothed[-1], color))
        axes.set(xlabel="optimizer step", ylabel="loss, nats per supervised token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        place_labels(axes, labels, beside=True)
        return render(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Centred mean over about a twentieth of the curve, over what there is of it at the ends."""
    reach = len(values) // 40 + 1
    sums = list(accumulate(values, initial=0.0))
    means = []
    for place in range(len(values)):
        first, end = max(0, place - reach), min(len(values), place + reach + 1)
        means.append((sums[end] - sums[first]) / (end - first))
    return means


@dataclass(frozen=True)
class Distance:
    """A run's distance from its base on a task, and its safety."""

    run: int
    mean: Mean
    safety: Rate


def divergence_png(runs: Sequence[Run], dark: bool = False) -> bytes | None:
    """Safety against the divergence from the base, a panel a task; None if no run has both.

    Safety is the first score of it that such a run has: one measure to a picture.
    """
    score, panels = _distances(runs)
    if score is None:
        return None
    names = short_names(runs, LABEL_WIDTH)
    with style(dark):
        figure, all_axes = make_figure(len(panels), share_x=False)
        labels = []
        for axes, (title, points) in zip(all_axes, panels.items(), strict=True):
            beside = []
            for point in points:
                _draw_distance(axes, point)
                beside.append(_distance_label(names[point.run], point))
            labels.append(beside)
            axes.set_ylabel(axis_title(score, [score]))
            axes.yaxis.set_major_formatter(as_percent)
            axes.set_xlabel(f"KL(base || tuned) on {title}, nats a token")
            _use_logarithm(axes, [point.mean.mean for point in points])
            axes.margins(0.1)
        for axes, beside in zip(all_axes, labels, strict=True):
            place_labels(axes, beside)
        return render(figure)


def _distances(runs: Sequence[Run]) -> tuple[Score | None, dict[str, list[Distance]]]:
    """The score of safety to draw, and the points of each task by its title."""
    for score in safety_scores(runs):
        panels: dict[str, list[Distance]] = {}
        for index, run in enumerate(runs):
            safety = score.rate(run)
            if safety is None:
                continue
            for task, mean in run.divergence.items():
                title = run.answers[task].task.title
                panels.setdefault(title, []).append(Distance(index, mean, safety))
        if panels:
            return score, panels
    return None, {}


def _draw_distance(axes: "Axes", point: Distance) -> None:
    mean = point.mean
    axes.errorbar(
        mean.mean,
        point.safety.rate,
        xerr=[[max(0.0, mean.mean - mean.low)], [max(0.0, mean.high - mean.mean)]],
        yerr=error_sides(point.safety),
        fmt=run_marker(point.run),
        color=run_color(point.run),
        capsize=2,
        elinewidth=0.9,
        alpha=0.9,
    )


def _distance_label(text: str, point: Distance) -> Label:
    mean, safety = point.mean, point.safety
    spans = (mean.low, mean.high), (safety.low, safety.high)
    return Label(text, mean.mean, safety.rate, run_color(point.run), spans)


def _use_logarithm(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis where values of different size would crowd at one end; 0 stays on it."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > WIDE_SPAN * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive))
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
