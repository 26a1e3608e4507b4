"""Answer GSM8K questions and AILuminate prompts, greedily unless told otherwise: python generate.py --shots 3

Writes RUN/gsm8k.jsonl and RUN/ailuminate.jsonl, a line an answer, and their *.summary.json. RUN/adapter, if train.py
left one there, is used. An interrupted call goes on where it stopped.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.ailuminate import load_ailuminate, spread
from data.gsm8k import SPLITS, load_gsm8k
from data.prompts import SELECTIONS, ShotSelector, ailuminate_messages, gsm8k_messages
from data.records import append_record, open_records, read_json, read_jsonl, repair_jsonl, write_json
from data.scoring import extract_number, score_gsm8k
from data.statistics import rate
from llama import cli
from llama.config import ModelConfig
from llama.decoding import DecodingStats, Output, check_prompts, generate
from llama.hub import resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, load_adapter, merge_lora, set_lora_scale

TASKS = ("gsm8k", "ailuminate")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_run_options(parser, "meta-llama/Llama-3.2-1B-Instruct", 32, "answers in progress at one time (%(default)s)")
    cli.add_date_option(parser)
    parser.add_argument("--task", choices=TASKS, help="only this one (both, one after the other)")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="official|demo|FILE",
        default="official",
        help="the published sets, the embedded ones, or with --task a file in the task's format: JSONL or CSV "
        "(%(default)s)",
    )
    data.add_argument("--split", choices=SPLITS, default="test", help="of GSM8K (%(default)s)")
    data.add_argument(
        "--shots", type=cli.non_negative_int, default=0, metavar="N", help="worked examples before each (0)"
    )
    data.add_argument(
        "--shot-selection",
        choices=SELECTIONS,
        default="fixed",
        help="shots: the first N of the training file, or drawn anew for each question (fixed)",
    )
    adapter = parser.add_argument_group("adapter")
    which = adapter.add_mutually_exclusive_group()
    which.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter in PEFT's format (RUN/adapter)")
    which.add_argument("--no-adapter", action="store_true", help="the base model, whatever RUN holds")
    adapter.add_argument(
        "--adapter-scale",
        type=cli.non_negative_float,
        default=1.0,
        metavar="X",
        help="0 is the base model, 1 as trained (1)",
    )
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument(
        "--max-new-tokens", type=cli.positive_int, default=1024, metavar="N", help="longest answer, in tokens (1024)"
    )
    decoding.add_argument(
        "--temperature", type=cli.non_negative_float, default=0.0, metavar="X", help="0 is greedy (0)"
    )
    decoding.add_argument(
        "--top-p",
        type=cli.probability,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens that make up P (1)",
    )
    return parser.parse_args(argv)


def load_records(task: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The task's records, at most --limit of them."""
    source = data_source(task, arguments)
    if task == "gsm8k":
        return load_gsm8k(source, arguments.split)[: arguments.limit]
    return spread(load_ailuminate(source), arguments.limit)


def data_source(task: str, arguments: argparse.Namespace) -> str:
    """What the loaders call the set that --data means: a task's name stands for its official set."""
    return task if arguments.data == "official" else arguments.data


def build_prompts(
    task: str, records: list[dict[str, Any]], arguments: argparse.Namespace, tokenizer: Tokenizer
) -> list[list[int]]:
    """Each record's chat as token ids, up to where the answer begins."""
    if task == "ailuminate":
        return [tokenizer.encode_chat(ailuminate_messages(record["prompt"])) for record in records]
    pool = load_gsm8k(data_source(task, arguments), "train") if arguments.shots else []
    selector = ShotSelector(pool, arguments.shots, arguments.shot_selection, arguments.seed)
    return [tokenizer.encode_chat(gsm8k_messages(r["question"], selector.select(r))) for r in records]


