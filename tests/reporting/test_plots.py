"""The report's pictures: what they draw, and that every run can be told from the others."""

import itertools

import numpy as np
import pytest

from reporting import change_plots, plots, tradeoff_plots
from reporting.comparison import compare_runs
from reporting.load_runs import load_runs
from reporting.plot_style import COLORS, MARKERS, PAPERS, is_available, run_color, run_marker
from reporting.scores import headline_scores
from tests.reporting.run_folders import (
    change_json,
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_json,
    write_training,
    write_xstest,
)

pytestmark = pytest.mark.skipif(
    not is_available(), reason="matplotlib (the extra plots) is not installed"
)
PNG = b"\x89PNG\r\n\x1a\n"
# Machado, Oliveira and Fernandes 2009 (IEEE TVCG 15:1291-1298), severity 1, on linear RGB.
READERS = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(color: str) -> np.ndarray:
    """The color's linear RGB values, from 0 to 1."""
    values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, in which a distance of 2 or so can just be seen."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    roots = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = roots
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("reader", READERS)
def test_colors_stay_apart_for_colour_blind_readers(reader):
    seen = [lab(np.array(READERS[reader]) @ linear(color)) for color in COLORS]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 25


@pytest.mark.parametrize("dark", [False, True])
def test_colors_stand_out_on_the_paper(dark):
    def luminance(color: str) -> float:
        return float(linear(color) @ [0.2126, 0.7152, 0.0722])

    paper = luminance(PAPERS[dark])
    for color in COLORS:
        one, other = sorted((luminance(color), paper))
        assert (other + 0.05) / (one + 0.05) > 2.2


