"""Measure how far a run's model has moved from its base, in what it wrote: python divergence.py
--run RUN

KL(base || tuned), in nats a token, along the answers in RUN/TASK.jsonl of every task; base and
tuned are the same weights with the adapter off and on. Writes RUN/kl.jsonl, a line an answer, and
RUN/kl.summary.json, which report.py shows.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import cli, runs
from common.answering import (
    PromptBuilder,
    json_sha256,
    load_shots,
    result_settings,
    settings_of_summary,
)
from common.command_line import parse_settings
from common.devices import resolve_device, resolve_dtype
from common.errors import UserError
from common.options import Scope, option, positive_int
from data.checked import checked_field
from data.examples import IGNORE_INDEX, Example
from data.intervals import mean_interval
from data.records import Record, read_json, rewrite_records, write_json
from data.registry import TASKS
from data.task import Task
from llama.config import ModelConfig
from llama.fingerprint import model_fingerprint
from llama.hub import resolve
from llama.model import Decoder
from llama.tokenizer import load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, load_adapter, set_lora_scale
from lora.kl import mean_divergences
from lora.malloc import keep_freed_memory
from lora.onednn import packed_weights

OUT_OF_MEMORY = "try --device cpu, which is slower and holds what a GPU does not"


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings:
    """The options of divergence.py."""

    run: Path = option(Path("runs/default"), "run folder (%(default)s)", parse=Path, metavar="DIR")
    limit: int = option(200, "answers to each task (%(default)s)", parse=positive_int, metavar="N")
    device: str = option(
        "auto", "cpu, cuda, cuda:1, mps, ...; auto: CUDA or MPS if there is one", scope=Scope.COST
    )
    dry_run: bool = option(
        False, "say what would be done and write nothing", flag=True, scope=Scope.CALL
    )


def parse_arguments(argv: Sequence[str] | None) -> DivergenceSettings:
    return parse_settings(DivergenceSettings, __doc__, argv)


@dataclass(frozen=True)
class Answered:
    """Answers of a run to one task, evenly spread, with the summary of all."""

    run: Path
    task: Task
    summary: Record
    answers: list[Record]

    @property
    def summary_path(self) -> Path:
        return self.run / f"{self.task.name}.summary.json"

    def settings(self) -> Record:
        """The settings of the answers and their hash, to which a measurement belongs."""
        ids = [[answer["id"], answer["token_ids"]] for answer in self.answers]
        about = result_settings(self.summary["settings"])
        return {**about, "answers_sha256": json_sha256(ids)}


def read_answered(run: Path, task: Task, limit: int) -> Answered:
    """`limit` of a task's answers. UserError unless they are finished and whole."""
    summary_path = run / f"{task.name}.summary.json"
    summary = read_json(summary_path)
    if not summary.get("finished"):
        raise UserError(
            f"{summary_path}: not finished; finish it with generate.py --task {task.name}"
        )
    path = run / f"{task.name}.jsonl"
    answers = sorted(task.read_answers(path).values(), key=lambda answer: answer["id"])
    lacking = ""
    if not answers or "settings" not in summary:
        lacking = "no answers, or their summary has no settings"
    for answer in answers:
        if not answer["token_ids"]:
            lacking = f"{answer['id']} has no tokens"
    if lacking:
        raise UserError(f"{path}: {lacking}; answer again with generate.py --no-resume")
    checked_field(summary, "settings", dict, str(summary_path))
    count = min(limit, len(answers))
    spread = [answers[i * len(answers) // count] for i in range(count)]
    return Answered(run, task, summary, spread)


def find_adapter(answered: Answered) -> str | None:
    """Return the path of the adapter that the answers were given with; None for the base.

    UserError if it is there no more, or another.
    """
    fingerprint = answered.summary["settings"].get("adapter")
    if fingerprint is None:
        return None
    where = str(answered.summary_path)
    path = checked_field(
        {"adapter_path": None, **answered.summary}, "adapter_path", str | None, where
    )
    if path is None or not Path(path).is_dir() or adapter_fingerprint(path) != fingerprint:
        raise UserError(
            f"{answered.summary_path}: answered with adapter {fingerprint} from {path}, which is "
            "not there as it was; answer again with generate.py --no-resume"
        )
    return path


def build_examples(answered: Answered, device: torch.device) -> list[Example]:
    """Each answer behind its prompt, as examples whose supervised tokens are the answer's.

    UserError if model or shots are not those of the answers any more.
    """
    recorded = answered.summary["settings"]
    settings = settings_of_summary(
        recorded, answered.run, f"{answered.summary_path}: in 'settings'"
    )
    pool = load_shots(answered.task, settings, settings.data)
    now = {"model_fingerprint": model_fingerprint(settings.model)}
    if answered.task.shots_from is not None:
        now["shots_sha256"] = json_sha256(pool)
    for name, value in now.items():
        if recorded.get(name, value) != value:
            raise UserError(
                f"{answered.summary_path}: answered with {name} = {recorded[name]!r}, now it is "
                f"{value!r}: the file that it comes from has changed"
            )
    tokenizer = load_tokenizer(settings.model, date=settings.date)
    builder = PromptBuilder(
        answered.task,
        settings,
        tokenizer,
        pool,
        answered.answers,
        device,
        resolve_dtype(settings.dtype, device),
    )
    prompts = builder.prompts(answered.answers, ModelConfig.load(resolve(settings.model)))
    examples = []
    for prompt, answer in zip(prompts, answered.answers, strict=True):
        if len(prompt) != answer["prompt_tokens"]:
            raise UserError(
                f"{answered.summary_path}: {answer['id']} was answered behind "
                f"{answer['prompt_tokens']} tokens, its prompt has {len(prompt)} now"
            )
        ids = answer["token_ids"]
        examples.append(Example(prompt + ids, [IGNORE_INDEX] * len(prompt) + ids))
    return examples


class TunedModels:
    """Loads tuned models, one at a time: mostly one has given all answers of a run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.asked: tuple[object, ...] | None = None
        self.model: Decoder | None = None

    def get(self, answered: Answered, adapter: str) -> Decoder:
        """The model with the adapter, at the scale that the answers were given with."""
        settings = answered.summary["settings"]
        scale = checked_field(settings, "adapter_scale", float, str(answered.summary_path))
        name, dtype, quantize = settings["model"], settings["dtype"], settings.get("quantize")
        asked = (name, dtype, quantize, adapter, scale)
        if self.model is None or asked != self.asked:
            self.model = None  # before the next one takes memory
            model = load_model(name, dtype=dtype, device=self.device, quantize=quantize)
            load_adapter(model, adapter)
            set_lora_scale(model, scale)
            self.model, self.asked = model, asked
        return self.model


def measure_task(answered: Answered, models: TunedModels) -> list[Record]:
    """A record for each answer: its id, the mean divergence along it, its tokens."""
    adapter = find_adapter(answered)
    means = [0.0] * len(answered.answers)
    if adapter is not None:
        examples = build_examples(answered, models.device)
        model = models.get(answered, adapter)
        with packed_weights(model):
            names = [answer["id"] for answer in answered.answers]
            means = mean_divergences(model, examples, names)
    records = []
    for answer, mean in zip(answered.answers, means, strict=True):
        about = {"id": answer["id"], "task": answered.task.name}
        records.append({**about, "kl": mean, "tokens": len(answer["token_ids"])})
    return records


def measure(settings: DivergenceSettings) -> None:
    run = settings.run
    tasks = [task for task in TASKS.values() if (run / f"{task.name}.summary.json").is_file()]
    if not tasks:
        raise UserError(f"{run}: no answers in it; first run: python generate.py --run {run}")
    every = [read_answered(run, task, settings.limit) for task in tasks]
    belongs_to: Record = {"limit": settings.limit}
    for answered in every:
        belongs_to[answered.task.name] = answered.settings()
    path = run / "kl.summary.json"
    if path.is_file():
        earlier = read_json(path)
        if earlier.get("settings") == belongs_to:
            print(f"{describe(earlier)} (measured already)")
            return
    if settings.dry_run:
        for answered in every:
            tokens = sum(len(answer["token_ids"]) for answer in answered.answers)
            print(f"{answered.task.name}: {len(answered.answers)} answers of {tokens} tokens")
        print(f"--dry-run: nothing was written to {run}")
        return
    runs.prepare_run(run)
    keep_freed_memory()
    device, begin = resolve_device(settings.device), time.perf_counter()
    records = []
    models = TunedModels(device)
    for answered in every:
        records += measure_task(answered, models)
    rewrite_records(run / "kl.jsonl", records)
    summary = {"task": "kl", "finished": True, "settings": belongs_to}
    for task in tasks:
        summary[task.name] = summarise([r["kl"] for r in records if r["task"] == task.name])
    summary["seconds"] = round(time.perf_counter() - begin, 3)
    summary["environment"] = runs.environment(device)
    write_json(path, summary)
    print(describe(summary))


def summarise(values: Sequence[float]) -> Record:
    """The mean of the answers' divergences, with its 95 % interval."""
    low, high = mean_interval(values)
    return {
        "mean": sum(values) / len(values),
        "low": low,
        "high": high,
        "answers": len(values),
    }


def describe(summary: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    parts = []
    for name in TASKS:
        if name in summary:
            kl = summary[name]
            interval = f"[{kl['low']:.4f}, {kl['high']:.4f}]"
            parts.append(f"{name} {kl['mean']:.4f} {interval} over {kl['answers']} answers")
    return f"KL from the base, nats a token: {', '.join(parts)}"


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(measure, parse_arguments(argv), OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
