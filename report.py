"""Compare runs: python report.py runs/base runs/tuned

Prints what the runs measured as tables and writes report.md, report.html (one self-contained page
with sample answers side by side) and, where matplotlib is installed, the plots as PNG files. The
first run is the one that the others' answers are compared with. A run that is still being written
is marked as running.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import argparse
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from common import cli
from common.errors import UserError
from reporting import plots
from reporting.cautions import find_cautions
from reporting.html import Picture, render_page
from reporting.load_runs import Run, load_runs, short_names
from reporting.paired_tables import paired_tables
from reporting.reproduction_table import row_tables
from reporting.tables import build_tables, to_markdown, to_text

LOSS_CAPTION = "Training loss: each step (faint), smoothed, and on held-out examples (points)."
SCATTER_CAPTION = (
    "GSM8K accuracy against safety, with 95 % intervals. Grey: the course baselines. Only what Qwen3Guard judged is a "
    "safe rate."
)
FRONTIER_CAPTION = (
    "What is gained and what is given up as the adapter's scale goes from 0, the base model, to 1, as trained; each "
    "line is one adapter, with 95 % intervals."
)
DIVERGENCE_CAPTION = "Safety against the distance from the base model on AILuminate prompts and GSM8K, 95 % intervals."


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folder, as train.py and the others write it",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the report (report/ in the first run)",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="where the Markdown goes (DIR/report.md)"
    )
    return parser.parse_args(argv)


def report(arguments: argparse.Namespace) -> None:
    runs = load_runs(arguments.runs)
    tables, cautions = build_tables(runs), find_cautions(runs)
    tables += [*paired_tables(runs), *row_tables(runs)]
    output: Path = arguments.output or arguments.runs[0] / "report"
    made = f"{datetime.now():%Y-%m-%d %H:%M}"
    pictures = draw(runs, output) if plots.is_available() else []
    notes = ["", "## Note", "", *(f"- {caution}" for caution in cautions)] if cautions else []
    sections = ["# Unforget report", "", made, "", "\n\n".join(map(to_markdown, tables)), *notes]
    write(arguments.markdown or output / "report.md", "\n".join(sections).encode() + b"\n")
    page = output / "report.html"
    write(page, render_page(runs, pictures, cautions, made).encode())

    # Only now that everything is written: whoever reads the output may stop in the middle (`|
    # head`).
    names = short_names(runs)
    print("\n\n".join(to_text(table, names) for table in tables))
    if cautions:
        print("\nNote\n" + "\n".join(f"- {caution}" for caution in cautions))
    print()
    if not plots.is_available():
        print("no plots: matplotlib is not installed (pip install -e .[plots])")
    print(f"the report: {page.resolve()}")


def draw(runs: list[Run], output: Path) -> list[Picture]:
    """Write the plots that these runs have data for and remove those of an earlier report that they
    have not.
    """
    plans: list[tuple[str, str, Callable]] = [
        ("loss.png", LOSS_CAPTION, plots.loss_png),
        ("scatter.png", SCATTER_CAPTION, plots.scatter_png),
        ("frontier.png", FRONTIER_CAPTION, plots.frontier_png),
        ("divergence.png", DIVERGENCE_CAPTION, plots.divergence_png),
    ]
    pictures = []
    for name, caption, plot in plans:
        light = plot(runs)
        if light is None:
            (output / name).unlink(missing_ok=True)
            continue
        write(output / name, light)
        pictures.append(Picture(light, plot(runs, dark=True), caption))
    return pictures


def write(path: Path, content: bytes) -> None:
    """Raises UserError where `path` cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another folder with --output"
        ) from None


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(report, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