def test_markers_differ_from_the_first_run_on():
    assert len(set(MARKERS)) == len(MARKERS) > len(COLORS)
    looks = {(run_color(index), run_marker(index)) for index in range(24)}
    assert len(looks) == 24


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn, in the order of drawing."""
    drawn = []
    for module in (plots, tradeoff_plots, change_plots):
        render = module.render
        monkeypatch.setattr(
            module, "render", lambda figure, render=render: drawn.append(figure) or render(figure)
        )
    return drawn


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


@pytest.mark.slow
def test_each_measure_of_safety_has_its_panel(tmp_path, harmless, figures):
    for name, judge in (("base", "qwen3guard"), ("phrases", "refusal-phrases")):
        write_gsm8k(tmp_path / name, "rrwwwwww")
        write_ailuminate(tmp_path / name, "sssrru", judges=(judge,))
    write_harmless(tmp_path / "base", "rss")
    runs = load_runs([tmp_path / "base", tmp_path / "phrases"])
    assert plots.scatter_png(runs).startswith(PNG)
    guard, phrases, harm = figures[0].axes
    assert guard.get_ylabel() == "AILuminate safe rate (strict), Qwen3Guard"
    assert phrases.get_ylabel() == "AILuminate refusals, refusal phrases"
    assert harm.get_ylabel() == "Harmless over-refusal, lower is better"
    assert harm.get_xlabel() == "GSM8K accuracy"
    assert texts_of(guard) == ["base", "baseline 1", "baseline 2", "baseline 3"]
    assert texts_of(phrases) == ["phrases"]  # the baselines are guard-judged
    assert "homework" in tradeoff_plots.scatter_caption(runs)
    assert "baseline" not in tradeoff_plots.scatter_caption(runs[1:])


def test_skill_stands_over_what_is_told_apart_beside_the_untouched_model_at_its_best(
    tmp_path, figures
):
    for name, outcomes in (("base", "rwww"), ("plain", "uuww"), ("tuned", "rrrw")):
        write_gsm8k(tmp_path / name, outcomes, adapter="x" if name == "tuned" else None)
        write_xstest(tmp_path / name, safe="rsss", unsafe="rrrs")
    runs = load_runs([tmp_path / name for name in ("base", "plain", "tuned")])
    plots.scatter_png(runs)
    over_refusal, apart = figures[0].axes
    assert over_refusal.get_ylabel() == "XSTest over-refusal, lower is better"
    assert apart.get_ylabel() == "XSTest, unsafe less harmless refused, points"
    dashed = [line for line in apart.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[0.5, 0.5]]
    points = [line for line in apart.lines if line.get_marker() in ("o", "s", "D")]
    assert {float(line.get_ydata()[0]) for line in points} == {0.5}
    assert "Dashed: the untouched model" in tradeoff_plots.scatter_caption(runs)
    assert "Dashed" not in tradeoff_plots.scatter_caption([runs[0], runs[2]])


def test_a_run_that_refuses_the_harmless_more_than_the_unsafe_is_in_the_picture(tmp_path, figures):
    write_gsm8k(tmp_path, "rrww")
    write_xstest(tmp_path, safe="r" * 9 + "s", unsafe="r" + "s" * 9)
    plots.scatter_png(load_runs([tmp_path]))
    lowest, highest = figures[0].axes[1].get_ylim()
    assert lowest < -0.95 and -0.8 < highest < 0
    figures[0].canvas.draw()
    shown = [label.get_text() for label in figures[0].axes[1].get_yticklabels()]
    assert "-80" in shown


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 12])
def test_no_label_covers_another(tmp_path, figures, count):
    """Few stand beside their points, many in a column with lines to them."""
    from matplotlib.text import Text

    for number in range(count):
        run = tmp_path / f"run-number-{number}"
        write_gsm8k(run, "r" * (4 + number % 3) + "w" * 96)
        write_ailuminate(run, "s" * (40 + number // 3) + "u" * 60)
    plots.scatter_png(load_runs(sorted(tmp_path.iterdir())))
    (axes,) = figures[0].axes
    boxes = [Text.get_window_extent(text) for text in axes.texts if text.get_text()]
    assert len(boxes) == count  # the baselines are far from these runs, so they are left out
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_points_at_one_place_are_all_seen_and_share_a_label(tmp_path, figures):
    for name in ("a", "b", "c"):
        write_gsm8k(tmp_path / name, "rw")
        write_ailuminate(tmp_path / name, "su")
    plots.scatter_png(load_runs([tmp_path / name for name in "abc"]))
    (axes,) = figures[0].axes
    assert "a, b, c" in texts_of(axes)
    sizes = [line.get_markersize() for line in axes.lines if line.get_marker() in "os^vD"]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$x_{", "_hidden", "a$b$\\frac 50% <b>"])
def test_any_name_can_be_drawn(tmp_path, figures, name):
    """A `$` once ended in mathtext's error, a leading underscore hid the run."""
    write_training(tmp_path / name, steps=3)
    write_gsm8k(tmp_path / name, "rw")
    write_ailuminate(tmp_path / name, "su")
    runs = load_runs([tmp_path / name])
    assert len(plots.draw_pictures(runs)) == 2
    assert all(name in texts_of(figure.axes[0]) for figure in figures)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_name_that_would_steer_the_terminal_is_written_out(tmp_path, figures):
    """matplotlib warns of characters that its font lacks, and prints them as they are."""
    run = tmp_path / "a\x1b[31mb\u65e5"
    write_gsm8k(run, "rw")
    write_ailuminate(run, "su")
    assert plots.draw_pictures(load_runs([run]))
    assert all("a\\x1b[31mb\u65e5" in texts_of(figure.axes[0]) for figure in figures)


def test_steps_are_whole_numbers(tmp_path, figures):
    write_training(tmp_path, steps=3)
    plots.loss_png(load_runs([tmp_path]))
    assert all(tick == round(tick) for tick in figures[0].axes[0].get_xticks())


def test_changes_are_those_of_the_paired_table(tmp_path, figures):
    for name, right, labels in (("base", "rwww", "ssssuu"), ("tuned", "rrww", "suuuuu")):
        write_gsm8k(tmp_path / name, right)
        write_ailuminate(tmp_path / name, labels)
    runs = load_runs([tmp_path / "base", tmp_path / "tuned"])
    pairs = compare_runs(runs).pairs
    assert change_plots.changes_png(runs, pairs).startswith(PNG)
    (axes,) = figures[0].axes
    (of_safety,) = [pair for pair in pairs if pair.score.is_safety]
    (bar,) = axes.containers
    marks, _, (interval,) = bar
    assert list(marks.get_xdata()) == pytest.approx([-50.0])
    ends = [end[0] for end in interval.get_segments()[0]]
    assert ends == pytest.approx([100 * end for end in of_safety.interval])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["tuned\nGSM8K 50.0 %"]
    assert change_plots.changes_png(runs[:1], []) is None


