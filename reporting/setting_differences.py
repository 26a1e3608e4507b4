"""The settings that two compared things do not share, found by rule: whatever both record
differently.

A setting that one of them does not have counts as None, since summaries leave out options that
were not given, and lack those that are younger than they are.
"""

import json
from collections.abc import Mapping
from typing import Any

from reporting.run_parts import Part

# They change what a part costs and how many records it has, not what a record says: what the
# scripts' settings mark as `Scope.COST`.
COST_SETTINGS = frozenset({"limit", "batch_size", "device", "memory", "graphs", "samples"})
# A task that takes no shots, has no splits, or no words around its question does not have them.
TASK_SETTINGS = frozenset(
    {"shots", "shot_selection", "shots_data", "shots_sha256", "embedder", "pooling", "split"}
    | {"instruction", "question_prefix", "answer_prefix"}
)
# Training and testing have their own: which data, and what is random in it.
OWN_SETTINGS = frozenset({"data", "seed"})
RECORDED_IF_GIVEN = frozenset({"system"})
FINGERPRINT = "_fingerprint"  # ends the name of a setting that identifies another's content
LONGEST_VALUE = 40  # characters


def setting_differences(one: Part, other: Part) -> dict[str, tuple[Any, Any]]:
    """Both values of every setting that differs, those that only cost left out.

    What both name by a fingerprint of its content is that content, wherever it lies.
    """
    differences = {}
    for name in (one.settings | other.settings).keys() - COST_SETTINGS:
        values = one.settings.get(name), other.settings.get(name)
        if values[0] != values[1] and not _is_same_content(one, other, name):
            differences[name] = values
    return dict(sorted(differences.items()))


def _is_same_content(one: Part, other: Part, name: str) -> bool:
    fingerprint = one.settings.get(f"{name}{FINGERPRINT}")
    return fingerprint is not None and fingerprint == other.settings.get(f"{name}{FINGERPRINT}")


def task_setting_differences(one: Part, other: Part) -> dict[str, tuple[Any, Any]]:
    """The same between two tasks, without what only one of them can have."""
    differences = setting_differences(one, other)
    both = one.settings.keys() & other.settings.keys()
    return {n: values for n, values in differences.items() if n in both or n not in TASK_SETTINGS}


def prompt_differences(training: Part, answers: Part) -> dict[str, tuple[Any, Any]]:
    """The same between training and testing: of what both have, and of what is seldom given."""
    both = training.settings.keys() & answers.settings.keys() | RECORDED_IF_GIVEN
    differences = setting_differences(training, answers)
    return {n: values for n, values in differences.items() if n in both - OWN_SETTINGS}


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """`adapter (none / 3fa9c21b04d7), shots (3 / 0)`."""
    texts = []
    for name, (one, other) in differences.items():
        texts.append(f"{name} ({short_value(one)} / {short_value(other)})")
    return ", ".join(texts)


def plain_value(value: Any) -> str:
    """A JSON value for a reader: text without quotes, None as "none"."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(plain_value, value))
    return value if isinstance(value, str) else json.dumps(value)


def short_value(value: Any) -> str:
    text = plain_value(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def group_by_value(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names that have each value, by the value in words, in the order of the names."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(short_value(value), []).append(name)
    return groups
