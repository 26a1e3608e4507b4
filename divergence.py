"""How far a run's model has moved from its base, in what it wrote: python divergence.py --run RUN

KL(base || tuned), in nats a token, along the answers in RUN/gsm8k.jsonl and RUN/ailuminate.jsonl;
base and tuned are the same weights with the adapter off and on. Writes RUN/kl.jsonl, a line an
answer, and RUN/kl.summary.json, which report.py shows.
"""

import argparse
import hashlib
import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from common import cli, runs
from common.devices import resolve_device, resolve_dtype
from common.errors import UserError
from common.shots import make_selector
from data.answers import read_answers
from data.examples import IGNORE_INDEX, Example
from data.intervals import mean_interval
from data.records import read_json, rewrite_records, write_json
from generate import TASKS, build_prompts, load_shots, sha256
from llama.tokenizer import load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, load_adapter, set_lora_scale
from lora.kl import mean_divergences
from lora.malloc import keep_freed_memory
from lora.onednn import packed_weights

Record = dict[str, Any]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/default"),
        metavar="DIR",
        help="run folder (%(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=cli.positive_int,
        default=200,
        metavar="N",
        help="answers to each task (200)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: CUDA if there is one"
    )
    return parser.parse_args(argv)


def read_task(run: Path, task: str, limit: int) -> tuple[Record, list[Record]]:
    """The task's summary and `limit` of its answers, evenly spread. UserError unless it is finished
    and whole.
    """
    summary = read_json(run / f"{task}.summary.json")
    if not summary.get("finished"):
        raise UserError(
            f"{run / task}.summary.json: not finished; finish it with generate.py --task {task}"
        )
    path = run / f"{task}.jsonl"
    answers = sorted(read_answers(path, task, []).values(), key=lambda answer: answer["id"])
    empty = next((answer["id"] for answer in answers if not answer["token_ids"]), None)
    if empty or not answers or "settings" not in summary:
        lacking = (
            f"{empty} has no tokens" if empty else "no answers, or their summary has no settings"
        )
        raise UserError(f"{path}: {lacking}; answer again with generate.py --no-resume")
    count = min(limit, len(answers))
    return summary, [answers[i * len(answers) // count] for i in range(count)]


def find_adapter(run: Path, task: str, summary: Record) -> str | None:
    """Where the adapter lies that the answers were given with. UserError if it is there no more."""
    fingerprint, path = summary["settings"].get("adapter"), summary.get("adapter_path")
    if fingerprint is None:
        return None
    if path is None or not Path(path).is_dir() or adapter_fingerprint(path) != fingerprint:
        raise UserError(
            f"{run / task}.summary.json: answered with adapter {fingerprint} from {path}, which is not there as it "
            "was; answer again with generate.py --no-resume"
        )
    return path


def measure_task(
    run: Path, task: str, summary: Record, answers: list[Record], device: torch.device
) -> list[Record]:
    """A record for each answer: its id, the mean divergence along it, its tokens."""
    settings, adapter = summary["settings"], find_adapter(run, task, summary)
    if adapter is None:
        means = [0.0] * len(answers)
    else:
        asked: Any = Namespace(**{"system": None, **settings, "run": run, "device": str(device)})
        tokenizer = load_tokenizer(settings["model"], date=settings["date"])
        selector = None
        if task == "gsm8k":
            pool = load_shots(asked)
            if sha256(pool) != settings["shots_sha256"]:
                raise UserError(
                    f"{run / task}.summary.json: answered with shots_sha256 = {settings['shots_sha256']!r}, now it is "
                    f"{sha256(pool)!r}: the file that shots come from has changed"
                )
            dtype = resolve_dtype(settings["dtype"], device)
            selector = make_selector(asked, pool, answers, device, dtype)
        prompts = build_prompts(task, answers, selector, asked, tokenizer)
        model = load_model(
            settings["model"],
            dtype=settings["dtype"],
            device=device,
            quantize=settings.get("quantize"),
        )
        load_adapter(model, adapter)
        set_lora_scale(model, settings["adapter_scale"])
        pairs = zip(prompts, (answer["token_ids"] for answer in answers), strict=True)
        with packed_weights(model):
            means = mean_divergences(
                model, [Example(p + t, [IGNORE_INDEX] * len(p) + t) for p, t in pairs]
            )
    return [
        {"id": answer["id"], "task": task, "kl": mean, "tokens": len(answer["token_ids"])}
        for answer, mean in zip(answers, means, strict=True)
    ]


def measure(arguments: argparse.Namespace) -> None:
    run: Path = arguments.run
    tasks = [task for task in TASKS if (run / f"{task}.summary.json").is_file()]
    if not tasks:
        raise UserError(f"{run}: no answers in it; first run: python generate.py --run {run}")
    found = {task: read_task(run, task, arguments.limit) for task in tasks}
    settings: Record = {"limit": arguments.limit}
    for task, (summary, answers) in found.items():
        ids = [[answer["id"], answer["token_ids"]] for answer in answers]
        about = {
            name: summary["settings"].get(name)
            for name in ("model", "adapter", "adapter_scale", "dtype")
        }
        settings[task] = about | {
            "answers_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]
        }
    path = run / "kl.summary.json"
    if path.is_file() and (summary := read_json(path)).get("settings") == settings:
        print(f"{describe(summary)} (measured already)")
        return
    keep_freed_memory()
    device, begin = resolve_device(arguments.device), time.perf_counter()
    records = [
        record
        for task, (summary, answers) in found.items()
        for record in measure_task(run, task, summary, answers, device)
    ]
    rewrite_records(run / "kl.jsonl", records)
    summary = {"task": "kl", "finished": True, "settings": settings}
    for task in tasks:
        values = [record["kl"] for record in records if record["task"] == task]
        low, high = mean_interval(values)
        summary[task] = {
            "mean": sum(values) / len(values),
            "low": low,
            "high": high,
            "answers": len(values),
        }
    summary |= {
        "seconds": round(time.perf_counter() - begin, 3),
        "environment": runs.environment(device),
    }
    write_json(path, summary)
    print(describe(summary))


def describe(summary: Record) -> str:
    """One line for the terminal."""
    parts = [
        f"{task} {kl['mean']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}] over {kl['answers']} answers"
        for task in TASKS
        if (kl := summary.get(task))
    ]
    return f"KL from the base, nats a token: {', '.join(parts)}"


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(measure, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
