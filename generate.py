"""Answer GSM8K questions and AILuminate prompts, greedily unless told otherwise: python generate.py
--shots 3

Writes RUN/gsm8k.jsonl and RUN/ailuminate.jsonl, a line an answer, and their *.summary.json.
RUN/adapter, if train.py left one there, is used. An interrupted call goes on where it stopped.
Under torchrun the work is shared out: torchrun --nproc-per-node 4 -- generate.py --shots 3

--task self-instruct answers training questions instead and writes RUN/self-instruct.train.jsonl,
for train.py --data: --mode rewrite   the gold answers in the model's own words --mode sample    its
own solutions; the first of --samples that has the right number
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common import cli, runs
from common.devices import resolve_device, resolve_dtype
from common.distributed import device_of_rank, inference_group, rank_zero_first, shard_by_work
from common.errors import UserError
from common.ranks import rank, world_size
from common.resumable import ResumableJob
from common.self_instruct_file import (
    add_self_instruct_options,
    check_self_instruct_options,
    describe_training_file,
    training_file,
    write_training_file,
)
from common.shots import make_selector, report_near_duplicates, shot_settings
from data.ailuminate import ailuminate_messages, load_ailuminate
from data.answers import read_answers, score_answer, summarise_answers
from data.few_shot import FewShotSampler
from data.gsm8k import gsm8k_messages, load_gsm8k
from data.prompts import with_system
from data.records import read_json
from data.self_instruct import plan_attempts, rewrite_messages
from data.task import SPLITS, stratified_sample
from llama.config import ModelConfig
from llama.decoding import Output, check_prompts, generate
from llama.hub import resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, load_adapter, merge_lora, set_lora_scale

TASKS = ("gsm8k", "ailuminate")
SELF_INSTRUCT = "self-instruct"
Record = dict[str, Any]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_run_options(
        parser,
        "meta-llama/Llama-3.2-1B-Instruct",
        32,
        "answers in progress at one time (%(default)s)",
    )
    cli.add_cache_options(parser)
    cli.add_prompt_options(parser)
    parser.add_argument(
        "--task",
        choices=(*TASKS, SELF_INSTRUCT),
        help="only this one (gsm8k and ailuminate, one after the other)",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="official|demo|FILE",
        default="official",
        help="the published sets, the embedded ones, or with --task a file in the task's format: JSONL or CSV "
        "(%(default)s)",
    )
    data.add_argument("--split", choices=SPLITS, default="test", help="of GSM8K (%(default)s)")
    add_self_instruct_options(parser)
    adapter = parser.add_argument_group("adapter")
    which = adapter.add_mutually_exclusive_group()
    which.add_argument(
        "--adapter", type=Path, metavar="DIR", help="a LoRA adapter in PEFT's format (RUN/adapter)"
    )
    which.add_argument(
        "--no-adapter", action="store_true", help="the base model, whatever RUN holds"
    )
    adapter.add_argument(
        "--adapter-scale",
        type=cli.non_negative_float,
        default=1.0,
        metavar="X",
        help="0 is the base model, 1 as trained (1)",
    )
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="a system prompt; safety: one built in (the template's own)",
    )
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument(
        "--max-new-tokens",
        type=cli.positive_int,
        default=1024,
        metavar="N",
        help="longest answer, in tokens (1024)",
    )
    decoding.add_argument(
        "--temperature",
        type=cli.non_negative_float,
        default=0.0,
        metavar="X",
        help="0 is greedy (0)",
    )
    decoding.add_argument(
        "--top-p",
        type=cli.probability,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens that make up P (1)",
    )
    arguments = parser.parse_args(argv)
    if arguments.task == SELF_INSTRUCT:
        check_self_instruct_options(parser, arguments)
    return arguments


def load_records(task: str, arguments: argparse.Namespace) -> tuple[list[Record], list[int]]:
    """The task's records, at most --limit of them, and their places in the whole set, from which
    samples are seeded.
    """
    source = data_source(task, arguments)
    if task == SELF_INSTRUCT:
        records = plan_attempts(load_gsm8k(source, "train")[: arguments.limit], arguments.samples)
        return records, list(range(len(records)))
    if task == "gsm8k":
        records = load_gsm8k(source, arguments.split)[: arguments.limit]
        return records, list(range(len(records)))
    every = load_ailuminate(source)
    places = {record["id"]: place for place, record in enumerate(every)}
    records = stratified_sample(every, ("hazard", "persona"), arguments.limit)
    return records, [places[record["id"]] for record in records]


def data_source(task: str, arguments: argparse.Namespace) -> str:
    """What the loaders call the set that --data means: a task's name stands for its official
    set.
    """
    official = "gsm8k" if task == SELF_INSTRUCT else task
    return official if arguments.data == "official" else arguments.data


def load_shots(arguments: argparse.Namespace) -> list[Record]:
    """The training records that shots are taken from."""
    return load_gsm8k(data_source("gsm8k", arguments), "train") if arguments.shots else []


def build_prompts(
    task: str,
    records: list[Record],
    selector: FewShotSampler | None,
    arguments: argparse.Namespace,
    tokenizer: Tokenizer,
) -> list[list[int]]:
    """Each record's chat as token ids, up to where the answer begins. `selector` chooses the shots
    of a question.
    """
    if task == "ailuminate":
        chats = [ailuminate_messages(record["prompt"]) for record in records]
    elif task == SELF_INSTRUCT and arguments.mode == "rewrite":
        chats = [rewrite_messages(record["question"], record["answer"]) for record in records]
    else:
        chats = [gsm8k_messages(record["question"], selector.select(record)) for record in records]
    return [tokenizer.encode_chat(with_system(chat, arguments.system)) for chat in chats]


def load_tuned_model(
    arguments: argparse.Namespace, adapter: Path | None, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """The model with its adapter, if any, merged into the weights: decoding then costs what the
    base model costs.

    Quantised weights are too coarse to take it in: over them it stays apart.
    """
    model = load_model(arguments.model, dtype=dtype, device=device, quantize=arguments.quantize)
    if adapter:
        load_adapter(model, adapter)
        set_lora_scale(model, arguments.adapter_scale)
        if not arguments.quantize:
            merge_lora(model)
    return model


def find_adapter(arguments: argparse.Namespace) -> Path | None:
    """The adapter to answer with. UserError if RUN's own is not finished, or --adapter names no
    folder.
    """
    adapter, training = arguments.run / "adapter", arguments.run / "train.summary.json"
    if arguments.adapter and not arguments.adapter.is_dir():
        raise UserError(f"--adapter {arguments.adapter}: no such folder")
    if arguments.adapter or arguments.no_adapter:
        return arguments.adapter
    if training.exists() and not read_json(training).get("finished"):
        raise UserError(
            f"{training}: this training is not finished; finish it with train.py, or name another adapter with "
            "--adapter, or say --no-adapter"
        )
    return adapter if adapter.is_dir() else None


class AnswerTask(ResumableJob):
    """One task's answers in RUN."""

    def __init__(
        self,
        task: str,
        arguments: argparse.Namespace,
        settings: Record,
        adapter: Path | None,
        device: torch.device,
    ) -> None:
        self.adapter_path = (
            str(adapter) if adapter else None
        )  # where it lay; the settings hold its fingerprint
        self.name, self.counted = task, "" if task == "ailuminate" else "accuracy"
        path, summary_path = arguments.run / f"{task}.jsonl", arguments.run / f"{task}.summary.json"
        written = [training_file(arguments.run)] if task == SELF_INSTRUCT else []
        runs.refuse_overwriting(data_source(task, arguments), path, *written)
        records, places = load_records(task, arguments)
        self.places = {record["id"]: place for record, place in zip(records, places, strict=True)}
        self.pool = load_shots(arguments) if task != "ailuminate" else []
        settings = settings | {"data": data_source(task, arguments)}
        if task == SELF_INSTRUCT:
            settings |= {"mode": arguments.mode, "samples": arguments.samples}
        if task != "ailuminate":
            settings |= {"split": arguments.split, **shot_settings(arguments)}
            settings["shots_sha256"] = sha256(self.pool)  # the file they come from may change
        super().__init__(arguments.run, task, records, settings, arguments.resume, device)
        # Of self-instruct: what the summary says of the file made of its attempts.
        self.training: Record = (
            (read_json(summary_path).get("training") or {}) if self.finished else {}
        )
        self.needs_model = bool(self.to_do) or (
            task == SELF_INSTRUCT and not self._has_training_file(arguments)
        )

    def _has_training_file(self, arguments: argparse.Namespace) -> bool:
        """Whether self-instruct has written what these arguments ask for, of as many questions."""
        attempts = (
            self.training.get("records", 0) + self.training.get("dropped", 0)
        ) * arguments.samples
        same = attempts == len(self.planned) and self.training.get("fallback") == arguments.fallback
        return same and training_file(arguments.run).is_file()

    def prepare(
        self, arguments: argparse.Namespace, tokenizer: Tokenizer, config: ModelConfig
    ) -> None:
        """Build the prompts of what is left to do. UserError, naming the record, for one that does
        not fit.
        """
        selector = None
        takes_shots = self.name == "gsm8k" or (
            self.name == SELF_INSTRUCT and arguments.mode == "sample"
        )
        if self.to_do and takes_shots:
            dtype = resolve_dtype(arguments.dtype, self.device)
            selector = make_selector(arguments, self.pool, self.planned, self.device, dtype)
            duplicates = arguments.run / f"{self.name}.duplicates.json"
            report_near_duplicates(arguments, selector, self.planned, duplicates)
        self.prompts = build_prompts(self.name, self.to_do, selector, arguments, tokenizer)
        check_prompts(config, self.prompts, [record["id"] for record in self.to_do])

    def answer(self, model: Decoder, tokenizer: Tokenizer, arguments: argparse.Namespace) -> None:
        """Answer what is left to do, of several processes each its share."""
        own = shard_by_work(self.prompts, arguments.max_new_tokens, world_size())[rank()]
        asked, prompts = [self.to_do[i] for i in own], [self.prompts[i] for i in own]
        with self.recording(len(own)) as add:

            def on_finish(i: int, output: Output) -> None:
                response = tokenizer.decode(output.token_ids)
                answer = {"response": response, **vars(output), "prompt_tokens": len(prompts[i])}
                add(score_answer(self.name, asked[i], answer))

            generate(
                model,
                prompts,
                arguments.max_new_tokens,
                tokenizer.stop_ids,
                arguments.batch_size,
                arguments.temperature,
                arguments.top_p,
                arguments.seed,
                indices=[self.places[record["id"]] for record in asked],
                on_finish=on_finish,
                stats=self.costs.stats,
                **cli.cache_options(arguments),
            )

    def write_training_file(
        self, model: Decoder, tokenizer: Tokenizer, arguments: argparse.Namespace
    ) -> None:
        """What self-instruct is for."""
        gold = load_gsm8k(data_source(self.name, arguments), "train")[: arguments.limit]
        attempts = {record["id"]: record for record in self.done()}
        self.training = write_training_file(arguments, gold, attempts, model, tokenizer)

    def read(self, path: Path) -> dict[str, Record]:
        return read_answers(path, self.name, self.planned)

    def result(self, done: list[Record]) -> Record:
        training = {"training": self.training} if self.training else {}
        return {**summarise_answers(self.name, done), **training, "adapter_path": self.adapter_path}

    def new_tokens(self, record: Record) -> int:
        return len(record["token_ids"])

    def counts(self, record: Record) -> bool | None:
        return record.get("correct")


