"""Other files of a run folder: its recipe, what self-instruct wrote, the distance from the base."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from common.errors import UserError
from data.checked import checked, checked_field
from data.records import numbered_jsonl, read_json
from reporting.rates import Rate, read_rate
from reporting.run_parts import Answers
from reporting.setting_differences import COST_SETTINGS

SAMPLE_HASH = "answers_sha256"  # of the answers that a divergence was measured along
RECORDED_ALWAYS = "data"  # a setting of every answer: with it, all of them are recorded
RECIPE = "recipe.json"  # in the folder of a run that experiment.py made


@dataclass(frozen=True)
class Recipe:
    """The recipe that experiment.py made a run from.

    `original` holds the original's figures in percent, `sources` the settings by where their values
    come from. Runs of one `name`, `model` and `scale` differ in their trainings' seeds alone.
    """

    title: str = "-"
    original: dict[str, float] = field(default_factory=dict)
    name: str = ""
    model: str = ""
    training: int = 0  # 0, or the number of a repetition with other seeds
    scale: float = 1.0
    sources: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfInstruct:
    """A training file that self-instruct wrote; log-likelihoods are means in nats a token."""

    records: int
    gold: int  # of these, answers taken over from the data set
    dropped: int
    right: Rate | None  # of the attempts
    own_log_likelihood: float | None
    gold_log_likelihood: float | None

    @property
    def own(self) -> int:
        return self.records - self.gold


@dataclass(frozen=True)
class Mean:
    """A mean over `answers` with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    answers: int


class RecipeFields(TypedDict, total=False):
    title: str | None
    original: dict[str, float] | None
    name: str
    model: str
    training: int
    scale: float
    sources: dict[str, list[str]]


class LikelihoodFields(TypedDict):
    own: float
    gold: float


class OptionalTrainingFileFields(TypedDict, total=False):
    log_likelihood: LikelihoodFields | None


class TrainingFileFields(OptionalTrainingFileFields):
    records: int
    dropped: int
    sources: dict[str, int]


class MeanFields(TypedDict):
    mean: float
    low: float
    high: float
    answers: int


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run, if experiment.py made it."""
    path = folder / RECIPE
    if not path.is_file():
        return None
    fields = checked(read_json(path), RecipeFields, str(path))
    original = fields.get("original") or {}
    for name, share in original.items():
        if not 0 <= share <= 100:
            raise UserError(
                f"{path}: field 'original': {name} should be a percentage, found {share!r}"
            )
    return Recipe(
        title=fields.get("title") or "-",
        original=original,
        name=fields.get("name", ""),
        model=fields.get("model", ""),
        training=fields.get("training", 0),
        scale=fields.get("scale", 1.0),
        sources=fields.get("sources", {}),
    )


def read_self_instruct(folder: Path) -> SelfInstruct | None:
    """Self-instruct's attempts by outcome; None while it is unfinished."""
    path = folder / "self-instruct.summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    if not checked_field(summary, "finished", bool, str(path)):
        return None
    training: TrainingFileFields = checked_field(summary, "training", TrainingFileFields, str(path))
    likelihood = training.get("log_likelihood")
    return SelfInstruct(
        records=training["records"],
        gold=training["sources"].get("gold", 0),
        dropped=training["dropped"],
        right=read_rate(summary, ("training", "right"), str(path))
        or read_rate(summary, ("right",), str(path)),
        own_log_likelihood=likelihood["own"] if likelihood else None,
        gold_log_likelihood=likelihood["gold"] if likelihood else None,
    )


def read_divergences(
    folder: Path, answered: Sequence[Answers]
) -> tuple[dict[str, Mean], list[str]]:
    """Divergences by task, and the tasks for which they no longer hold.

    A divergence holds if the answers have the settings that it was measured for, and it was
    measured along those that stand there now. An earlier version recorded a few settings only.
    """
    path = folder / "kl.summary.json"
    if not path.is_file():
        return {}, []
    summary = read_json(path)
    settings: dict[str, Any] = checked_field(summary, "settings", dict[str, Any], str(path))
    found: dict[str, Mean] = {}
    stale = []
    for answers in answered:
        name = answers.task.name
        if name not in summary:
            continue
        values: MeanFields = checked_field(summary, name, MeanFields, str(path))
        recorded = checked_field(settings, name, dict[str, Any], f"{path}: in 'settings'")
        if _holds(folder, answers, recorded, settings.get("limit")):
            found[name] = Mean(**values)
        else:
            stale.append(name)
    return found, stale


def _holds(folder: Path, answers: Answers, recorded: dict[str, Any], limit: object) -> bool:
    names = recorded.keys() & answers.settings.keys()
    if RECORDED_ALWAYS in recorded:
        names = (recorded.keys() | answers.settings.keys()) - COST_SETTINGS - {SAMPLE_HASH}
    for name in names:
        if recorded.get(name) != answers.settings.get(name):
            return False
    digest = recorded.get(SAMPLE_HASH)
    if digest is None or type(limit) is not int or limit < 1:
        return True  # measured by a version that did not record it
    return digest == _sample_sha256(folder / f"{answers.task.name}.jsonl", answers, limit)


def _sample_sha256(path: Path, answers: Answers, limit: int) -> str:
    """The hash by which divergence.py names the answers that it measures along: `limit`, evenly
    spread over all of them in the order of their ids.
    """
    ids = sorted(answer.id for answer in answers.records)
    count = min(limit, len(ids))
    chosen = [ids[i * len(ids) // count] for i in range(count)]
    tokens: dict[str, object] = dict.fromkeys(chosen)
    for _, values in numbered_jsonl(path) if path.is_file() else ():
        if values.get("id") in tokens:
            tokens[values["id"]] = values.get("token_ids")
    content = json.dumps([[name, tokens[name]] for name in chosen])
    return hashlib.sha256(content.encode()).hexdigest()[:12]
