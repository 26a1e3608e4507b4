"""Style of the plots: colours, markers, light and dark paper, labels beside what they name.

matplotlib (extra `plots`) is imported only when drawing.
"""

import importlib.util
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Chosen by search so that they stay apart for readers without red, green or blue cones, and stand
# out on both papers; tests/reporting/test_plots.py simulates these readers.
COLORS = (
    "#009dff", "#ff8914", "#27624e", "#7600eb", "#c41400", "#9db176", "#9d009d", "#c489b1",
)  # fmt: skip
MARKERS = "osD^vPX*<>hd"  # differ from the first run on; with the colours they repeat after 24 runs
LINES = ("-", "--", ":", "-.")
GREY = "#808080"
PAPERS = {False: "#ffffff", True: "#16191d"}  # by whether the scheme is dark
INKS = {False: "#33373d", True: "#d6d9de"}
LABEL_WIDTH = 22  # characters of a run's name in a plot
WIDTH = 6.4  # inches: one column of a page, and legible on a phone
PANEL_HEIGHT = 3.7
DPI = 150
COLORS_IN_FILE = 128  # of the PNG's palette: a third of the bytes, and nothing to see

LABEL_DISTANCES = (7, 14, 24, 36, 52, 72)  # points from the centre of what is labelled
DIRECTIONS = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1))
MOST_NEAR = 5  # labels near their points; more would cover each other
LEADER_FROM = 24  # points: from here on a line leads from the label to its point


def run_color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def run_marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def style(dark: bool) -> Iterator[None]:
    """Settings within which a figure is made; names are shown as they are, never as formulas.

    Nothing is said of characters that the font lacks: they are boxes in the figure.
    """
    import matplotlib

    ink, paper = INKS[dark], PAPERS[dark]
    settings: Any = {
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
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def make_figure(panels: int, share_x: bool = True) -> "tuple[Figure, list[Axes]]":
    """`panels` axes, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=share_x, squeeze=False)[:, 0]
    return figure, list(axes)


def render(figure: "Figure") -> bytes:
    """The figure as a PNG file with a palette."""
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    image = Image.open(raw).convert("RGB")
    file = io.BytesIO()
    image.quantize(COLORS_IN_FILE).save(file, format="png", optimize=True)
    return file.getvalue()


@dataclass(frozen=True)
class Label:
    """A text to stand beside a place in an axes' data coordinates.

    `spans` are the ends of the error bars through that place, (low, high) across and up, which no
    label should cover.
    """

    text: str
    x: float
    y: float
    color: str  # of the line to it; the text is ink, which is legible on both papers
    spans: tuple[tuple[float, float], tuple[float, float]] | None = None


def merge_labels(labels: Sequence[Label]) -> list[Label]:
    """One label for all that stand at the same place."""
    places: dict[tuple[float, float], Label] = {}
    for label in labels:
        first = places.setdefault((label.x, label.y), label)
        if first is not label:
            merged = replace(first, text=f"{first.text}, {label.text}")
            places[label.x, label.y] = merged
    return list(places.values())


def place_labels(
    axes: "Axes",
    labels: Sequence[Label],
    beside: bool = False,
    avoid: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each label near its place, where it covers no point and no other label if possible.

    More than MOST_NEAR of them, or all if they are to stand `beside` the axes, make a column there.
    `avoid` are further places, such as those along a line, that labels should not cover.
    The figure's layout is fixed by it: call it for all axes only when they are drawn.
    """
    merged = merge_labels(labels)
    if beside or len(merged) > MOST_NEAR:
        _place_in_column(axes, labels)
        return
    from matplotlib.figure import Figure

    figure = axes.figure  # get_figure(root=True) would need matplotlib 3.10
    assert isinstance(figure, Figure), "no subfigures here"
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken = [box for label in merged for box in _boxes_of(axes, label, figure.dpi / 72)]
    for place in avoid:
        taken.append((_box_around(axes, place, figure.dpi / 72), 1.0))
    for label in merged:
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize="small",
            annotation_clip=False,
        )
        _move_clear(text, axes, taken, label.color)


