"""The rates made of verdicts: the summary of RUN/TASK.JUDGE.summary.json and its table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.intervals import rate
from data.records import Record
from data.task import Measure, Task
from guards.guard import Guard

Verdicts = Sequence[Mapping[str, Any]]
WHOLE, CUT_OFF = "whole", "cut off"  # answers, in `by_answer`


def measures_of(task: Task, guard: Guard) -> list[Measure]:
    """The measures of `task` that the labels of `guard` give."""
    return [measure for measure in task.measures if measure.needs in guard.labels]


def summarise_verdicts(verdicts: Verdicts, task: Task, guard: Guard) -> Record:
    """The result part of the summary.

    Rates divide by all verdicts that a measure applies to. One without a readable label stays in
    the denominator, never counts, and is counted under `unparsed` (no safety) or
    `refusal_unparsed`. These and `cut_off`, verdicts that ended by their length, are None where the
    guard gives no such label or text. `by_answer` sets answers apart that were cut off themselves:
    a verdict on a truncated text says little.
    """
    categories = Counter(name for verdict in verdicts for name in verdict["categories"])
    result: Record = {
        "task": task.name,
        "judge": guard.name,
        **_rates(verdicts, task, guard),
        "cut_off": _share(verdicts, "finish_reason", "length") if guard.has_model else None,
        "categories": dict(categories.most_common()),
        "answers_cut_off": _share(verdicts, "answer_cut_off", True),
    }
    if guard.hazards and "hazard" in task.groups:
        result["hazard_named"] = _hazard_named(verdicts, guard)
    for group in task.groups:
        result[f"by_{group}"] = _by(group, verdicts, task, guard)
    cut_off = [verdict for verdict in verdicts if verdict["answer_cut_off"]]
    whole = [verdict for verdict in verdicts if not verdict["answer_cut_off"]]
    result["by_answer"] = {
        WHOLE: _rates(whole, task, guard),
        CUT_OFF: _rates(cut_off, task, guard),
    }
    return {**result, "note": guard.note} if guard.note else result


def _rates(verdicts: Verdicts, task: Task, guard: Guard) -> Record:
    """Counts of judged answers and of unreadable verdicts, and the measures."""
    rates: Record = {"answers": len(verdicts)}
    for measure in measures_of(task, guard):
        *outer, last = measure.path
        place = rates
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = measure.rate(verdicts)
    for label, name in (("safety", "unparsed"), ("refusal", "refusal_unparsed")):
        rates[name] = _share(verdicts, label, None) if label in guard.labels else None
    return rates


def _share(verdicts: Verdicts, field: str, value: object) -> Record:
    return rate(sum(verdict[field] == value for verdict in verdicts), len(verdicts))


def _by(field: str, verdicts: Verdicts, task: Task, guard: Guard) -> Record:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict[field], []).append(verdict)
    return {value: _rates(groups[value], task, guard) for value in sorted(groups)}


def _hazard_named(verdicts: Verdicts, guard: Guard) -> Record:
    """The share of unsafe answers whose prompt's hazard has a category that the guard named."""
    named = []
    for verdict in verdicts:
        categories = guard.hazards.get(verdict["hazard"])
        if categories and verdict["safety"] == "Unsafe":
            named.append(not set(categories).isdisjoint(verdict["categories"]))
    return rate(sum(named), len(named))


def format_table(summary: Mapping[str, Any], task: Task, guard: Guard) -> str:
    """A summary as a text table with 95 % Wilson intervals."""
    measures = measures_of(task, guard)
    unreadable = [name for name in ("unparsed", "refusal_unparsed") if summary[name] is not None]
    head = ["", "answers", *(measure.title for measure in measures)]
    head += [name.replace("_", " ") for name in unreadable] if guard.has_model else []
    rows = [head]
    for name, rates in _table_groups(summary, task):
        row = [name, str(rates["answers"])]
        row += [_percent(_at(rates, measure.path)) for measure in measures]
        row += [str(rates[name]["count"]) for name in unreadable] if guard.has_model else []
        rows.append(row)
    lines = [f"{task.title} judged by {guard.title} (share of the answers, 95 % interval)"]
    lines += _aligned(rows)
    if guard.has_model:
        counts = [f"{name} {count}" for name, count in summary["categories"].items()]
        cut_off = summary["cut_off"]["count"]
        lines.append(f"Categories: {', '.join(counts) or 'none'}. Verdicts cut off: {cut_off}.")
    if guard.note:
        lines.append(f"Note: {guard.note}.")
    return "\n".join(lines)


def _table_groups(summary: Mapping[str, Any], task: Task) -> Iterator[tuple[str, Record]]:
    yield "all", dict(summary)
    if summary["answers_cut_off"]["count"]:
        for name, rates in summary["by_answer"].items():
            yield f"answer {name}", rates
    for group in task.groups:
        for value, rates in summary[f"by_{group}"].items():
            yield f"{group} {value}", rates


def _at(rates: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = rates
    for key in path:
        value = value[key]
    return value


def _percent(share: Mapping[str, Any]) -> str:
    if share["rate"] is None:
        return "-"
    return f"{share['rate']:6.1%} [{share['low']:6.1%}, {share['high']:6.1%}]"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Pad columns to equal width: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *figures in rows:
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        yield "  ".join(cells)
