"""A report's table and the formats it is written in: text, Markdown, CSV, LaTeX, JSON."""

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from reporting.plain_text import one_line
from reporting.rates import Rate

EMPTY = "-"
CELL_WIDTH = 80  # of a terminal's table
FIGURE = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?")
INTERVAL = re.compile(r"([-+]?[0-9.]+) \[([-+]?[0-9.]+), ([-+]?[0-9.]+)\]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """Cells as text, a run's name first in each row.

    `runs` says whose row each is, by the run's index in the report. A column is right-aligned where
    all its cells are numbers, '-' or progress.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    runs: tuple[int, ...]
    note: str = ""  # a sentence or more a line
    section: str = "In detail"  # the heading under which the page shows it

    @property
    def paragraphs(self) -> list[str]:
        """The lines of the note."""
        return self.note.split("\n") if self.note else []

    def is_numeric(self, column: int) -> bool:
        return all(
            row[column][:1].isdigit() or row[column].startswith(("-", "+", "<", "running"))
            for row in self.rows
        )


def make_table(
    title: str,
    header: Sequence[str],
    rows: Iterable[tuple[int, Sequence[str]]],
    note: str = "",
    section: str = "In detail",
) -> Table | None:
    """The table of `rows`, each with its run's index, without those that hold nothing.

    Columns that hold nothing are left out as well. None if no row is left.
    """
    kept = [(run, row) for run, row in rows if any(cell != EMPTY for cell in row[1:])]
    if not kept:
        return None
    columns = [0]
    for column in range(1, len(header)):
        if any(row[column] != EMPTY for _, row in kept):
            columns.append(column)
    return Table(
        title,
        tuple(header[column] for column in columns),
        [tuple(row[column] for column in columns) for _, row in kept],
        tuple(run for run, _ in kept),
        note,
        section,
    )


def number(value: float | None, spec: str) -> str:
    return EMPTY if value is None else format(value, spec)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return EMPTY
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def percent(rate: Rate | None) -> str:
    """`43.2`."""
    return EMPTY if rate is None else f"{100 * rate.rate:.1f}"


def percent_interval(rate: Rate | None) -> str:
    """`43.2 [40.5, 45.9]`."""
    if rate is None:
        return EMPTY
    return f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def to_text(table: Table, names: Sequence[str]) -> str:
    """The table for a terminal. `names`: what to call the runs, short enough for one.

    Cells that are longer than CELL_WIDTH go on in lines below.
    """
    lines = [tuple(map(one_line, table.header))]
    for run, row in zip(table.runs, table.rows, strict=True):
        lines += _wrapped([one_line(text) for text in (names[run], *row[1:])])
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]

    def align(line: tuple[str, ...]) -> str:
        cells = []
        for column, (text, width) in enumerate(zip(line, widths, strict=True)):
            cells.append(text.rjust(width) if table.is_numeric(column) else text.ljust(width))
        return "  ".join(cells).rstrip()

    header, *rows = map(align, lines)
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    note = [line for text in table.paragraphs for line in textwrap.wrap(one_line(text), 100)]
    return "\n".join([one_line(table.title), header, rule, *rows, *note])


def _wrapped(cells: Sequence[str]) -> list[tuple[str, ...]]:
    """One row of cells as one line, or as several where a cell is too long for one."""
    columns = [textwrap.wrap(cell, CELL_WIDTH) or [""] for cell in cells]
    return list(zip_longest(*columns, fillvalue=""))


def to_markdown(table: Table) -> str:
    """The table under a heading, its note below it."""
    rule = ["---:" if table.is_numeric(column) else ":---" for column in range(len(table.header))]
    lines = []
    for line in (table.header, *table.rows):
        lines.append(f"| {' | '.join(map(markdown_text, line))} |")
    lines.insert(1, f"| {' | '.join(rule)} |")
    note = [line for text in table.paragraphs for line in ("", markdown_text(text))]
    return "\n".join([f"## {markdown_text(table.title)}", "", *lines, *note])


def markdown_text(text: str) -> str:
    """Text in Markdown as it is: it starts no HTML, no table cell, no link and no code."""
    shown = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|`]|(?<=\])[(\[])", r"\\\1", shown)


def split_intervals(table: Table) -> Table:
    """The same for machines: a column of shares with intervals becomes three, named so."""
    header: list[str] = []
    columns: list[list[str]] = []
    for place, title in enumerate(table.header):
        is_repeated = table.header.count(title) > 1
        name = f"{table.header[place - 1]}: {title}" if is_repeated else title
        cells = [row[place] for row in table.rows]
        found = [INTERVAL.fullmatch(cell) for cell in cells]
        if not any(found):
            header.append(name)
            columns.append(cells)
            continue
        header += [name, f"{name}: low", f"{name}: high"]
        for part in range(1, 4):
            texts = []
            for cell, match in zip(cells, found, strict=True):
                texts.append(match[part] if match else cell if part == 1 else EMPTY)
            columns.append(texts)
    rows = list(zip(*columns, strict=True))
    return replace(table, header=tuple(header), rows=rows)


def to_csv(tables: Sequence[Table]) -> str:
    """The tables one after the other, each under its title and followed by an empty line.

    Intervals have columns of their own. A cell that a spreadsheet would take for a formula is
    preceded by an apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for table in map(split_intervals, tables):
        writer.writerow([one_line(table.title)])
        for line in (table.header, *table.rows):
            writer.writerow([_csv_cell(one_line(cell)) for cell in line])
        writer.writerow([])
    return file.getvalue()


def _csv_cell(text: str) -> str:
    is_formula = text[:1] in ("=", "@") or (text[:1] in ("+", "-") and not _is_figure(text))
    return f"'{text}" if is_formula else text


def _is_figure(text: str) -> bool:
    return text == EMPTY or FIGURE.fullmatch(text) is not None


def to_latex(tables: Sequence[Table]) -> str:
    """The tables as `table` environments for the package booktabs."""
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    columns = "".join("r" if table.is_numeric(i) else "l" for i in range(len(table.header)))
    lines = [rf"\begin{{table}}\caption{{{latex_text(table.title)}}}\centering"]
    lines.append(rf"\begin{{tabular}}{{{columns}}}\toprule")
    header, *rows = (
        " & ".join(map(latex_text, line)) + r" \\" for line in (table.header, *table.rows)
    )
    lines += [header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    for text in table.paragraphs:
        lines.append(rf"\par\smallskip\footnotesize {latex_text(text)}")
    return "\n".join([*lines, r"\end{table}", ""])


def latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def to_json(tables: Sequence[Table]) -> str:
    """A list of objects with `title`, `columns`, `rows` and `note`.

    A row is a list of numbers, text, and null where there is nothing; intervals have columns of
    their own.
    """
    content = []
    for table in map(split_intervals, tables):
        numeric = [column > 0 and table.is_numeric(column) for column in range(len(table.header))]
        rows = []
        for row in table.rows:
            rows.append([_json_cell(*item) for item in zip(row, numeric, strict=True)])
        about = {"title": table.title, "columns": table.header}
        content.append({**about, "rows": rows, "note": table.note})
    return json.dumps(content, indent=1) + "\n"


def _json_cell(text: str, is_number: bool) -> str | float | None:
    if text == EMPTY:
        return None
    if not is_number or not FIGURE.fullmatch(text):
        return text
    figure = text.replace(",", "")
    return float(figure) if "." in figure else int(figure)
