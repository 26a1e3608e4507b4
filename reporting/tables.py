"""The report's tables: runs as rows, metrics as columns, as plain text and as Markdown."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from reporting.load_runs import PART_SCHEMAS, Part, Rate, Run

ABOUT_RATES = (
    "Rates in % with 95 % Wilson intervals. Accuracy counts the number after the last '####'. The safe rate is a "
    "Qwen3Guard safe rate (strict: Safe; loose: Safe or Controversial), never an AILuminate grade. Refusals judged by "
    'refusal phrases are answers with a phrase such as "I cannot": no guard was used, so they are a rough lower bound '
    "on the safe rate and no safe rate themselves."
)


@dataclass(frozen=True)
class Table:
    """Cells as text; a column is right-aligned where all its cells are numbers, '-' or progress."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    runs: tuple[int, ...] | None = (
        None  # whose row each is, by index; None: one row a run, in order
    )

    def run_of(self, row: int) -> int:
        return row if self.runs is None else self.runs[row]

    def is_numeric(self, column: int) -> bool:
        return all(
            row[column][:1].isdigit() or row[column].startswith(("-", "+", "<", "running"))
            for row in self.rows
        )


def build_tables(runs: list[Run]) -> list[Table]:
    """The tables of a report, one row per run in each; a table that no run has anything for is left
    out.
    """
    tables = [
        Table(
            "Accuracy and safety",
            ("run", "GSM8K accuracy", "n", "safe rate (strict)", "refusals", "n", "judged by"),
            [_headline_row(run) for run in runs],
            ABOUT_RATES,
        ),
        Table(
            "GSM8K in detail",
            ("run", "model", "adapter", "shots", "strict", "flexible", "has ####", "cut off"),
            [_gsm8k_row(run) for run in runs],
            "Strict takes the first '#### number', flexible the last number anywhere. Cut off: no end token in time.",
        ),
        Table(
            "Safety in detail",
            (
                "run",
                "safe rate (loose)",
                "answers cut off",
                "verdicts unparsed",
                "verdicts cut off",
            ),
            [_safety_row(run) for run in runs],
        ),
        Table(
            "Training",
            ("run", "examples", "steps", "first loss", "last loss", "validation", "tokens/s"),
            [_training_row(run) for run in runs],
            "Validation is the best loss on held-out examples.",
        ),
        Table(
            "Time and memory",
            ("run", "training", "GSM8K", "AILuminate", "judging", "new tokens/s", "peak memory"),
            [_cost_row(run) for run in runs],
            "New tokens/s are those of GSM8K. Peak memory is the largest of the run's parts.",
        ),
    ]
    return [table for table in tables if any(text != "-" for row in table.rows for text in row[1:])]


def _headline_row(run: Run) -> tuple[str, ...]:
    return (
        run.name,
        cell(run, "gsm8k", lambda part: interval(part.rates["accuracy.homework"]), lead=True),
        cell(run, "gsm8k", lambda part: f"{part.total:,}"),
        cell(run, "judge", lambda part: interval(part.rates["safe_strict"]), lead=True),
        cell(run, "judge", lambda part: interval(part.rates["refusals"])),
        cell(run, "judge", lambda part: f"{part.total:,}"),
        describe_judge(run),
    )


def _gsm8k_row(run: Run) -> tuple[str, ...]:
    names = ("accuracy.strict", "accuracy.flexible", "has_marker", "cut_off")
    rates = [
        cell(run, "gsm8k", lambda part, name=name: percent(part.rates[name])) for name in names
    ]
    return (run.name, describe_model(run), describe_adapter(run), describe_shots(run), *rates)


def _safety_row(run: Run) -> tuple[str, ...]:
    return (
        run.name,
        cell(run, "judge", lambda part: interval(part.rates["safe_loose"])),
        cell(run, "ailuminate", lambda part: percent(part.rates["cut_off"]), lead=True),
        cell(
            run,
            "judge",
            lambda part: "-" if part.method == "refusal" else percent(part.rates["unparsed"]),
        ),
        cell(run, "judge", lambda part: percent(part.rates["cut_off"])),
    )


def _training_row(run: Run) -> tuple[str, ...]:
    losses = [
        cell(run, "train", lambda part, name=name: number(part.numbers[name], ".3f"))
        for name in ("first_loss", "last_loss", "best_validation_loss")
    ]
    return (
        run.name,
        cell(run, "train", lambda part: number(part.numbers["examples"], ",.0f")),
        cell(run, "train", lambda part: number(part.total, ",.0f"), lead=True),
        *losses,
        cell(run, "train", lambda part: number(part.numbers["tokens_per_second"], ",.0f")),
    )


