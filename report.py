"""Compare runs: python report.py runs/base runs/tuned

Prints what the runs measured as tables and writes report.md, report.html (one self-contained page
with sample answers side by side) and, where matplotlib is installed, the plots as PNG files. The
first run is the one that the others' answers are compared with. A run that is still being written
is marked as running.

--wrong N and --flips print answers instead: those that are wrong, and those that changed.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from common import cli
from common.command_line import parse_settings
from common.errors import UserError
from common.options import Scope, option, positive_int
from common.version import describe_version
from reporting import plot_style, plots
from reporting.cautions import find_cautions
from reporting.comparison import Comparisons, compare_runs
from reporting.conclusion import conclude
from reporting.html import PageContent, render_page
from reporting.listings import check_filter, list_flips, list_wrong, parse_filter
from reporting.load_runs import Run, load_runs, short_names
from reporting.plain_text import one_line
from reporting.plots import Picture
from reporting.report_tables import all_tables
from reporting.tables import Table, markdown_text, to_csv, to_json, to_latex, to_markdown, to_text

FORMATS = ("text", "csv", "latex", "json")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of report.py; none of them is recorded."""

    runs: tuple[Path, ...] = option(
        (),
        "run folder, as train.py and the others write it",
        parse=Path,
        metavar="RUN",
        nargs="+",
        positional=True,
        scope=Scope.CALL,
    )
    output: Path | None = option(
        None,
        "folder for the report (report/ in the first run)",
        parse=Path,
        metavar="DIR",
        scope=Scope.CALL,
    )
    markdown: Path | None = option(
        None,
        "where the Markdown goes (DIR/report.md)",
        parse=Path,
        metavar="FILE",
        scope=Scope.CALL,
    )
    format: str = option(
        "text",
        "how the tables are printed: text, csv, latex or json (%(default)s)",
        choices=FORMATS,
        metavar="FORMAT",
        scope=Scope.CALL,
    )
    wrong: int | None = option(
        None,
        "print the first N wrong answers of each run to each task, and no report",
        parse=positive_int,
        metavar="N",
        scope=Scope.CALL,
    )
    flips: bool = option(
        False,
        "print every answer that flipped between the first run and another, and no report",
        flag=True,
        scope=Scope.CALL,
    )
    only: tuple[str, ...] = option(
        (),
        "of --wrong and --flips those answers alone, as in hazard=S1 or task=gsm8k; may be "
        "repeated",
        metavar="FIELD=VALUE",
        repeated=True,
        scope=Scope.CALL,
    )

    dry_run: bool = option(
        False,
        "say what would be read and where the report would go, and write nothing",
        flag=True,
        scope=Scope.CALL,
    )

    def __post_init__(self) -> None:
        if self.only and self.wrong is None and not self.flips:
            raise UserError("--only says which answers --wrong or --flips prints; give one of them")


def parse_arguments(argv: Sequence[str] | None) -> ReportSettings:
    return parse_settings(ReportSettings, __doc__, argv)


def report(settings: ReportSettings) -> None:
    """Print and write what was asked for. Raises UserError for runs that cannot be read."""
    runs = load_runs(settings.runs)
    if settings.dry_run:
        print(describe_inputs(runs, settings))
        return
    if settings.wrong is not None or settings.flips:
        print(list_answers(runs, settings))
        return
    write_report(runs, settings)


def describe_inputs(runs: list[Run], settings: ReportSettings) -> str:
    """The parts of each run that there are, and what would be written, in lines."""
    lines = []
    for run in runs:
        lines.append(f"{run.folder}:")
        for part in run.parts():
            done = f"{part.done:,} {'steps' if part is run.training else 'records'}"
            lines.append(f"  {part.name}: {done}, {'finished' if part.finished else part.progress}")
    if settings.wrong is None and not settings.flips:
        output = settings.output or settings.runs[0] / "report"
        lines.append(f"would write {settings.markdown or output / 'report.md'}, report.html and")
        lines[-1] += f" the plots to {output}"
    return "\n".join([*lines, "--dry-run: nothing was written"])