def load_tuned_model(
    arguments: argparse.Namespace, adapter: Path | None, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """The model with its adapter, if any, merged into the weights: decoding then costs what the base model costs."""
    model = load_model(arguments.model, dtype=dtype, device=device)
    if adapter:
        load_adapter(model, adapter)
        set_lora_scale(model, arguments.adapter_scale)
        merge_lora(model)
    return model


def find_adapter(arguments: argparse.Namespace) -> Path | None:
    if arguments.no_adapter:
        return None
    if arguments.adapter:
        if not arguments.adapter.is_dir():
            raise ValueError(f"--adapter {arguments.adapter}: no such folder")
        return arguments.adapter
    return arguments.run / "adapter" if (arguments.run / "adapter").is_dir() else None


def gsm8k_record(record: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    prediction = extract_number(answer["response"], "homework")
    gold = record["gold"]
    return {
        "id": record["id"],
        "question": record["question"],
        **answer,
        "prediction": prediction,
        "gold": gold,
        "correct": prediction == gold,
    }


def ailuminate_record(record: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    return {**record, **answer}


def summarise(task: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The result part of a summary."""
    if task == "gsm8k":
        return {"questions": len(records), **score_gsm8k(records)}
    cut_off = sum(record["finish_reason"] == "length" for record in records)
    return {"prompts": len(records), "cut_off": rate(cut_off, len(records))}


class TaskRun:
    """One task's answers in RUN: what an earlier call finished, what is to do, records and summary."""

    def __init__(
        self,
        task: str,
        arguments: argparse.Namespace,
        settings: dict[str, Any],
        adapter: Path | None,
        tokenizer: Tokenizer,
        config: ModelConfig,
    ) -> None:
        self.task, self.settings = task, settings
        self.adapter = str(adapter) if adapter else None  # where it lay; the settings hold its fingerprint
        self.records = load_records(task, arguments)
        self.path: Path = arguments.run / f"{task}.jsonl"
        self.summary_path = arguments.run / f"{task}.summary.json"
        self.seconds, self.stats = 0.0, DecodingStats()
        if arguments.resume and self.summary_path.exists():
            earlier = read_json(self.summary_path)
            cli.check_settings(self.summary_path, earlier.get("settings", {}), settings)
            self.seconds = earlier.get("seconds", 0.0)
            self.stats = DecodingStats(**earlier.get("decoding", {}))
        finished = []
        if arguments.resume and self.path.exists():
            repair_jsonl(self.path)
            finished = read_jsonl(self.path)
        self.answered = {record["id"]: record for record in finished}
        self.to_do = [i for i, record in enumerate(self.records) if record["id"] not in self.answered]
        to_do = [self.records[i] for i in self.to_do]
        self.prompts = build_prompts(task, to_do, arguments, tokenizer)
        check_prompts(config, self.prompts, [record["id"] for record in to_do])

    def answer(self, model: Decoder, tokenizer: Tokenizer, arguments: argparse.Namespace) -> None:
        """Answer what is left to do; the summary is true even if this is interrupted."""
        to_do = [self.records[i] for i in self.to_do]
        if not to_do:
            return
        # Only now, with everything in order, may --no-resume replace what an earlier call left.
        _, file = open_records(self.path, arguments.resume)
        self.write_summary(finished=False)
        make_record = gsm8k_record if self.task == "gsm8k" else ailuminate_record
        done = len(self.records) - len(to_do)
        with file, tqdm(total=len(self.records), initial=done, desc=self.task, disable=None) as bar:

            def on_finish(i: int, output: Output) -> None:
                response = tokenizer.decode(output.token_ids)
                record = make_record(
                    to_do[i], {"response": response, **vars(output), "prompt_tokens": len(self.prompts[i])}
                )
                append_record(file, record)
                self.answered[record["id"]] = record
                bar.set_postfix_str(self.progress(), refresh=False)
                bar.update()

            begin = time.perf_counter()
            try:
                generate(
                    model,
                    self.prompts,
                    arguments.max_new_tokens,
                    tokenizer.stop_ids,
                    arguments.batch_size,
                    arguments.temperature,
                    arguments.top_p,
                    arguments.seed,
                    indices=self.to_do,
                    on_finish=on_finish,
                    stats=self.stats,
                )
            finally:
                self.seconds += time.perf_counter() - begin
                self.write_summary(finished=False)

    def progress(self) -> str:
        if self.task != "gsm8k":
            return ""
        answered = self.answered.values()
        return f"accuracy {sum(record['correct'] for record in answered) / len(answered):.1%}"

    def write_summary(self, finished: bool, device: torch.device | None = None) -> dict[str, Any]:
        done = [self.answered[record["id"]] for record in self.records if record["id"] in self.answered]
        new_tokens = sum(len(record["token_ids"]) for record in done)
        summary = {
            "task": self.task,
            "finished": finished,
            "planned": len(self.records),
            **summarise(self.task, done),
            "adapter_path": self.adapter,
            "settings": self.settings,
            "seconds": round(self.seconds, 3),
            "prompt_tokens": sum(record["prompt_tokens"] for record in done),
            "prefill_tokens": self.stats.prefill_tokens,
            "new_tokens": new_tokens,
            "new_tokens_per_second": self.stats.new_tokens / self.seconds if self.seconds else None,
            "decoding": vars(self.stats),
        }
        if device:
            summary |= {"peak_memory_bytes": cli.peak_memory_bytes(device), "environment": cli.environment(device)}
        write_json(self.summary_path, summary)
        return summary


def describe(task: str, summary: dict[str, Any]) -> str:
    """One line for the terminal."""
    speed = summary["new_tokens_per_second"]
    line = f"{summary['seconds']:.0f} s, {speed:.0f} new tokens/s" if speed else "nothing left to do"
    if task == "ailuminate":
        return f"ailuminate: {summary['prompts']} answers, {line}; judge.py judges them"
    accuracy = summary["accuracy"]["homework"]
    return (
        f"gsm8k: {accuracy['count']} of {accuracy['total']} right, {accuracy['rate']:.1%} "
        f"(95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}), "
        f"{summary['cut_off']['count']} cut off, {line}"
    )


def answer_tasks(arguments: argparse.Namespace) -> None:
    if arguments.data in TASKS:  # the name of an official set says which task is meant
        if arguments.task not in (None, arguments.data):
            raise ValueError(f"--data {arguments.data} does not go with --task {arguments.task}")
        arguments.task, arguments.data = arguments.data, "official"
    tasks = (arguments.task,) if arguments.task else TASKS
    if arguments.data not in ("official", "demo") and len(tasks) > 1:
        raise ValueError(f"--data {arguments.data} is one file: say with --task which of {', '.join(TASKS)} it is for")
    cli.prepare_run(arguments.run)
    device = cli.resolve_device(arguments.device)
    dtype = cli.resolve_dtype(arguments.dtype, device)
    adapter = find_adapter(arguments)
    print(f"{arguments.model}, {f'adapter {adapter}' if adapter else 'no adapter: the base model'}", flush=True)
    named = ("max_new_tokens", "temperature", "top_p", "seed", "date")
    settings = {
        "model": str(arguments.model),
        "adapter": adapter_fingerprint(adapter) if adapter else None,
        "adapter_scale": arguments.adapter_scale if adapter else None,
        "dtype": str(dtype).removeprefix("torch."),
        **{name: getattr(arguments, name) for name in named},
    }
    shots = {name: getattr(arguments, name) for name in ("split", "shots", "shot_selection")}
    tokenizer = load_tokenizer(arguments.model, date=arguments.date)
    config = ModelConfig.load(resolve(arguments.model, allow_weights=False))
    runs = []
    for task in tasks:
        more = {"data": data_source(task, arguments)} | (shots if task == "gsm8k" else {})
        runs.append(TaskRun(task, arguments, settings | more, adapter, tokenizer, config))
    model = load_tuned_model(arguments, adapter, dtype, device) if any(run.to_do for run in runs) else None
    for run in runs:
        run.answer(model, tokenizer, arguments)
        print(describe(run.task, run.write_summary(True, device)), flush=True)


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(answer_tasks, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
