"""Training speed and memory beside TRL + PEFT: python -m benchmarks.train

Each trainer runs in a process of its own on the same examples in the same order, from the same
initial adapter, in float32, with AdamW at a constant learning rate. TRL runs once for each size of
its micro-batches (gradients are accumulated up to the step's examples); the table names the
fastest. The first step warms up and is not counted.

The arithmetic limit is the time of the products alone that the loss needs: two for each frozen
weight and token, the prompt prefix that a step's examples share counted once, the output head where
a token is supervised; attention is left out. They are taken to run at the rate of a large product,
measured in the same process.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.cli import run_script
from common.command_line import parse_settings
from common.errors import UserError
from common.options import option, positive_int
from data.examples import LOSSES
from llama import load_model
from lora import LoRAConfig, inject_lora, save_adapter

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = (
    "shots",
    "loss",
    "examples a step",
    "examples/s",
    "TRL",
    "ratio",
    "tokens/s",
    "TRL",
    "peak GiB",
    "TRL",
    "TRL's least",
    "TRL's micro-batch",
    "arithmetic limit",
    "largest loss difference",
)
Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingBenchmarkSettings:
    """The options of the benchmark."""

    model: str = option("smollm2", "local folder, Hub id or alias (%(default)s)")
    data: str = option("gsm8k", "gsm8k, demo or a file (%(default)s)")
    shots: tuple[str, ...] = option(
        ("0", "1", "3", "3r"), "fixed, or r: random shots (0 1 3 3r)", nargs="+", metavar="N|Nr"
    )
    batch_sizes: tuple[int, ...] = option(
        (16, 4), "examples a step (16 4)", parse=positive_int, nargs="+", metavar="N"
    )
    losses: tuple[str, ...] = option(
        ("answer",), "answer and/or all (answer)", choices=LOSSES, nargs="+"
    )
    steps: int = option(3, "timed steps after the first (%(default)s)", parse=positive_int)
    peer_batches: tuple[int, ...] = option(
        (1, 2, 4), "TRL's micro-batches (1 2 4)", parse=positive_int, nargs="+", metavar="N"
    )
    micro_batch_tokens: int = option(
        1024, "of this project's trainer (%(default)s)", parse=positive_int, metavar="N"
    )
    checkpoint_activations: bool = option(
        False, "train as train.py does with this option", flag=True
    )


def run_job(job: Job) -> dict[str, Any]:
    """`job` in a fresh process, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "job.json", Path(folder) / "result.json"
        request.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.trainers", str(request), str(result)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{job}: " + "\n".join(done.stderr.splitlines()[-15:]))
        return json.loads(result.read_text())


def compare(job: Job, peer_batches: tuple[int, ...]) -> str:
    """One row of the table."""
    ours = run_job(job)
    peers = {}
    for size in peer_batches:
        if job["batch_size"] % size == 0:
            peers[size] = run_job(job | {"micro_batch": size})
    fastest = min(peers, key=lambda size: peers[size]["seconds"])
    peer = peers[fastest]
    least_memory = min(result["memory"] for result in peers.values())
    difference = max(abs(a - b) for a, b in zip(ours["losses"], peer["losses"], strict=True))
    share = ours["needed_flops"] / ours["flops_per_second"] / ours["seconds"]
    cells = [
        job["shots"].replace("r", " random"),
        job["loss"],
        job["batch_size"],
        *(f"{result['examples'] / result['seconds']:.2f}" for result in (ours, peer)),
        f"**{peer['seconds'] / ours['seconds']:.2f}**",
        *(f"{result['tokens'] / result['seconds']:.0f}" for result in (ours, peer)),
        *(f"{result['memory'] / 2**30:.2f}" for result in (ours, peer)),
        f"{least_memory / 2**30:.2f}",
        fastest,
        f"{share:.0%} of {ours['flops_per_second'] / 1e9:.0f} GFLOP/s",
        f"{difference:.0e}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def save_initial_adapter(model: str, folder: Path) -> None:
    """The adapter that every trainer starts from."""
    decoder = load_model(model)
    torch.manual_seed(0)
    inject_lora(decoder, LoRAConfig())
    save_adapter(decoder, folder)


def benchmark(settings: TrainingBenchmarkSettings) -> None:
    """Print the table, a row as soon as it is measured."""
    try:
        import trl
    except ImportError:
        raise UserError("the benchmark compares with TRL: pip install trl") from None
    threads = torch.get_num_threads()
    print(
        f"torch {torch.__version__}, TRL {trl.__version__}, {threads} threads, {settings.model}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with tempfile.TemporaryDirectory() as adapter:
        save_initial_adapter(settings.model, Path(adapter))
        shared = {
            "model": settings.model,
            "data": settings.data,
            "steps": settings.steps,
            "micro_batch_tokens": settings.micro_batch_tokens,
            "checkpoint_activations": settings.checkpoint_activations,
            "adapter": adapter,
        }
        for loss in settings.losses:
            for batch_size in settings.batch_sizes:
                for shots in settings.shots:
                    job = {**shared, "shots": shots, "loss": loss, "batch_size": batch_size}
                    print(compare(job, settings.peer_batches), flush=True)


def main(argv: list[str] | None = None) -> int:
    return run_script(benchmark, parse_settings(TrainingBenchmarkSettings, __doc__, argv))


if __name__ == "__main__":
    sys.exit(main())
