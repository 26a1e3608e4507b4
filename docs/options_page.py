"""Write docs/OPTIONS.md from the settings of the scripts: python -m docs.options_page

A test fails while the page differs from what this would write.
"""

import argparse
import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

from common.options import Option, Scope, Settings, options

PAGE = Path(__file__).with_name("OPTIONS.md")
SETTINGS = {
    "train": "TrainingSettings",
    "generate": "AnsweringSettings",
    "judge": "JudgingSettings",
    "report": "ReportSettings",
    "experiment": "ExperimentSettings",
    "divergence": "DivergenceSettings",
    "export": "ExportSettings",
    "chat": "ChatSettings",
}
INTRODUCTION = """# Options

Written by `python -m docs.options_page` from the scripts' settings; do not edit. `unforget NAME`
takes the same options as `python NAME.py`, and both take `--config FILE`: YAML with option names
and values, which the command line overrules.

For train, generate and judge, which work on a run, the last column says what an option has to do
with a run that exists already. *result*: recorded, and a call that goes on with the run must have
the same value; for another value, choose another `--run`. *cost*: recorded, but only time, memory
or the number of records depend on it, so it may change from call to call. Nothing there: it
concerns this call alone.
"""
WORK_ON_A_RUN = ("train", "generate", "judge")
ROLES = {Scope.RESULT: "result", Scope.COST: "cost", Scope.CALL: ""}


def load_settings(script: str) -> type[Settings]:
    """The settings dataclass of a script."""
    settings: type[Settings] = getattr(import_module(script), SETTINGS[script])
    return settings


def spelling(name: str, about: Option, default: Any) -> str:
    """An option as it is typed: `--shots N`, `--no-resume`, `RUN`."""
    values = about.metavar or ""
    if about.choices and not about.metavar:
        values = "|".join(about.choices)
    if about.positional:
        return values or name
    option = f"--{name.replace('_', '-')}"
    if isinstance(default, bool) and not about.flag:
        return f"--no-{name.replace('_', '-')}" if default else option
    if about.flag:
        return option
    return f"{option} {values or name.upper()}".rstrip()


def meaning(about: Option, default: Any) -> str:
    """The help text as --help prints it, safe inside a table."""
    text = about.help.replace("%(default)s", shown(default)).replace("%%", "%")
    return text.replace("|", "\\|")


def shown(default: Any) -> str:
    """A default value as a reader would type it."""
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return str(default)


def table(script: str) -> list[str]:
    """The options of a script as lines of Markdown, grouped as in its --help."""
    settings = load_settings(script)
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    heading = ["option", "meaning (default)"]
    if script in WORK_ON_A_RUN:
        heading.append("in a run")
    groups: dict[str, list[str]] = {}
    for name, about in options(settings).items():
        if about.help == argparse.SUPPRESS:
            continue
        typed = spelling(name, about, defaults[name]).replace("|", "\\|")
        cells = [f"`{typed}`", meaning(about, defaults[name]), ROLES[about.scope]]
        groups.setdefault(about.group or "", []).append(row(cells[: len(heading)]))
    lines = [row(heading), row(["---"] * len(heading))]
    for group, rows in groups.items():
        if group:
            lines.append(row([f"**{group}**", *[""] * (len(heading) - 1)]))
        lines += rows
    return lines


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def options_page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for script in SETTINGS:
        about = (import_module(script).__doc__ or "").strip().splitlines()[0]
        parts.append("\n".join([f"## {script}", "", about, "", *table(script), ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(options_page(), encoding="utf-8")
