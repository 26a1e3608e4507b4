"""The check that a recipe trains on nothing that it is tested on."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from common.errors import UserError
from data.overlap import find_overlap
from data.registry import TASKS
from recipes.schema import Options, Recipe
from recipes.steps import answered_tasks

TRAINING_TASK = "gsm8k"  # whose training set train.py uses
ANCHOR_TASK = "ailuminate"  # whose demo prompts and file format --kl-prompts takes


def check_overlap(recipe: Recipe, data: str, limits: Mapping[str, int]) -> None:
    """UserError if a text that is trained on is also a test prompt, compared by content.

    Seen are the training questions, the file of --shots-data and, with --kl-weight, the prompts of
    --kl-prompts. `data` is "official" or "demo", `limits` the number of test records by task.
    """
    if not recipe.train:
        return
    trained = {"the training questions": task_texts(TRAINING_TASK, data, "train")}
    for stage in recipe.train:
        trained |= stage_texts(stage)
    for task in answered_tasks(recipe, data):
        records = TASKS[task].sample(TASKS[task].load(data, "test"), limits.get(task))
        tested = [record[TASKS[task].prompt_field] for record in records]
        for name, texts in trained.items():
            shared = find_overlap(texts, tested)
            if shared:
                raise UserError(
                    f"{recipe.path}: {len(shared)} of the {len(tested)} {task} "
                    f"{TASKS[task].unit} that are tested are among {name}; train on others"
                )


def stage_texts(stage: Options) -> dict[str, tuple[str, ...]]:
    """What a training stage reads beside its training data, by what it is called."""
    texts = {}
    if "shots-data" in stage:
        source = str(stage["shots-data"])
        texts[f"the shots of {source}"] = task_texts(TRAINING_TASK, source, "train")
    if float(stage.get("kl-weight", 0)) > 0:
        source = str(stage.get("kl-prompts", "demo"))
        task = TRAINING_TASK if Path(source).suffix == ".jsonl" else ANCHOR_TASK
        texts[f"the prompts of kl-prompts {source}"] = task_texts(task, source, "test")
    return texts


@cache
def task_texts(task: str, source: str, split: str) -> tuple[str, ...]:
    """What a task's records ask."""
    records = TASKS[task].load(source, "train" if split == "train" else "test")
    return tuple(record[TASKS[task].prompt_field] for record in records)
