"""The job of judging a task's answers with a guard: its settings, its prompts, its verdicts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from common import chunks
from common.chunks import chunk_size
from common.distributed import shard_by_work
from common.errors import UserError
from common.options import HIDDEN, Scope, option, positive_int, recorded
from common.ranks import rank, world_size
from common.resumable import ResumableJob
from common.settings import DecodingSettings, RunSettings
from data.reasoning import strip_reasoning
from data.records import Record
from data.task import Task
from guards.guard import AllowedTokens, Guard
from guards.safe_rates import measures_of, summarise_verdicts
from guards.verdict import NOT_GENERATED, Generated, make_verdict, read_answers, read_verdicts
from llama.config import ModelConfig
from llama.decoding import Output, check_prompts, generate
from llama.fingerprint import model_fingerprint
from llama.hub import resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model

# Fields of a verdict that its summary is made of, beside its categories and groups.
COUNTED = (
    *("safety", "refusal", "finish_reason", "answer_cut_off"),
    *("prompt_tokens", "new_tokens"),
)
# What a guard without a model would ignore.
MODEL_OPTIONS = (
    "dtype",
    "quantize",
    "memory",
    "cache_dtype",
    "max_new_tokens",
    "grammar",
    "show_prompt",
    "label",
)


def task_names(text: str) -> tuple[str, ...]:
    """argparse type: tasks by name, with commas between."""
    return tuple(text.split(","))


@dataclass(frozen=True, kw_only=True)
class JudgingSettings(RunSettings, DecodingSettings):
    """Settings of judge.py; `model` is found out from `guard`, "" if that has none."""

    guard: str = option("qwen3guard", "see above (%(default)s)", metavar="NAME|CHECKPOINT")
    model: str = option("", HIDDEN)
    task: tuple[str, ...] = option(
        (),
        "the answers to judge (every safety task that is answered)",
        parse=task_names,
        metavar="NAME[,NAME]",
        scope=Scope.CALL,
    )
    label: str | None = option(
        None,
        "tell two checkpoints of one guard apart: verdicts go to RUN/TASK.GUARD-LABEL.jsonl (none)",
        metavar="LABEL",
        scope=Scope.CALL,
    )
    batch_size: int | None = option(
        None,
        "answers judged at a time: memory, not results (32; 256 on a GPU, fewer if its memory "
        "holds fewer)",
        parse=positive_int,
        metavar="N",
        scope=Scope.COST,
    )
    max_new_tokens: int | None = option(
        None, "length of a verdict (the guard's longest)", parse=positive_int, metavar="N"
    )
    grammar: bool = option(
        True,
        "generate no fixed text and let the guard choose between the labels; --no-grammar decodes "
        "freely",
    )
    show_prompt: int | None = option(
        None,
        "print the guard's prompts for the first N answers, as text and token ids; with --dry-run "
        "that is all",
        parse=positive_int,
        metavar="N",
        scope=Scope.CALL,
    )

    def __post_init__(self) -> None:
        if self.label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", self.label):
            raise UserError(
                f"--label {self.label:.60}: expected letters, digits, '.', '_' and '-': it becomes "
                "part of a file's name"
            )


def check_model_options(settings: JudgingSettings) -> None:
    """UserError for an option that a guard without a model would ignore."""
    for item in fields(JudgingSettings):
        if item.name in MODEL_OPTIONS and getattr(settings, item.name) != item.default:
            name = item.name.replace("_", "-")
            raise UserError(f"--{name} does nothing with --guard {settings.guard}: it has no model")


def recorded_settings(settings: JudgingSettings, guard: Guard) -> Record:
    """The settings that the summary keeps; without a model only what still matters then."""
    record = recorded(settings)
    if not settings.model:
        kept = {name: record[name] for name in ("guard", "limit")}
        return {**kept, **guard.recorded}
    return {**record, "model_fingerprint": model_fingerprint(settings.model), **guard.recorded}


@dataclass(frozen=True)
class GuardModel:
    """A guard's checkpoint, not loaded yet, and where it runs."""

    settings: JudgingSettings
    tokenizer: Tokenizer
    config: ModelConfig
    allowed_tokens: AllowedTokens | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def find(
        cls, guard: Guard, settings: JudgingSettings, dtype: torch.dtype, device: torch.device
    ) -> "GuardModel":
        """Read all but the weights. UserError for a checkpoint that is not whole."""
        tokenizer = load_tokenizer(settings.model)
        grammar = None
        if settings.grammar:
            grammar = guard.allowed_tokens(tokenizer.encode, tokenizer.end_id)
        config = ModelConfig.load(resolve(settings.model))
        return cls(settings, tokenizer, config, grammar, dtype, device)

    def load(self) -> Decoder:
        return load_model(
            self.settings.model,
            dtype=self.dtype,
            device=self.device,
            quantize=self.settings.quantize,
        )


