"""Greedy decoding of GSM8K questions side by side with other engines, in float32: seconds, memory,
tokens, limits.

    python -m benchmarks.decode --questions 64 --engines unforget transformers

Every engine gets the same prompts as token ids, the same number of threads and a process of its
own; repeats are interleaved and the median counts. See benchmarks/README.md for how to install the
peers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.compare import compare_tokens, ratios
from benchmarks.engines import ENGINES
from benchmarks.machine import cpu_name
from benchmarks.tables import markdown
from common.cli import Parser, positive_int, run_script
from common.errors import UserError
from data.few_shot import FewShotSampler
from data.gsm8k import gsm8k_messages, load_gsm8k
from llama import load_tokenizer
from llama.hub import resolve

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"0-shot": (0, "fixed"), "fixed-3-shot": (3, "fixed"), "random-3-shot": (3, "random")}
ONE_PROMPT_ENGINES = ("unforget", "transformers")
INSTALL = {
    "transformers": "pip install transformers",
    "llama.cpp": "pip install llama-cpp-python, or --target DIR and PYTHONPATH=DIR",
    "openvino": "pip install openvino-genai openvino-tokenizers optimum-intel in a venv; --openvino-python its python",
}
EXPORT = (
    "optimum-cli export openvino --model CHECKPOINT --task text-generation-with-past --weight-format fp32 DIR "
    "&& convert_tokenizer CHECKPOINT -o DIR"
)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        default="smollm2",
        help="checkpoint folder, Hugging Face id or smollm2 (%(default)s)",
    )
    add(
        "--data",
        default="gsm8k",
        help="gsm8k, demo or a JSONL file in GSM8K's format (%(default)s)",
    )
    add(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=["fixed-3-shot"],
        metavar="NAME",
        help=", ".join(SETTINGS),
    )
    add(
        "--engines",
        nargs="+",
        choices=ENGINES,
        default=["unforget", "transformers"],
        help=", ".join(ENGINES),
    )
    add(
        "--questions",
        type=positive_int,
        default=64,
        metavar="N",
        help="the first N test questions (%(default)s)",
    )
    add(
        "--transformers-questions",
        type=positive_int,
        metavar="N",
        help="transformers answers the first N only (all)",
    )
    add(
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="of each answer (%(default)s)",
    )
    add(
        "--batch-size",
        type=positive_int,
        default=32,
        metavar="N",
        help="rows in flight (%(default)s)",
    )
    add(
        "--our-batch-size",
        type=positive_int,
        metavar="N",
        help="this project's rows in flight (--batch-size)",
    )
    add(
        "--repeats",
        type=positive_int,
        default=1,
        metavar="N",
        help="runs of every engine, in turn (%(default)s)",
    )
    add(
        "--one-prompt",
        type=positive_int,
        metavar="N",
        help="also the first prompt alone, N times in turn",
    )
    add(
        "--threads",
        type=positive_int,
        default=os.cpu_count(),
        metavar="N",
        help="of every engine (%(default)s)",
    )
    add(
        "--gguf",
        type=Path,
        metavar="FILE",
        help="the model for llama.cpp, float32 (made for smollm2)",
    )
    add(
        "--openvino-python",
        default=sys.executable,
        metavar="PATH",
        help="Python that has openvino-genai (this one)",
    )
    add(
        "--openvino-model",
        type=Path,
        metavar="DIR",
        help="the model for OpenVINO, exported in float32",
    )
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="write FILE as JSON and its table beside it as .md",
    )
    return parser


def make_prompts(args: argparse.Namespace, setting: str) -> list[list[int]]:
    """The token ids of the first questions' chats."""
    tokenizer = load_tokenizer(args.model)
    records = load_gsm8k(args.data, "test")
    if args.questions > len(records):
        raise UserError(
            f"--questions {args.questions}: {args.data} has {len(records)}; give at most as many"
        )
    shots, selection = SETTINGS[setting]
    selector = FewShotSampler(load_gsm8k(args.data, "train"), shots, selection, seed=0)
    return [
        tokenizer.encode_chat(gsm8k_messages(record["question"], selector.select(record)))
        for record in records[: args.questions]
    ]


def request_for(args: argparse.Namespace, engine: str, prompts: list[list[int]]) -> dict[str, Any]:
    """What the engine's process is told."""
    count = args.transformers_questions if engine == "transformers" else None
    return {
        "engine": engine,
        "model": str(args.model_folder),
        "prompts": prompts[:count],
        "max_new_tokens": args.max_new_tokens,
        "stop_ids": args.stop_ids,
        "batch_size": args.our_batch_size or args.batch_size
        if engine == "unforget"
        else args.batch_size,
        "threads": args.threads,
        "gguf": str(args.gguf),
        "openvino_model": str(args.openvino_model),
    }


