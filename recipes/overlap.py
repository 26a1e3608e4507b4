"""The check that a recipe trains on nothing that it is tested on."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from common.command_line import read_number
from common.errors import UserError
from common.options import non_negative_float
from data.anchors import anchor_sets
from data.overlap import TextIndex, find_overlap
from data.registry import TASKS
from data.task import Split
from guards.own_answers import PROMPTS
from recipes.schema import SHOTS_DATA, Recipe
from recipes.sources import Options
from recipes.steps import answered_tasks

TRAINING_TASK = "gsm8k"  # whose training set train.py uses


class Texts(NamedTuple):
    """The questions or prompts of a set."""

    task: str
    source: str
    split: Split


class Overlap(NamedTuple):
    """The records that are tested although they are trained on."""

    ids: list[str]
    tested: int


def check_overlap(recipe: Recipe, data: str, limits: Mapping[str, int]) -> None:
    """UserError if a text that is trained on is also tested, exactly or nearly, by content.

    Seen are the training questions, the file of --shots-data, the prompts of own answers and, with
    --kl-weight, those of --kl-prompts. `data` is "official" or "demo", `limits` the number of test
    records by task.
    """
    if not recipe.train:
        return
    trained = {"the training questions": Texts(TRAINING_TASK, data, "train")}
    if recipe.own_answers is not None:
        for prompts, source in anchor_sets(PROMPTS):
            name = f"the embedded {prompts.name} prompts of own-answers"
            trained[name] = Texts(prompts.name, source, "test")
    for stage in recipe.train:
        trained |= stage_texts(stage, recipe.path)
    for task in answered_tasks(recipe, data):
        for name, texts in trained.items():
            overlap = _find(texts, task, data, limits.get(task))
            if overlap.ids:
                raise UserError(
                    f"{recipe.path}: {len(overlap.ids)} of the {overlap.tested} {task} "
                    f"{TASKS[task].unit} that are tested are among {name}, as they are or nearly "
                    f"({overlap.ids[0]} is one); train on others"
                )


def stage_texts(stage: Options, path: Path) -> dict[str, Texts]:
    """The sets that a training stage reads beside its training data, by their names."""
    texts = {}
    if SHOTS_DATA in stage:
        source = str(stage[SHOTS_DATA])
        texts[f"the shots of {source}"] = Texts(TRAINING_TASK, source, "train")
    if read_number(stage, "kl-weight", 0, non_negative_float, path) > 0:
        for task, source in anchor_sets(str(stage.get("kl-prompts", "demo"))):
            name = f"the prompts of kl-prompts {source}"
            if source in ("demo", "official"):
                name = f"the {source} {task.name} prompts of kl-prompts"
            texts[name] = Texts(task.name, source, "test")
    return texts


@cache
def _find(trained: Texts, task: str, data: str, limit: int | None) -> Overlap:
    index, field = _index(trained), TASKS[task].prompt_field
    tested = TASKS[task].sample(TASKS[task].load(data, "test"), limit)
    ids = [record["id"] for record in tested if find_overlap(index, [record[field]])]
    return Overlap(ids, len(tested))


@cache
def _index(texts: Texts) -> TextIndex:
    task = TASKS[texts.task]
    return TextIndex([record[task.prompt_field] for record in task.load(texts.source, texts.split)])
