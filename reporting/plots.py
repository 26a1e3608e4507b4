"""The report's pictures as PNG bytes, light or dark; matplotlib (extra `plots`) is imported only
when drawing.

The baselines of the course this project grew out of are drawn in grey. They are accuracy and
guard-judged safe rate, so only guard-judged runs share their axes; refusal-phrase rates have a
panel of their own.
"""

import importlib.util
import io
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from reporting.load_runs import Rate, Run, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINES = ((0.280, 0.558), (0.379, 0.642), (0.455, 0.725))  # GSM8K accuracy, safe rate
COLORS = ("#3b7dd8", "#dd7a1f", "#2b9a66", "#b052c0", "#d9485f", "#1f9bb0", "#a8891a", "#7a6ff0")
MARKERS = "osD^vP"  # these and the line styles tell apart the runs that share a color
SAFETY_LABELS = {"guard": "Qwen3Guard safe rate (strict)", "refusal": "refusal-phrase rate"}
LINES = ("-", "--", ":", "-.")


def run_color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def loss_png(runs: list[Run], dark: bool = False) -> bytes | None:
    """Training loss by optimizer step, raw (faint) and smoothed, with validation losses as points.

    None if no run has logged a loss. Runs keep their colours even where some have no curve.
    """
    curves = [
        (index, _series(run, "loss"), _series(run, "validation_loss"))
        for index, run in enumerate(runs)
    ]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return None
    labels = short_names(runs)
    with _style(dark):
        figure, (axes,) = _figure(rows=1, entries=len(curves))
        for index, losses, validation in curves:
            color, steps = run_color(index), list(losses)
            axes.plot(steps, list(losses.values()), color=color, alpha=0.25, linewidth=0.8)
            style = {
                "linestyle": LINES[index // len(COLORS) % len(LINES)],
                "linewidth": 1.8,
                "label": labels[index],
            }
            axes.plot(steps, smooth(list(losses.values())), color=color, **style)
            axes.plot(
                list(validation),
                list(validation.values()),
                "o",
                color=color,
                markeredgecolor="white",
            )
        axes.plot([], [], "o", color="grey", markeredgecolor="white", label="validation")
        axes.set(xlabel="optimizer step", ylabel="loss per supervised token")
        return _render(figure)


def scatter_png(runs: list[Run], dark: bool = False) -> bytes | None:
    """GSM8K accuracy against safety, with 95 % intervals; None if no run has both.

    The first panel holds the Qwen3Guard safe rate (strict) and the course baselines, the second, if
    need be, the refusal-phrase rate of the runs that no guard has judged.
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
        axes[0].set(ylabel=SAFETY_LABELS["guard"])
        if not points["guard"]:
            axes[0].set_title("no run here was judged by a guard", loc="left", style="italic")
        if points["refusal"]:
            _draw_points(axes[1], labels, points["refusal"], hollow=True)
            axes[1].set(ylabel=SAFETY_LABELS["refusal"])
            axes[1].set_title(
                "no guard: a rough lower bound, not a safe rate", loc="left", style="italic"
            )
        axes[-1].set(xlabel="GSM8K accuracy")
        for panel in axes:
            panel.xaxis.set_major_formatter(_as_percent)
            panel.yaxis.set_major_formatter(_as_percent)
            panel.set_ylim(_limits([panel.dataLim.intervaly]))
        axes[0].set_xlim(
            _limits([panel.dataLim.intervalx for panel in axes])
        )  # shared by the panels
        return _render(figure)


def frontier_png(runs: list[Run], dark: bool = False) -> bytes | None:
    """GSM8K accuracy against safety along the scale of each adapter; None if no adapter was run at
    two scales.

    A base run belongs to every adapter of its model with the same shots, at scale 0.
    """
    lines = _scale_lines(runs)
    if not lines:
        return None
    labels = short_names(runs)
    with _style(dark):
        figure, (axes,) = _figure(rows=1, entries=len(lines))
        for points in lines:
            color, last = run_color(points[-1][1]), points[-1][1]
            style = {
                "color": color,
                "marker": "o",
                "markersize": 5,
                "linewidth": 1.4,
                "elinewidth": 0.8,
            }
            axes.errorbar(
                [accuracy.rate for _, _, accuracy, _ in points],
                [safety.rate for _, _, _, safety in points],
                xerr=list(
                    zip(*(_error_sides(accuracy) for _, _, accuracy, _ in points), strict=True)
                ),
                yerr=list(zip(*(_error_sides(safety) for _, _, _, safety in points), strict=True)),
                label=labels[last],
                **style,
            )
            scales: dict[tuple[float, float], list[str]] = {}  # points that coincide share a label
            for scale, _, accuracy, safety in points:
                scales.setdefault((accuracy.rate, safety.rate), []).append(f"{scale:g}")
            for place, names in scales.items():
                axes.annotate(
                    ", ".join(names),
                    place,
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize="small",
                )
        method = runs[lines[0][0][1]].parts["judge"].method
        axes.set(xlabel="GSM8K accuracy", ylabel=SAFETY_LABELS[method])
        axes.xaxis.set_major_formatter(_as_percent)
        axes.yaxis.set_major_formatter(_as_percent)
        return _render(figure)


def _scale_lines(runs: list[Run]) -> list[list[tuple[float, int, Rate, Rate]]]:
    """For each adapter with two or more scales: (scale, run index, accuracy, safety), by scale."""
    methods = ("guard", "refusal")
    lines = []
    for points in (_points(runs, method) for method in methods):
        adapters: dict[tuple, dict[float, tuple[float, int, Rate, Rate]]] = {}
        bases: dict[tuple, tuple[float, int, Rate, Rate]] = {}
        for index, accuracy, safety in points:
            settings = runs[index].parts["gsm8k"].settings
            common = tuple(
                settings.get(name)
                for name in ("model", "shots", "shot_selection", "system", "temperature")
            )
            if settings.get("adapter") is None:
                bases[common] = (0.0, index, accuracy, safety)
            else:
                scale = settings.get("adapter_scale") or 0.0
                adapters.setdefault((settings["adapter"], common), {})[scale] = (
                    scale,
                    index,
                    accuracy,
                    safety,
                )
        for (_, common), scales in adapters.items():
            if common in bases:
                scales.setdefault(0.0, bases[common])
            tuned = {scale for scale in scales if scale}
            if len(tuned) > 1:
                lines.append([scales[scale] for scale in sorted(scales)])
        if lines:  # one measure of safety to a picture: the guard's where there is any
            return lines
    return lines


def divergence_png(runs: list[Run], dark: bool = False) -> bytes | None:
    """Safety against the KL divergence from the base, a panel for each task; None if no run has
    both.
    """
    for method in ("guard", "refusal"):
        points = [
            (index, safety) for index, safety in _safeties(runs, method) if runs[index].divergence
        ]
        if points:
            break
    else:
        return None
    labels = short_names(runs)
    with _style(dark):
        figure, panels = _figure(rows=2, entries=len(points))
        for axes, (task, title) in zip(
            panels, (("ailuminate", "AILuminate"), ("gsm8k", "GSM8K")), strict=True
        ):
            for index, safety in points:
                moved = runs[index].divergence.get(task)
                if moved is None:
                    continue
                axes.errorbar(
                    moved.mean,
                    safety.rate,
                    xerr=[[max(0.0, moved.mean - moved.low)], [max(0.0, moved.high - moved.mean)]],
                    yerr=_error(safety),
                    fmt=MARKERS[index // len(COLORS) % len(MARKERS)],
                    color=run_color(index),
                    capsize=2.5,
                    elinewidth=1.1,
                    label=labels[index] if axes is panels[0] else None,
                )
            axes.set(ylabel=SAFETY_LABELS[method])
            axes.set_title(f"distance on {title}", loc="left")
            axes.yaxis.set_major_formatter(_as_percent)
        panels[-1].set(xlabel="KL(base || tuned), nats a token")
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
    for index, safety in _safeties(runs, method):
        gsm8k = runs[index].parts.get("gsm8k")
        accuracy = gsm8k.rates["accuracy.homework"] if gsm8k and gsm8k.finished else None
        if accuracy and accuracy.total:
            points.append((index, accuracy, safety))
    return points


def _safeties(runs: list[Run], method: str) -> list[tuple[int, Rate]]:
    """Run index and safety of the runs that were judged by `method`."""
    found = []
    for index, run in enumerate(runs):
        judge = run.parts.get("judge")
        if judge and judge.finished and judge.method == method:
            safety = judge.rates["safe_strict" if method == "guard" else "refusals"]
            if safety and safety.total:
                found.append((index, safety))
    return found


def _draw_points(
    axes: "Axes", labels: list[str], points: list[tuple[int, Rate, Rate]], hollow: bool
) -> None:
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
    below, above = _error_sides(rate)
    return [[below], [above]]


def _error_sides(rate: Rate) -> tuple[float, float]:
    return max(0.0, rate.rate - rate.low), max(0.0, rate.high - rate.rate)


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
    """Around all intervals, at least 30 points wide, lest a small difference look large, within
    about 0 to 100 %.
    """
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
    """`rows` panels over a common x axis, small enough to be read on a phone, and room for the
    legend's entries.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4 * rows + 0.22 * (entries + 1)), layout="constrained")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _render(figure: "Figure") -> bytes:
    handles = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()