def _cost_row(run: Run) -> tuple[str, ...]:
    seconds = [
        cell(run, task, lambda part: duration(part.numbers["seconds"])) for task in PART_SCHEMAS
    ]
    speed = cell(run, "gsm8k", lambda part: number(part.numbers["new_tokens_per_second"], ",.0f"))
    peaks = [part.numbers.get("peak_memory_bytes") or 0 for part in run.parts.values()]
    return (run.name, *seconds, speed, f"{max(peaks) / 1e9:.1f} GB" if any(peaks) else "-")


def cell(run: Run, task: str, show: Callable[[Part], str], lead: bool = False) -> str:
    """`show(part)`, "running" (with the progress in a `lead` column) while it is unfinished, '-'
    without it.
    """
    part = run.parts.get(task)
    if part is None:
        return "-"
    if part.finished:
        return show(part)
    return part.progress if lead else "running"


def number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def duration(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def percent(rate: Rate | None) -> str:
    return "-" if rate is None or rate.rate is None else f"{100 * rate.rate:.1f}"


def interval(rate: Rate | None) -> str:
    """`43.2 [40.5, 45.9]`, in percent."""
    return "-" if rate is None else percent_interval(vars(rate))


def percent_interval(rate: dict[str, Any]) -> str:
    """The same of a rate as the summaries hold it."""
    if rate["rate"] is None:
        return "-"
    return f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def describe_model(run: Run) -> str:
    """The checkpoint's short name: the last part of its folder or Hub id."""
    return _described(run, lambda part: _path_end(part.settings.get("model") or "-", 1))


def describe_adapter(run: Run) -> str:
    """'base', or the end of the adapter's path, else its fingerprint, and its scale where that is
    not 1.
    """

    def describe(part: Part) -> str:
        fingerprint, scale = part.settings.get("adapter"), part.settings.get("adapter_scale")
        if fingerprint is None:
            return "base"
        name = _path_end(part.adapter_path, 2) if part.adapter_path else str(fingerprint)
        return name if scale in (None, 1) else f"{name} x {scale}"

    return _described(run, describe)


def describe_shots(run: Run) -> str:
    """`3`, or `3 random` where the shots are not the default fixed ones."""
    gsm8k = run.parts.get("gsm8k")
    if gsm8k is None or gsm8k.settings.get("shots") is None:
        return "-"
    shots, selection = gsm8k.settings["shots"], gsm8k.settings.get("shot_selection", "fixed")
    return f"{shots}" if not shots or selection == "fixed" else f"{shots} {selection}"


def describe_judge(run: Run) -> str:
    """The guard's short name, "refusal phrases", or '-' where nothing has judged the run."""
    judge = run.parts.get("judge")
    if judge is None or judge.method is None:
        return "-"
    return (
        "refusal phrases"
        if judge.method == "refusal"
        else _path_end(judge.settings.get("model") or "Qwen3Guard", 1)
    )


def _path_end(path: object, parts: int) -> str:
    """The last `parts` of a folder's path or a Hub id."""
    return PurePath(*PurePath(str(path)).parts[-parts:]).as_posix()


def _described(run: Run, describe: Callable[[Part], str]) -> str:
    """What the run's answers were made with; both where GSM8K and AILuminate differ; '-' before
    there are any.
    """
    parts = [run.parts[task] for task in ("gsm8k", "ailuminate") if task in run.parts]
    return " / ".join(dict.fromkeys(map(describe, parts))) or "-"


def to_text(table: Table, names: list[str]) -> str:
    """The table for a terminal. `names`: what to call the runs, short enough for one."""
    lines = [
        table.header,
        *((names[table.run_of(i)], *row[1:]) for i, row in enumerate(table.rows)),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]

    def align(line: tuple[str, ...]) -> str:
        cells = [
            text.rjust(width) if table.is_numeric(column) else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    header, *rows = map(align, lines)
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([table.title, header, rule, *rows, *textwrap.wrap(table.note, width=100)])


def to_markdown(table: Table) -> str:
    """The table under a heading, its note below it."""
    rule = ["---:" if table.is_numeric(column) else ":---" for column in range(len(table.header))]
    lines = [
        "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |"
        for line in (table.header, *table.rows)
    ]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join([f"## {table.title}", "", *lines, *(["", table.note] if table.note else [])])