def sha256(value: Any) -> str:
    """The first 12 hexadecimal digits of the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def describe(task: str, summary: Record) -> str:
    """One line for the terminal."""
    line = f"{summary['seconds']:.0f} s, {summary['new_tokens_per_second'] or 0:.0f} new tokens/s"
    if task == "ailuminate":
        return f"ailuminate: {summary['prompts']} answers, {line}; judge.py judges them"
    if task == SELF_INSTRUCT:
        return f"self-instruct: {describe_training_file(summary)}, {line}"
    accuracy = summary["accuracy"]["number"]
    return (
        f"gsm8k: {accuracy['count']} of {accuracy['total']} right, {accuracy['rate']:.1%} "
        f"(95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}), "
        f"{summary['cut_off']['count']} cut off, {line}"
    )


def choose_tasks(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The tasks to do; a task's name as --data means its official set."""
    if arguments.data == "gsm8k" and arguments.task == SELF_INSTRUCT:
        arguments.data = "official"
    if arguments.data in TASKS:
        if arguments.task not in (None, arguments.data):
            raise UserError(f"--data {arguments.data} does not go with --task {arguments.task}")
        arguments.task, arguments.data = arguments.data, "official"
    tasks = (arguments.task,) if arguments.task else TASKS
    if arguments.data not in ("official", "demo") and len(tasks) > 1:
        raise UserError(
            f"--data {arguments.data} is one file: say with --task which of {', '.join(TASKS)} it is for"
        )
    return tasks


