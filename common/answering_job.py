"""The job of answering a task with a model: what is asked, how it is recorded, what comes of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common import chunks, runs
from common.answering import (
    AnsweringSettings,
    PromptBuilder,
    answering_record,
    check_shots,
    load_shots,
)
from common.chunks import chunk_size
from common.distributed import shard_by_work
from common.ranks import rank, world_size
from common.resumable import ResumableJob
from common.shots import report_near_duplicates
from data.reasoning import OPEN, opens_reasoning
from data.records import Record
from data.self_instruct import SelfInstruct
from data.task import Task
from llama.config import ModelConfig
from llama.decoding import Output, generate
from llama.model import Decoder
from llama.sampling import SeedIndex
from llama.sequence import common_prefix_length
from llama.tokenizer import Tokenizer
from llama.weights import load_model
from lora import load_adapter, set_lora_scale
from lora.merged_checkpoint import merge_unless_lost


@dataclass(frozen=True)
class Answerer:
    """The checkpoint that answers, not loaded yet: its adapter, if any, and where it runs."""

    settings: AnsweringSettings
    adapter: Path | None
    device: torch.device
    dtype: torch.dtype
    tokenizer: Tokenizer
    config: ModelConfig

    def load(self) -> Decoder:
        """The model with its adapter merged into the weights, so that it costs what the base does.

        Quantised weights are too coarse to take it in, and bfloat16 ones too coarse for a weak
        adapter or one scaled down: over them it stays apart.
        """
        model = load_model(
            self.settings.model,
            dtype=self.dtype,
            device=self.device,
            quantize=self.settings.quantize,
        )
        if self.adapter:
            load_adapter(model, self.adapter)
            set_lora_scale(model, self.settings.adapter_scale)
            if not self.settings.quantize and not merge_unless_lost(model) and rank() == 0:
                dtype = str(self.dtype).removeprefix("torch.")
                print(f"the adapter stays beside the weights: {dtype} would round it away")
        return model

    def opens_reasoning(self) -> bool:
        """Tell if the chat template ends a prompt with the tag that opens the reasoning."""
        prompt = self.tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
        return opens_reasoning(self.tokenizer.decode(prompt, skip_special_tokens=False))


class AnsweringJob(ResumableJob):
    """One task's answers in RUN. UserError if they would be mixed with others."""

    def __init__(self, task: Task, source: str, answerer: Answerer, identity: Record) -> None:
        self.task, self.answerer, self.asking = task, answerer, answerer.settings
        self.main = task.measures[0]
        self.counted = self.main.title if self.main.needs == "answer" else ""
        for path in self.outputs():
            runs.refuse_overwriting(source, path)
        records = task.load(source, self.asking.split)
        # Samples are seeded by a record's place in the whole set, so they do not depend on --limit.
        self.places = {record["id"]: place for place, record in enumerate(records)}
        self.pool = load_shots(task, self.asking, source)
        if not isinstance(task, SelfInstruct):  # that trains on what it asks
            check_shots(self.pool, records, self.asking.shots_data)
        self.first_prompts: list[list[int]] = []
        super().__init__(
            self.asking.run,
            self.stem_of(task),
            self.plan_records(task.sample(records, self.asking.limit)),
            answering_record(task, self.asking, source, self.pool, identity),
            self.asking.resume,
            answerer.device,
            AnsweringSettings,
        )

    def stem_of(self, task: Task) -> str:
        """The stem of the files that this job writes: RUN/STEM.jsonl."""
        return task.name

    def plan_records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records to answer, made of those that --limit takes."""
        return records

    def seed_index(self, record: Record) -> SeedIndex:
        """The seed of an answer beside --seed: it depends on the place of its record alone."""
        return self.places[record["id"]]

    def outputs(self) -> list[Path]:
        """The files of records that this job writes."""
        return [self.asking.run / f"{self.stem_of(self.task)}.jsonl"]

    def needs_model(self) -> bool:
        return bool(self.to_do)

    def prepare(self) -> None:
        """Choose shots and build the first prompts.

        UserError, naming the record, for a prompt that does not fit, as far as that can be known
        before all are built: of those beyond the first chunk the longest texts are tried.
        """
        settings, tokenizer = self.asking, self.answerer.tokenizer
        device, dtype = self.answerer.device, self.answerer.dtype
        if settings.shot_selection == "similar" and settings.dry_run and not settings.show_prompt:
            settings = replace(settings, shot_selection="fixed")  # embedding takes long
        self.builder = PromptBuilder(
            self.task, settings, tokenizer, self.pool, self.planned, device, dtype
        )
        if self.builder.selector and not settings.writes_nothing():
            path = settings.run / f"{self.task.name}.duplicates.json"
            report_near_duplicates(settings, self.builder.selector, self.planned, path)
        if settings.show_prompt:
            return
        size = chunk_size(settings.batch_size, device)
        self.first_prompts = self._prompts(self.to_do[:size])
        longest_first = sorted(self.to_do[size:], key=lambda r: -len(r[self.task.prompt_field]))
        self._prompts(longest_first[: chunks.LONGEST])

    def _prompts(self, records: Sequence[Record]) -> list[list[int]]:
        return self.builder.prompts(records, self.answerer.config)

    def show_prompts(self, count: int) -> str:
        """The first prompts of the task, finished or not, as text and as token ids."""
        tokenizer, lines = self.answerer.tokenizer, []
        records = self.planned[:count]
        for record, prompt in zip(records, self._prompts(records), strict=True):
            lines += [
                f"----- {self.task.name}, {record['id']}: {len(prompt)} tokens -----",
                tokenizer.decode(prompt, skip_special_tokens=False),
                f"----- token ids: {' '.join(map(str, prompt))}",
            ]
        return "\n".join(lines)

    def answer(self, model: Decoder) -> None:
        """Answer what is left to do, of several processes each its share, chunk by chunk."""
        about_own_share = len(self.to_do[rank() :: world_size()])
        with self.recording(about_own_share) as add:
            size = chunk_size(self.asking.batch_size, self.answerer.device)
            for start in range(0, len(self.to_do), size):
                records = self.to_do[start : start + size]
                prompts = self.first_prompts if start == 0 else self._prompts(records)
                shares = shard_by_work(prompts, self.asking.max_new_tokens, world_size())
                own = shares[rank()]
                self._answer([records[i] for i in own], [prompts[i] for i in own], model, add)
                self.first_prompts = []

    def _answer(
        self,
        records: Sequence[Record],
        prompts: Sequence[list[int]],
        model: Decoder,
        add: Callable[[Record], None],
    ) -> None:
        settings, tokenizer = self.asking, self.answerer.tokenizer
        opened = self.answerer.opens_reasoning()

        def on_finish(i: int, output: Output) -> None:
            response = tokenizer.decode(output.token_ids)
            if opened:
                response = OPEN + response  # so that the record tells reasoning from answer
            about = {**vars(output), "prompt_tokens": len(prompts[i])}
            add(self.task.answer(records[i], {"response": response, **about}))

        generate(
            model,
            prompts,
            settings.max_new_tokens,
            tokenizer.stop_ids,
            settings.batch_size,
            settings.temperature,
            settings.top_p,
            settings.seed,
            indices=[self.seed_index(record) for record in records],
            names=[record["id"] for record in records],
            on_finish=on_finish,
            stats=self.costs.stats,
            graphs=settings.graphs,
            **settings.cache_arguments(),
        )

    def follow_up(self, model: Decoder) -> None:
        """Let the model do, in every process, what the answers ask for."""

    def finish(self, model: Decoder | None) -> None:
        """Do what is left when all is answered, in the first process."""

    def read(self, path: Path) -> Iterable[Record]:
        return self.task.iterate_answers(path, self.planned)

    def answers(self) -> list[Record]:
        """The finished answers of those that are planned, in the plan's order, from the disk."""
        answers: dict[str, Record] = {}
        for path in self.files():
            answers |= self.task.read_answers(path, self.planned)
        return [answers[record["id"]] for record in self.planned if record["id"] in answers]

    def facts(self, record: Record) -> Record:
        tokens = {"prompt_tokens": record["prompt_tokens"], "new_tokens": len(record["token_ids"])}
        return self.task.facts(record) | tokens

    def result(self, done: list[Record]) -> Record:
        adapter = self.answerer.adapter
        summary = self.task.summarise_facts(done)
        # Where it lay; the settings hold its fingerprint.
        return {**summary, "adapter_path": str(adapter) if adapter else None}

    def counts(self, facts: Mapping[str, Any]) -> bool | None:
        return self.main.counts(facts) if self.main.needs == "answer" else None

    def longest_sequence(self) -> int:
        """Tokens of the longest prompt that was built, and of the longest answer."""
        longest = max((len(prompt) for prompt in self.first_prompts), default=0)
        context = self.answerer.config.max_position_embeddings
        return min(longest + self.asking.max_new_tokens, context)

    def prompt_tokens_to_compute(self) -> int:
        """The tokens of all prompts, what they have in common counted once; from the first ones."""
        if not self.first_prompts:
            return 0
        shared = common_prefix_length(self.first_prompts)
        own = sum(len(prompt) - shared for prompt in self.first_prompts)
        return shared + own * len(self.to_do) // len(self.first_prompts)

    def describe_plan(self) -> str:
        """Say in a line what a call without --dry-run would do."""
        task, settings = self.task, self.asking
        line = f"{self.stem}: {len(self.planned)} {task.unit}, {len(self.to_do)} of them to answer"
        if not self.needs_model():
            return f"{line}: finished already"
        lengths = [len(prompt) for prompt in self.first_prompts] or [0]
        return (
            f"{line}, prompts of {sum(lengths) // len(lengths)} tokens (the longest "
            f"{max(lengths)}), answers of at most {settings.max_new_tokens}"
        )

    def describe(self, summary: Mapping[str, Any]) -> str:
        """The result in a line for the terminal."""
        speed = summary["new_tokens_per_second"] or 0
        line = self.task.describe(summary)
        return f"{self.task.name}: {line}, {summary['seconds']:.0f} s, {speed:.0f} new tokens/s"