def list_answers(runs: list[Run], settings: ReportSettings) -> str:
    """The answers that --wrong and --flips ask for, as text."""
    only = dict(map(parse_filter, settings.only))
    check_filter(runs, only)
    texts = []
    if settings.wrong is not None:
        texts.append(list_wrong(runs, settings.wrong, only))
    if settings.flips:
        texts.append(list_flips(runs, only))
    return "\n\n".join(texts)


def write_report(runs: list[Run], settings: ReportSettings) -> None:
    """Write the page, the Markdown and the plots, then print the tables."""
    comparisons = compare_runs(runs)
    tables = all_tables(runs, comparisons)
    cautions, conclusions = find_cautions(runs), conclude(runs, comparisons)
    conclusion = list(map(str, conclusions))
    output = settings.output or settings.runs[0] / "report"
    made = f"{datetime.now():%Y-%m-%d %H:%M}, {describe_version()}"
    pictures = draw(runs, comparisons, output)
    markdown = markdown_report(tables, conclusion, cautions, made)
    write(settings.markdown or output / "report.md", markdown.encode())
    page = output / "report.html"
    content = PageContent(runs, comparisons, tables, pictures, conclusions, cautions, made)
    write(page, render_page(content).encode())

    # Only now that everything is written: whoever reads the output may stop in the middle (`|
    # head`).
    print_tables(runs, tables, settings.format)
    about = sys.stdout if settings.format == "text" else sys.stderr
    print_notes(conclusion, cautions, f"the report: {page.resolve()}", about)


def draw(runs: list[Run], comparisons: Comparisons, output: Path) -> list[Picture]:
    """Write the plots that these runs have data for; remove the others that an earlier report
    left.
    """
    pictures: list[Picture] = []
    if plot_style.is_available():
        pictures = plots.draw_pictures(runs, comparisons.pairs)
    drawn = {picture.file_name: picture for picture in pictures}
    for name in plots.FILE_NAMES if plot_style.is_available() else ():
        if name in drawn:
            write(output / name, drawn[name].light)
        else:
            (output / name).unlink(missing_ok=True)
    return pictures


def markdown_report(
    tables: Sequence[Table], conclusion: Sequence[str], cautions: Sequence[str], made: str
) -> str:
    """The report without its pictures and answers."""
    sections = ["# Unforget report", made]
    for title, sentences in (("Conclusion", conclusion), ("Note", cautions)):
        if sentences:
            sections += [f"## {title}", "\n".join(f"- {markdown_text(text)}" for text in sentences)]
    return "\n\n".join([*sections, *map(to_markdown, tables)]) + "\n"


def print_tables(runs: Sequence[Run], tables: Sequence[Table], format: str) -> None:
    """The tables on standard output in one of FORMATS."""
    if format == "text":
        names = short_names(runs)
        print("\n\n".join(to_text(table, names) for table in tables))
    else:
        writers = {"csv": to_csv, "latex": to_latex, "json": to_json}
        print(writers[format](tables), end="")


def print_notes(
    conclusion: Sequence[str], cautions: Sequence[str], last_line: str, file: TextIO
) -> None:
    """Print the notes beside the tables, after them, since a terminal shows its end."""
    for title, sentences in (("Conclusion", conclusion), ("Note", cautions)):
        if sentences:
            lines = [f"- {one_line(text)}" for text in sentences]
            print("\n".join(["", title, *lines]), file=file)
    print(file=file)
    if not plot_style.is_available():
        print("no plots: matplotlib is not installed (pip install -e .[plots])", file=file)
    print(one_line(last_line), file=file)


def write(path: Path, content: bytes) -> None:
    """Replace `path` by a whole file. UserError where that cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another folder with --output"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_script(report, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
