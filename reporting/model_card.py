"""The model card of an exported model: what it is made of, and what its run measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.version import describe_version
from data.records import read_json
from data.registry import TASKS
from data.task import Measure, Task
from guards.guard import Guard
from guards.registry import find_guard
from guards.safe_rates import measures_of

NOT_A_GRADE = (
    "Safe rates are shares of answers that the named guard finds safe, never an AILuminate grade."
)


@dataclass(frozen=True)
class Source:
    """The parts that an exported model was made from."""

    model: str  # the base, as it was named
    published_as: str | None  # its Hub id, if it has one
    model_fingerprint: str
    adapter: str | None  # fingerprint
    scale: float
    dtype: str
    check: str  # how the written checkpoint compares with the unmerged model
    run: Path | None = None
    training: Mapping[str, Any] = field(default_factory=dict)  # what train.py recorded


@dataclass(frozen=True)
class MeasuredRate:
    """A rate that the run measured of this model."""

    task: Task
    measure: Measure
    judge: Guard | None
    percent: str  # "43.2 [40.5, 45.9]"
    total: int
    decoding: str  # "3 fixed shots, greedy"


def model_card(source: Source, title: str) -> str:
    """README.md for the Hugging Face Hub: front matter for its search, then text for people."""
    lines = ["---"]
    if source.published_as:
        lines.append(f"base_model: {source.published_as}")
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags: [unforget, lora, merged]", "---", ""]
    lines += [f"# {title}", "", *_made_from(source), ""]
    if source.training:
        lines += ["## Training", "", *_settings_table(source.training), ""]
    rates = list(measured_rates(source))
    if rates:
        lines += ["## Measured", "", *_rates_table(rates), ""]
    lines += [*_not_measured(rates), ""]
    lines += ["The licence of the base model applies, and what it says about derived models."]
    return "\n".join(lines) + "\n"


def _made_from(source: Source) -> Iterator[str]:
    base = f"`{source.model}` (fingerprint {source.model_fingerprint})"
    yield f"Base model: {base}, in {source.dtype}."
    if source.adapter:
        scale = "" if source.scale == 1 else f" at scale {source.scale:g}"
        yield f"A LoRA adapter (fingerprint {source.adapter}){scale} is merged into its weights."
    yield source.check
    yield f"Made with {describe_version()}."


def _settings_table(training: Mapping[str, Any]) -> Iterator[str]:
    yield "| setting | value |"
    yield "|---|---|"
    for name, value in training.items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"| {_cell(name)} | {_cell(shown)} |"


def measured_rates(source: Source) -> Iterator[MeasuredRate]:
    """The rates in the run folder whose answers this model gave; see `_is_of`."""
    if source.run is None:
        return
    for task in TASKS.values():
        path = source.run / f"{task.name}.summary.json"
        if not path.is_file():
            continue
        answers = read_json(path)
        if not _is_of(source, answers):
            continue
        decoding = _describe_decoding(answers["settings"])
        for measure in task.measures:
            if measure.needs == "answer":
                yield from _rate(task, measure, None, answers, path, decoding)
        for path in sorted(source.run.glob(f"{task.name}.*.summary.json")):
            verdicts = read_json(path)
            guard = find_guard(str(verdicts.get("judge")))
            if guard and verdicts.get("finished"):
                for measure in measures_of(task, guard):
                    yield from _rate(task, measure, guard, verdicts, path, decoding)


def _is_of(source: Source, summary: Mapping[str, Any]) -> bool:
    """True if the answers are finished and come from this base with this adapter at this scale."""
    settings = summary.get("settings")
    if not summary.get("finished") or not isinstance(settings, dict):
        return False
    fingerprint = settings.get("model_fingerprint", source.model_fingerprint)
    scale = settings.get("adapter_scale")
    same_adapter = settings.get("adapter") == source.adapter
    same_scale = source.adapter is None or scale == source.scale
    return same_adapter and same_scale and fingerprint == source.model_fingerprint


def _describe_decoding(settings: Mapping[str, Any]) -> str:
    shots, selection = settings.get("shots"), settings.get("shot_selection", "fixed")
    parts = [f"{shots} {selection} shots"] if shots else []
    temperature = settings.get("temperature")
    parts.append(f"temperature {temperature:g}" if temperature else "greedy")
    if settings.get("system"):
        parts.append("with a system prompt")
    return ", ".join(parts)


def _rate(
    task: Task,
    measure: Measure,
    judge: Guard | None,
    summary: Mapping[str, Any],
    path: Path,
    decoding: str,
) -> Iterator[MeasuredRate]:
    """The measure's rate, unless nothing was counted. UserError if the summary has none."""
    value: Any = summary
    for key in measure.path:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(value.get("total"), int):
        raise UserError(f"{path}: no rate at {'.'.join(measure.path)}; make it again")
    if value["total"] == 0:
        return
    numbers = [value.get(name) for name in ("rate", "low", "high")]
    if not all(isinstance(number, float | int) for number in numbers):
        raise UserError(f"{path}: the rate at {'.'.join(measure.path)} is damaged; make it again")
    share, low, high = (100 * float(number) for number in numbers if number is not None)
    percent = f"{share:.1f} [{low:.1f}, {high:.1f}]"
    yield MeasuredRate(task, measure, judge, percent, value["total"], decoding)


def _rates_table(rates: list[MeasuredRate]) -> Iterator[str]:
    yield "Percent with 95 % Wilson intervals."
    if any(rate.judge and rate.measure.needs == "safety" for rate in rates):
        yield NOT_A_GRADE
    yield ""
    yield "| task | measure | judged by | % | of | decoding |"
    yield "|---|---|---|---|---|---|"
    for rate in rates:
        judge = rate.judge.title if rate.judge else "-"
        cells = [rate.task.title, rate.measure.title, judge, rate.percent, f"{rate.total:,}"]
        yield f"| {' | '.join(map(_cell, [*cells, rate.decoding]))} |"


def _not_measured(rates: list[MeasuredRate]) -> Iterator[str]:
    """The tasks without a result, which a reader must not take for granted."""
    measured = {rate.task.name for rate in rates}
    missing = [task.title for task in TASKS.values() if task.name not in measured]
    if missing:
        yield f"Not measured of this model: {', '.join(missing)}."


def _cell(text: str) -> str:
    """The text as one cell of a Markdown table."""
    one_line = " ".join(text.split())
    return one_line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