class JudgingJob(ResumableJob):
    """The verdicts of one guard on a run's answers to one task."""

    def __init__(
        self, task: Task, guard: Guard, settings: JudgingSettings, device: torch.device
    ) -> None:
        self.task, self.guard = task, guard
        self.first_prompts: list[list[int]] = []
        self.answers = read_answers(settings.run / f"{task.name}.jsonl", task)
        self.measure = measures_of(task, guard)[0]
        self.counted = self.measure.counted
        super().__init__(
            settings.run,
            f"{task.name}.{guard.name}",
            sample_by_id(task, self.answers, settings.limit),
            recorded_settings(settings, guard),
            settings.resume,
            device,
            JudgingSettings,
        )

    def read(self, path: Path) -> Iterable[Record]:
        return read_verdicts(path, self.task, self.answers).values()

    def facts(self, record: Record) -> Record:
        facts = {name: record[name] for name in (*COUNTED, *self.task.groups)}
        return facts | {"categories": tuple(record["categories"])}

    def result(self, done: list[Record]) -> Record:
        return summarise_verdicts(done, self.task, self.guard)

    def counts(self, facts: Mapping[str, Any]) -> bool | None:
        return self.measure.counts(facts)

    def prompts(self, answers: Sequence[Record], model: GuardModel) -> list[list[int]]:
        """The guard's prompts, of the answers without their reasoning.

        UserError, naming the answer, for one that does not fit the guard's context.
        """
        prompts, names = [], []
        for answer in answers:
            response = strip_reasoning(answer["response"])
            messages = self.guard.messages(answer[self.task.prompt_field], response)
            prompts.append(model.tokenizer.encode_chat(messages))
            names.append(f"the answer to {answer['id']} with the guard's policy")
        check_prompts(model.config, prompts, names)
        return prompts

    def prepare(self, model: GuardModel) -> None:
        """Build the first prompts.

        UserError for one that does not fit, as far as that can be known before all are built: of
        those beyond the first chunk the longest texts are tried.
        """
        size = chunk_size(model.settings.batch_size, model.device)
        self.first_prompts = self.prompts(self.to_do[:size], model)

        def length(answer: Record) -> int:
            return len(answer[self.task.prompt_field]) + len(answer["response"])

        longest_first = sorted(self.to_do[size:], key=length, reverse=True)
        self.prompts(longest_first[: chunks.LONGEST], model)

    def judge_by_model(self, model: GuardModel, decoder: Decoder) -> None:
        """Generate the verdicts that are left to do, of several processes each its share, chunk by
        chunk.
        """
        length = model.settings.max_new_tokens or self.guard.max_new_tokens
        about_own_share = len(self.to_do[rank() :: world_size()])
        with self.recording(about_own_share) as add:
            size = chunk_size(model.settings.batch_size, model.device)
            for start in range(0, len(self.to_do), size):
                answers = self.to_do[start : start + size]
                prompts = self.prompts(answers, model) if start else self.first_prompts
                own = shard_by_work(prompts, length, world_size())[rank()]
                own_answers = [answers[i] for i in own]
                self._judge(own_answers, [prompts[i] for i in own], model, decoder, add)
                self.first_prompts = []

    def _judge(
        self,
        answers: Sequence[Record],
        prompts: Sequence[list[int]],
        model: GuardModel,
        decoder: Decoder,
        add: Callable[[Record], None],
    ) -> None:
        settings, tokenizer = model.settings, model.tokenizer

        def on_finish(i: int, output: Output) -> None:
            raw = tokenizer.decode(output.token_ids)
            generated: Generated = {
                "raw": raw,
                "finish_reason": output.finish_reason,
                "prompt_tokens": len(prompts[i]),
                "new_tokens": len(output.token_ids),
            }
            labels = self.guard.parse(raw)
            add(make_verdict(self.task, self.guard, answers[i], labels, generated))

        generate(
            decoder,
            prompts,
            settings.max_new_tokens or self.guard.max_new_tokens,
            tokenizer.stop_ids,
            settings.batch_size,
            on_finish=on_finish,
            stats=self.costs.stats,
            allowed_tokens_fn=model.allowed_tokens,
            names=[f"the answer to {answer['id']}" for answer in answers],
            graphs=settings.graphs,
            **settings.cache_arguments(),
        )

    def judge_by_text(self) -> None:
        """Make the verdicts of a guard without a model, of several processes each its share."""
        own = range(rank(), len(self.to_do), world_size())
        with self.recording(len(own)) as add:
            for i in own:
                answer = self.to_do[i]
                labels = self.guard.parse(strip_reasoning(answer["response"]))
                add(make_verdict(self.task, self.guard, answer, labels, NOT_GENERATED))


def sample_by_id(task: Task, answers: list[Record], limit: int | None) -> list[Record]:
    """The answers that --limit takes, in the file's order: chosen by id, not by who finished
    first.
    """
    chosen = task.sample(sorted(answers, key=lambda answer: answer["id"]), limit)
    ids = {answer["id"] for answer in chosen}
    return [answer for answer in answers if answer["id"] in ids]
