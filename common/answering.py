"""Answering a task: the settings it depends on, its records, its shots and its prompts.

generate.py answers with this; divergence.py builds the same prompts again from a summary.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.options import (
    Scope,
    checked_settings,
    non_negative_float,
    non_negative_int,
    option,
    options,
    positive_int,
    probability,
    recorded,
)
from common.self_instruct_settings import SelfInstructSettings
from common.settings import DecodingSettings, PromptSettings, RunSettings
from common.shots import make_selector
from data.few_shot import FewShotSampler, normalise_question
from data.prompts import Message, with_system
from data.records import Record
from data.registry import TASKS, get_task
from data.self_instruct import SelfInstruct
from data.task import SPLITS, Split, Task
from guards.own_answers import OwnAnswers
from llama.config import ModelConfig
from llama.decoding import check_prompts
from llama.tokenizer import Tokenizer

DEFAULT_TASKS = ("gsm8k", "ailuminate")
DATA, ADAPTER, DECODING = "data", "adapter", "decoding"
# Settings that matter only where a task takes shots, or has questions to word.
SHOT_SETTINGS = ("shots", "shot_selection", "shots_data", "embedder", "pooling")
WORDING_SETTINGS = ("question_prefix", "answer_prefix", "instruction")


def task_names(text: str) -> tuple[str, ...]:
    """argparse type: tasks by name, with commas between, each once."""
    names = (name.strip() for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, kw_only=True)
class AnsweringSettings(DecodingSettings, SelfInstructSettings, PromptSettings, RunSettings):
    """The options of generate.py; --help lists those of the last base first."""

    batch_size: int | None = option(
        None,
        "answers in progress at one time (32; 256 on a GPU, fewer if its memory holds fewer)",
        parse=positive_int,
        metavar="N",
        scope=Scope.COST,
    )
    task: tuple[str, ...] = option(
        (),
        f"one or more of {', '.join(TASKS)}, or self-instruct, own-answers "
        f"({','.join(DEFAULT_TASKS)})",
        parse=task_names,
        metavar="NAME[,NAME...]",
        scope=Scope.CALL,
    )
    data: str = option(
        "official",
        "the published sets, the embedded ones, or with --task a file in the task's format: JSONL "
        "or CSV (%(default)s)",
        metavar="official|demo|FILE",
        group=DATA,
    )
    split: Split = option(
        "test", "of tasks that have two (%(default)s)", choices=SPLITS, group=DATA
    )
    adapter: Path | None = option(
        None,
        "a LoRA adapter in PEFT's format, or RUN's own: the last one, or the best by validation "
        "loss (last)",
        parse=Path,
        metavar="DIR|best|last",
        group=ADAPTER,
        exclusive="adapter",
    )
    no_adapter: bool = option(
        False,
        "the base model, whatever RUN holds",
        flag=True,
        group=ADAPTER,
        exclusive="adapter",
        scope=Scope.CALL,
    )
    adapter_scale: float = option(
        1.0,
        "0 is the base model, 1 as trained (1)",
        parse=non_negative_float,
        metavar="X",
        group=ADAPTER,
    )
    system: str | None = option(
        None,
        "a system prompt; safety: one built in (the template's own)",
        metavar="TEXT",
        when=lambda settings: settings.system is not None,
    )
    show_prompt: int = option(
        0,
        "print the first N prompts of each task, as text and as token ids, and answer nothing",
        parse=non_negative_int,
        metavar="N",
        scope=Scope.CALL,
    )
    max_new_tokens: int = option(
        1024, "longest answer, in tokens (1024)", parse=positive_int, metavar="N", group=DECODING
    )
    temperature: float = option(
        0.0, "0 is greedy (0)", parse=non_negative_float, metavar="X", group=DECODING
    )
    top_p: float = option(
        1.0,
        "sample from the likeliest tokens that make up P (1)",
        parse=probability,
        metavar="P",
        group=DECODING,
    )

    def __post_init__(self) -> None:
        for name in self.task:
            make_task(name, self)
        if SelfInstruct.name in self.task:
            self.check_attempts(self.temperature)
        if self.samples > 1:
            self._check_votes()

    def _check_votes(self) -> None:
        """UserError unless several samples of each task can differ, and be voted on."""
        named = (self.data,) if self.data in TASKS else DEFAULT_TASKS
        for name in self.task or named:
            if not make_task(name, self).voted_field:
                voting = ", ".join(task.name for task in TASKS.values() if task.voted_field)
                raise UserError(
                    f"--samples {self.samples} with --task {name}: its answers cannot be voted "
                    f"on; those of {voting} can"
                )
        if self.temperature == 0:
            raise UserError(
                f"--samples {self.samples} with --temperature 0: all samples would be the same "
                "greedy answer; give --temperature 0.7, say"
            )

    def writes_nothing(self) -> bool:
        """Tell if this call only says what another would do."""
        return self.dry_run or self.show_prompt > 0


def make_task(name: str, settings: AnsweringSettings) -> Task:
    """The task called `name`. UserError, with the nearest name, if there is none."""
    if name == SelfInstruct.name:
        return SelfInstruct(settings.mode, settings.samples)
    if name == OwnAnswers.name:
        return OwnAnswers()
    return get_task(name, SelfInstruct.name, OwnAnswers.name)


def choose_tasks(settings: AnsweringSettings) -> tuple[list[Task], str]:
    """The tasks to answer, and "official", "demo" or the file that their records come from.

    A task's name as --data stands for its official set, and for --task where that is not given.
    """
    names, source = settings.task, settings.data
    if source in TASKS:
        names = names or (source,)
        for name in names:
            if make_task(name, settings).official_name != source:
                raise UserError(f"--data {source} does not go with --task {name}")
        source = "official"
    tasks = [make_task(name, settings) for name in names or DEFAULT_TASKS]
    if source not in ("official", "demo") and len(tasks) > 1:
        raise UserError(
            f"--data {source} is one file: say with --task which of {', '.join(TASKS)} it is for"
        )
    return tasks, source


def load_shots(task: Task, settings: PromptSettings, source: str) -> list[Record]:
    """The worked examples that shots are chosen from; none for a task without shots.

    They come from --shots-data, the demo's training set for `source` "demo", else the official
    training set: never from a file that is tested.
    """
    if task.shots_from is None or settings.shots == 0:
        return []
    giver = get_task(task.shots_from)
    if settings.shots_data is not None:
        return giver.load(settings.shots_data, "train")
    return giver.load("demo" if source == "demo" else "official", "train")


def check_shots(pool: Sequence[Record], records: Sequence[Record], path: str | None) -> None:
    """UserError if the shots in the file at `path` are the tested `records`.

    That a question is never its own shot is up to `FewShotSampler`: a training file may hold some.
    """
    if not pool or path is None:
        return
    tested = {normalise_question(record["question"]) for record in records}
    if tested == {normalise_question(record["question"]) for record in pool}:
        raise UserError(
            f"--shots-data {path} holds the {len(tested)} questions that are being tested, with "
            f"their answers, from {records[0]['id']} on; take shots from a training file"
        )


class PromptBuilder:
    """Prompts of a task's records, each built when it is asked for.

    `pool` holds what shots are chosen from, `records` all that a prompt may be wanted of: similar
    shots need their embeddings, which `device` and `dtype` are for. UserError if there are too few
    shots or their embedder cannot be loaded.
    """

    def __init__(
        self,
        task: Task,
        settings: AnsweringSettings,
        tokenizer: Tokenizer,
        pool: Sequence[Record],
        records: Sequence[Record],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.task, self.system, self.tokenizer = task, settings.system, tokenizer
        self.wording = settings.wording()
        self.selector: FewShotSampler | None = None
        if task.shots_from is not None:
            self.selector = make_selector(settings, pool, records, device, dtype)

    def chat(self, record: Record) -> list[Message]:
        """The chat up to where the answer begins."""
        shots = self.selector.select(record) if self.selector else ()
        return with_system(self.task.messages(record, shots, self.wording), self.system)

    def prompts(self, records: Sequence[Record], config: ModelConfig) -> list[list[int]]:
        """The chats as token ids. UserError, naming the record, for one that does not fit."""
        prompts = [self.tokenizer.encode_chat(self.chat(record)) for record in records]
        check_prompts(config, prompts, [record["id"] for record in records])
        return prompts


def answering_record(
    task: Task,
    settings: AnsweringSettings,
    source: str,
    pool: Sequence[Record],
    identity: Mapping[str, Any],
) -> Record:
    """The settings of a task's answers, as their summary keeps them.

    `identity` says what the options name: the model and the adapter by their fingerprints, the
    device and the dtype that are used.
    """
    name = task.official_name if source == "official" else source
    record = {**recorded(settings), "data": name, **identity}
    without_effect: set[str] = set()
    if task.shots_from is None:
        without_effect.update(SHOT_SETTINGS)
    else:
        record["shots_sha256"] = json_sha256(pool)  # the file they come from may change
    if task.kind != "skill":
        without_effect.update(WORDING_SETTINGS)
    if "train" not in task.official:
        without_effect.add("split")
    if not isinstance(task, SelfInstruct):
        without_effect.add("mode")
        if settings.samples == 1:
            without_effect.add("samples")
    return {name: value for name, value in record.items() if name not in without_effect}


def settings_of_summary(
    recorded_settings: Mapping[str, Any], run: Path, where: str
) -> AnsweringSettings:
    """The settings that answers in `run` were given with; `adapter` is found by its fingerprint.

    What a summary does not hold, since it was made by an older version, has its default. UserError,
    naming `where`, for a value that the option would not take.
    """
    others = {name: value for name, value in recorded_settings.items() if name != "adapter"}
    values = checked_settings(others, AnsweringSettings, where)
    return AnsweringSettings(**{**values, "run": run})


def json_sha256(value: Any) -> str:
    """The first 12 hexadecimal digits of the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def result_settings(recorded_settings: Mapping[str, Any]) -> Record:
    """Those of a summary's settings that the answers depend on, not only their cost."""
    about = options(AnsweringSettings)
    kept = {}
    for name, value in recorded_settings.items():
        if name not in about or about[name].scope is Scope.RESULT:
            kept[name] = value
    return kept