def _place_in_column(axes: "Axes", labels: Sequence[Label]) -> None:
    """Write the labels to the right of the axes, in the order of their places, with lines to
    them.
    """
    line_height = min(0.055, 1 / len(labels))  # as a share of the axes' height
    ordered = sorted(labels, key=lambda label: (label.y, label.x))
    lowest = axes.get_ylim()[0]
    height = axes.get_ylim()[1] - lowest
    wanted = [(label.y - lowest) / height for label in ordered]
    levels: list[float] = []
    for level in wanted:
        levels.append(max(level, levels[-1] + line_height) if levels else level)
    # All were moved up alone: half of that back, as far as there is room at either end.
    excess = sum(levels) / len(levels) - sum(wanted) / len(wanted)
    shift = min(max(excess, levels[-1] - 1), levels[0])
    levels = [level - shift for level in levels]
    for label, level in zip(ordered, levels, strict=True):
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(1.04, level),
            textcoords="axes fraction",
            fontsize="small" if line_height > 0.05 else "x-small",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.color,
                "alpha": 0.6,
                "lw": 0.8,
                "relpos": (0, 0.5),
            },
        )


def _boxes_of(axes: "Axes", label: Label, point: float) -> "list[tuple[Bbox, float]]":
    """Boxes of what is drawn, in pixels, each with the penalty for covering it."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((label.x, label.y))
    bar = point
    boxes = [(_box_around(axes, (label.x, label.y), 5 * point), 3.0)]
    if label.spans:
        (left, right), (bottom, top) = label.spans
        (x0, y0), (x1, y1) = axes.transData.transform(((left, bottom), (right, top)))
        boxes.append((Bbox.from_extents(x0, y - bar, x1, y + bar), 1.0))
        boxes.append((Bbox.from_extents(x - bar, y0, x + bar, y1), 1.0))
    return boxes


def _box_around(axes: "Axes", place: tuple[float, float], reach: float) -> "Bbox":
    """A square around a place in data coordinates, `reach` pixels in every direction."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(place)
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)


def _move_clear(
    text: "Annotation", axes: "Axes", taken: "list[tuple[Bbox, float]]", color: str
) -> None:
    """Move a label to the nearest place where it is in nobody's way, and add its box to `taken`."""
    best: tuple[float, float, float, str, Any] | None = None
    for distance in LABEL_DISTANCES:
        for across, up in DIRECTIONS:
            length = (across**2 + up**2) ** 0.5
            x, y = distance * across / length, distance * up / length
            side = {1: "left", 0: "center", -1: "right"}[across]
            box = _try_place(text, x, y, side)
            cost = 0.02 * distance + _overlap(box, taken) + 3 * _outside(box, axes)
            if best is None or cost < best[0]:
                best = (cost, x, y, side, box)
    assert best is not None
    _, x, y, side, box = best
    _try_place(text, x, y, side)
    taken.append((box, 5.0))
    if (x**2 + y**2) ** 0.5 >= LEADER_FROM:
        axes.annotate(
            "",
            text.xy,
            xytext=(x, y),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.6, "lw": 0.8},
        )


def _try_place(text: "Annotation", x: float, y: float, side: str) -> "Bbox":
    text.set_position((x, y))
    text.set(horizontalalignment=side)
    text.set_verticalalignment("center")
    return text.get_window_extent()


def _overlap(box: "Bbox", taken: "Sequence[tuple[Bbox, float]]") -> float:
    """The penalty for a label here: the share of the box that covers each thing, times its
    penalty.
    """
    area = max(box.width * box.height, 1.0)
    covered = 0.0
    for other, weight in taken:
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        if width > 0 and height > 0:
            covered += weight * width * height
    return covered / area


def _outside(box: "Bbox", axes: "Axes") -> float:
    """The part of the box outside the axes, as a share of its size."""
    inner = axes.get_window_extent()
    across = max(0.0, inner.x0 - box.x0) + max(0.0, box.x1 - inner.x1)
    up = max(0.0, inner.y0 - box.y0) + max(0.0, box.y1 - inner.y1)
    return across / max(box.width, 1.0) + up / max(box.height, 1.0)