def write_scaled(run, scale: float, right: int, safe: int, adapter="3fa9c21b04d7"):
    about = {"adapter": adapter, "adapter_scale": scale}
    write_gsm8k(run, "r" * right + "w" * (8 - right), **about)
    return write_ailuminate(run, "s" * safe + "u" * (6 - safe), **about)


@pytest.mark.slow
def test_the_frontier_follows_the_scale_of_one_adapter(tmp_path, figures):
    write_gsm8k(tmp_path / "base", "rrwwwwww")
    write_ailuminate(tmp_path / "base", "sssssu")
    folders = [tmp_path / "base"]
    for scale, right, safe in ((1.0, 7, 2), (0.5, 5, 4), (0.25, 3, 5)):
        folders.append(write_scaled(tmp_path / f"scale-{scale}", scale, right, safe))
    folders.append(write_scaled(tmp_path / "other", 1.0, 4, 3, adapter="another"))
    runs = load_runs(folders)
    skill, safety = headline_scores(runs)
    (line,) = tradeoff_plots.scale_lines(runs, skill, safety)
    found = [(scale, p.run, p.skill.count, p.safety.count) for scale, p in line]
    assert found == [(0.0, 0, 2, 5), (0.25, 3, 3, 5), (0.5, 2, 5, 4), (1.0, 1, 7, 2)]
    assert tradeoff_plots.scale_lines([runs[0], runs[1], runs[4]], skill, safety) == []
    assert plots.frontier_png(runs).startswith(PNG)
    (axes,) = figures[0].axes
    assert set(texts_of(axes)) == {"0", "0.25", "0.5", "scale-1.0, 1"}
    arrows = [text for text in axes.texts if not text.get_text() and text.arrow_patch]
    assert len(arrows) >= 3  # one from each scale to the next, beside leaders of labels
    assert plots.frontier_png(runs[:2]) is None


def write_distance(run, mean: float) -> None:
    settings = {"gsm8k": {"model": "org/Tiny-1B"}}
    about = {"mean": mean, "low": 0.9 * mean, "high": 1.1 * mean, "answers": 6}
    write_json(run / "kl.summary.json", {"settings": settings, "gsm8k": about})


@pytest.mark.slow
def test_distances_of_very_different_size_share_a_logarithmic_axis(tmp_path, figures):
    for name, mean in (("base", 0.0), ("near", 0.01), ("far", 0.1)):
        write_gsm8k(tmp_path / name, "rw")
        write_ailuminate(tmp_path / name, "su")
        write_distance(tmp_path / name, mean)
    folders = [tmp_path / name for name in ("base", "near", "far")]
    assert plots.divergence_png(load_runs(folders)).startswith(PNG)
    assert figures[0].axes[0].get_xscale() == "linear"
    write_distance(tmp_path / "far", 0.9)
    plots.divergence_png(load_runs(folders))
    (axes,) = figures[1].axes
    assert axes.get_xscale() == "symlog"
    assert axes.get_xlabel() == "KL(base || tuned) on GSM8K, nats a token"


def test_what_has_nothing_to_draw_is_not_drawn(tmp_path):
    write_gsm8k(tmp_path, "rw")
    assert plots.draw_pictures(load_runs([tmp_path])) == []
    change_json(tmp_path / "gsm8k.summary.json", finished=False)
    write_ailuminate(tmp_path, "su")
    assert plots.draw_pictures(load_runs([tmp_path])) == []


@pytest.mark.slow
def test_pictures_are_small(tmp_path):
    write_training(tmp_path, steps=2000)
    (picture,) = plots.draw_pictures(load_runs([tmp_path]))
    assert len(picture.light) < 60_000 and len(picture.dark) < 60_000


def test_smoothing_keeps_a_line_and_its_length():
    assert plots.smooth([1.0, 2.0, 3.0, 4.0]) == [1.5, 2.0, 3.0, 3.5]
    assert plots.smooth([5.0]) == [5.0]
    assert plots.smooth([5.0] * 100) == pytest.approx([5.0] * 100)
