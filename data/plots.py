"""The report's pictures as PNG bytes, light or dark; matplotlib (extra `plots`) is imported only when drawing.

The baselines of the course this project grew out of are drawn in grey. They are accuracy and guard-judged safe rate, so
only guard-judged runs share their axes; refusal-phrase rates have a panel of their own.
"""

import importlib.util
import io
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from data.results import Rate, Run, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINES = ((0.280, 0.558), (0.379, 0.642), (0.455, 0.725))  # GSM8K accuracy, safe rate
COLORS = ("#3b7dd8", "#dd7a1f", "#2b9a66", "#b052c0", "#d9485f", "#1f9bb0", "#a8891a", "#7a6ff0")
MARKERS = "osD^vP"  # these and the line styles tell apart the runs that share a color
LINES = ("-", "--", ":", "-.")


def run_color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def loss_png(runs: list[Run], dark: bool = False) -> bytes | None:
    """Training loss by optimizer step, raw (faint) and smoothed, with validation losses as points.

    None if no run has logged a loss. Runs keep their colours even where some have no curve.
    """
    curves = [(index, _series(run, "loss"), _series(run, "validation_loss")) for index, run in enumerate(runs)]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return None
    labels = short_names(runs)
    with _style(dark):
        figure, (axes,) = _figure(rows=1, entries=len(curves))
        for index, losses, validation in curves:
            color, steps = run_color(index), list(losses)
            axes.plot(steps, list(losses.values()), color=color, alpha=0.25, linewidth=0.8)
            style = {"linestyle": LINES[index // len(COLORS) % len(LINES)], "linewidth": 1.8, "label": labels[index]}
            axes.plot(steps, smooth(list(losses.values())), color=color, **style)
            axes.plot(list(validation), list(validation.values()), "o", color=color, markeredgecolor="white")
        axes.plot([], [], "o", color="grey", markeredgecolor="white", label="validation")
        axes.set(xlabel="optimizer step", ylabel="loss per supervised token")
        return _render(figure)


def scatter_png(runs: list[Run], dark: bool = False) -> bytes | None:
    """GSM8K accuracy against safety, with 95 % intervals; None if no run has both.

    The first panel holds the Qwen3Guard safe rate (strict) and the course baselines, the second, if need be, the
    refusal-phrase rate of the runs that no guard has judged.
    """
    points = {method: _points(runs, method) for method in ("guard", "refusal")}
    if not any(points.values()):
        return None
    labels = short_names(runs)
    with _style(dark):
        panels = 2 if points["refusal"] else 1
        figure, axes = _figure(rows=panels, entries=sum(map(len, points.values())))
        _draw_points(axes[0], labels, points["guard"], hollow=False)
        _draw_baselines(axes[0])
        axes[0].set(ylabel="Qwen3Guard safe rate (strict)")
        if not points["guard"]:
            axes[0].set_title("no run here was judged by a guard", loc="left", style="italic")
        if points["refusal"]:
            _draw_points(axes[1], labels, points["refusal"], hollow=True)
            axes[1].set(ylabel="refusal-phrase rate")
            axes[1].set_title("no guard: a rough lower bound, not a safe rate", loc="left", style="italic")
        axes[-1].set(xlabel="GSM8K accuracy")
        for panel in axes:
            panel.xaxis.set_major_formatter(_as_percent)
            panel.yaxis.set_major_formatter(_as_percent)
            panel.set_ylim(_limits([panel.dataLim.intervaly]))
        axes[0].set_xlim(_limits([panel.dataLim.intervalx for panel in axes]))  # shared by the panels
        return _render(figure)


def smooth(values: list[float]) -> list[float]:
    """Centred mean over about a twentieth of the curve, over what there is of it at the ends."""
    reach = len(values) // 40 + 1
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _series(run: Run, name: str) -> dict[int, float]:
    """Step -> value, the last one where a resumed training took a step again."""
    records = run.parts["train"].records if "train" in run.parts else []
    return {record["step"]: record[name] for record in records if record.get(name) is not None}


def _points(runs: list[Run], method: str) -> list[tuple[int, Rate, Rate]]:
    """Run index, accuracy and safety of the runs that were judged by `method`."""
    points = []
    for index, run in enumerate(runs):
        gsm8k, judge = run.parts.get("gsm8k"), run.parts.get("judge")
        if gsm8k and judge and gsm8k.finished and judge.finished and judge.method == method:
            accuracy = gsm8k.rates["accuracy.homework"]
            safety = judge.rates["safe_strict" if method == "guard" else "refusals"]
            if accuracy and safety and accuracy.total and safety.total:
                points.append((index, accuracy, safety))
    return points


def _draw_points(axes: "Axes", labels: list[str], points: list[tuple[int, Rate, Rate]], hollow: bool) -> None:
    for index, accuracy, safety in points:
        color = run_color(index)
        axes.errorbar(
            accuracy.rate,
            safety.rate,
            xerr=_error(accuracy),
            yerr=_error(safety),
            fmt=MARKERS[index // len(COLORS) % len(MARKERS)],
            color=color,
            markerfacecolor="none" if hollow else color,
            markersize=7,
            elinewidth=1.1,
            capsize=2.5,
            label=labels[index],
        )


def _error(rate: Rate) -> list[list[float]]:
    return [[max(0.0, rate.rate - rate.low)], [max(0.0, rate.high - rate.rate)]]


def _draw_baselines(axes: "Axes") -> None:
    for number, (accuracy, safety) in enumerate(BASELINES, start=1):
        axes.plot(accuracy, safety, "o", color="grey", markersize=6)
        axes.annotate(
            f"course baseline {number}",
            (accuracy, safety),
            xytext=(0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize="small",
            color="grey",
        )


def _limits(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """Around all intervals, at least 30 points wide, lest a small difference look large, within about 0 to 100 %."""
    low, high = min(map(min, intervals)), max(map(max, intervals))
    reach = max(0.15, 0.65 * (high - low))
    return max(-0.02, (low + high) / 2 - reach), min(1.02, (low + high) / 2 + reach)


def _as_percent(value: float, _position: int) -> str:
    return f"{100 * value:.0f} %" if 0 <= value <= 1 + 1e-9 else ""


def _style(dark: bool) -> AbstractContextManager:
    import matplotlib

    ink, paper = ("#d6d9de", "#16191d") if dark else ("#33373d", "#ffffff")
    return matplotlib.rc_context(
        {
            "figure.facecolor": paper,
            "axes.facecolor": paper,
            "savefig.facecolor": paper,
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.18,
            "font.size": 11,
            "axes.titlesize": "small",
            "legend.frameon": False,
            "legend.fontsize": "small",
        }
    )


def _figure(rows: int, entries: int) -> "tuple[Figure, list[Axes]]":
    """`rows` panels over a common x axis, small enough to be read on a phone, and room for the legend's entries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4 * rows + 0.22 * (entries + 1)), layout="constrained")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _render(figure: "Figure") -> bytes:
    handles = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()