def check_peers(args: argparse.Namespace) -> None:
    """Make the peers' model files where we can. UserError says what is missing and how to get
    it.
    """
    imports = {
        "transformers": "transformers",
        "llama.cpp": "llama_cpp",
        "openvino": "openvino_genai",
    }
    for engine in [engine for engine in args.engines if engine in imports]:
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{imports[engine]}') is None)"
        command = [python_of(args, engine), "-c", find]
        if subprocess.run(command, env=environment(args, engine), capture_output=True).returncode:
            raise UserError(f"{command[0]} cannot import {imports[engine]}: {INSTALL[engine]}")
    if "openvino" in args.engines and not (args.openvino_model and args.openvino_model.is_dir()):
        raise UserError(
            f"--openvino-model {args.openvino_model}: no such folder; export one with: {EXPORT}"
        )
    if "llama.cpp" in args.engines and args.gguf is None:
        if args.model != "smollm2":
            raise UserError(
                f"--model {args.model}: llama.cpp needs --gguf FILE, the same weights in float32"
            )
        from benchmarks.f32_gguf import f32_gguf

        args.gguf = f32_gguf()


def python_of(args: argparse.Namespace, engine: str) -> str:
    return args.openvino_python if engine == "openvino" else sys.executable


def environment(args: argparse.Namespace, engine: str) -> dict[str, str]:
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "MKL_NUM_THREADS": str(args.threads),
    }
    if engine == "openvino":
        variables.pop("PYTHONPATH", None)  # what it adds is for our own Python
    return variables


def run_engine(args: argparse.Namespace, engine: str, prompts: list[list[int]]) -> dict[str, Any]:
    """The result of one engine's process. UserError with its last line if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        request.write_text(json.dumps(request_for(args, engine, prompts)))
        command = [python_of(args, engine), "-m", "benchmarks.engines", str(request), str(result)]
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(args, engine),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if process.returncode:
            last = (process.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[
                -1
            ]
            raise UserError(f"{engine} failed with status {process.returncode}: {last}")
        return json.loads(result.read_text())


def measure(
    args: argparse.Namespace, engines: list[str], prompts: list[list[int]], repeats: int
) -> dict[str, Any]:
    """Each engine's last result with the seconds of all runs, their median and the largest peak
    memory.
    """
    runs = {engine: [] for engine in engines}
    for repeat in range(repeats):
        for engine in engines:
            runs[engine].append(run_engine(args, engine, prompts))
            seconds = runs[engine][-1]["seconds"]
            print(f"  {engine}, run {repeat + 1}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return {engine: summary(results) for engine, results in runs.items()}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [result["seconds"] for result in results]
    return {
        **results[-1],
        "questions": len(results[-1]["token_ids"]),
        "seconds": median(seconds),
        "seconds_of_runs": seconds,
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
        "same_tokens_every_run": all(
            result["token_ids"] == results[0]["token_ids"] for result in results
        ),
    }


def measure_machine(args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.machine", str(args.threads)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def benchmark(args: argparse.Namespace) -> None:
    """Everything the options ask for; prints the tables and writes them to --output."""
    args.model_folder = resolve(args.model)
    args.stop_ids = sorted(load_tokenizer(args.model).stop_ids)
    check_peers(args)
    report = {
        "options": {name: value for name, value in vars(args).items() if name != "model_folder"},
        "machine": {"cpu": cpu_name(), "threads": args.threads, "python": sys.version.split()[0]},
        "settings": {},
    }
    limits = []
    for setting in args.settings:
        print(setting, file=sys.stderr)
        prompts = make_prompts(args, setting)
        limits.append(measure_machine(args))
        engines = measure(args, args.engines, prompts, args.repeats)
        section = report["settings"][setting] = {
            "prompt_tokens": sum(map(len, prompts)),
            "engines": engines,
        }
        if args.one_prompt:
            wanted = [engine for engine in ONE_PROMPT_ENGINES if engine in args.engines]
            section["one_prompt"] = measure(args, wanted, prompts[:1], args.one_prompt)
        section["differences"] = compare_tokens(args.model_folder, prompts, engines)
    limits.append(measure_machine(args))
    report["machine"] |= {name: max(limit[name] for limit in limits) for name in limits[0]}
    for setting, section in report["settings"].items():
        ratios(section, make_prompts(args, setting), report["machine"])
    table = markdown(report)
    print(table)
    if args.output:
        args.output.write_text(json.dumps(report, indent=1, default=str) + "\n")
        args.output.with_suffix(".md").write_text(table)


def main(argv: list[str] | None = None) -> int:
    return run_script(benchmark, build_parser().parse_args(argv))


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count())
    sys.exit(main())