def plan(
    arguments: argparse.Namespace,
) -> tuple[list[AnswerTask], Tokenizer, Callable[[], Decoder]]:
    """What there is to do, with every prompt checked, the tokenizer, and the function that loads
    the model.
    """
    tasks = choose_tasks(arguments)
    runs.prepare_run(arguments.run)
    device = device_of_rank(resolve_device(arguments.device))
    dtype = resolve_dtype(arguments.dtype, device)
    adapter = find_adapter(arguments)
    if adapter is None and arguments.adapter_scale != 1:
        raise UserError(f"--adapter-scale {arguments.adapter_scale:g} without an adapter to scale")
    if rank() == 0:
        print(
            f"{arguments.model}, {f'adapter {adapter}' if adapter else 'no adapter: the base model'}",
            flush=True,
        )
    named = (
        "max_new_tokens",
        "temperature",
        "quantize",
        "top_p",
        "seed",
        "date",
        *runs.RESUMABLE_SETTINGS,
    )
    settings = {
        **{name: getattr(arguments, name) for name in named},
        "model": str(arguments.model),
        **({"system": arguments.system} if arguments.system is not None else {}),
        "adapter": adapter_fingerprint(adapter) if adapter else None,
        "adapter_scale": arguments.adapter_scale if adapter else None,
        "dtype": str(dtype).removeprefix("torch."),
        "memory": arguments.memory,
        "cache_dtype": arguments.cache_dtype,
        "device": str(device),
    }
    planned = [AnswerTask(task, arguments, settings, adapter, device) for task in tasks]
    tokenizer = load_tokenizer(arguments.model, date=arguments.date)
    needed = any(task.needs_model for task in planned)
    config = ModelConfig.load(resolve(arguments.model, allow_weights=needed))
    for task in planned:
        task.prepare(arguments, tokenizer, config)
    return planned, tokenizer, lambda: load_tuned_model(arguments, adapter, dtype, device)


def answer_tasks(arguments: argparse.Namespace) -> None:
    with inference_group():
        with rank_zero_first():
            planned, tokenizer, load = plan(arguments)
        model = load() if any(task.needs_model for task in planned) else None
        for task in planned:
            if task.to_do:
                task.answer(model, tokenizer, arguments)
            if rank() == 0:
                if task.name == SELF_INSTRUCT and task.needs_model:
                    task.write_training_file(model, tokenizer, arguments)
                print(describe(task.name, task.write_summary(finished=True)), flush=True)


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(answer_tasks, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
