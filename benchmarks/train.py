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

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from common.runs import peak_memory_bytes
from data.examples import LOSSES, Example, build_example
from data.few_shot import FewShotSampler
from data.gsm8k import gsm8k_training_messages, load_gsm8k
from llama import load_model, load_tokenizer
from llama.config import ModelConfig
from llama.engine import common_prefix_length
from llama.hub import resolve
from lora import LoRAConfig, inject_lora, load_adapter, save_adapter
from lora.malloc import keep_freed_memory
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions, count_supervised, training_batches

LEARNING_RATE = 2e-4
CPU = torch.device("cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="smollm2", help="local folder, Hub id or alias (%(default)s)"
    )
    parser.add_argument("--data", default="gsm8k", help="gsm8k, demo or a file (%(default)s)")
    parser.add_argument(
        "--shots",
        nargs="+",
        default=["0", "1", "3", "3r"],
        metavar="N|Nr",
        help="fixed, or r: random shots (0 1 3 3r)",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        type=int,
        default=[16, 4],
        metavar="N",
        help="examples a step (16 4)",
    )
    parser.add_argument(
        "--losses", nargs="+", choices=LOSSES, default=["answer"], help="answer and/or all (answer)"
    )
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps after the first (%(default)s)"
    )
    parser.add_argument(
        "--peer-batches", nargs="+", type=int, default=[1, 2, 4], help="TRL's micro-batches (1 2 4)"
    )
    parser.add_argument(
        "--micro-batch-tokens",
        type=int,
        default=1024,
        help="of this project's trainer (%(default)s)",
    )
    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="train as train.py does with this option",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def step_batches(job: dict[str, Any]) -> list[list[Example]]:
    """The examples of each step, the first one included."""
    pool = load_gsm8k(job["data"], "train")
    selection = "random" if job["shots"].endswith("r") else "fixed"
    selector = FewShotSampler(pool, int(job["shots"].removesuffix("r")), selection, seed=0)
    tokenizer = load_tokenizer(job["model"])
    count, steps = job["batch_size"], job["steps"] + 1
    examples = []
    for record in pool[-count * steps :]:  # the last ones: the first are the fixed shots
        messages = gsm8k_training_messages(
            record["question"], record["answer"], selector.select(record)
        )
        examples.append(build_example(tokenizer, messages, job["loss"]))
    return list(training_batches(examples, count, seed=0, first_step=0, total_steps=steps))


def run_ours(job: dict[str, Any], batches: list[list[Example]]) -> dict[str, Any]:
    keep_freed_memory()
    model = load_model(job["model"])
    load_adapter(model, job["adapter"])
    options = TrainerOptions(
        len(batches),
        LEARNING_RATE,
        schedule="constant",
        micro_batch_tokens=job["micro_batch_tokens"],
        checkpoint_activations=job["checkpoint_activations"],
    )
    trainer = Trainer(model, options)
    losses, times = [], [time.perf_counter()]
    with nullcontext() if options.checkpoint_activations else packed_weights(model):
        for batch in batches:
            losses.append(trainer.step(batch).loss)
            times.append(time.perf_counter())
    memory = peak_memory_bytes(CPU)
    return {
        "losses": losses,
        "seconds": times[-1] - times[1],
        "memory": memory,
        "flops_per_second": product_rate(),
    }


def run_trl(job: dict[str, Any], batches: list[list[Example]]) -> dict[str, Any]:
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    folder = str(resolve(job["model"]))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    rows = [{"input_ids": e.input_ids, "labels": e.labels} for batch in batches for e in batch]
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset or self.train_dataset)

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["batch_size"] // job["micro_batch"],
        max_steps=len(batches),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = InOrder(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.add_callback(Clock())
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {"losses": losses, "seconds": times[-1] - times[0], "memory": peak_memory_bytes(CPU)}


def product_rate() -> float:
    """Floating-point operations a second of one large float32 product: the best of ten."""
    left, right, best = torch.randn(1024, 1536), torch.randn(1536, 1024), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begin)
    return 2 * 1024 * 1536 * 1024 / best


def needed_flops(model: str, batches: list[list[Example]]) -> float:
    """Of the products that the timed steps need."""
    config = ModelConfig.load(resolve(model))
    attention = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    block = config.hidden_size * (attention * config.head_dim + 3 * config.intermediate_size)
    total = 0
    for batch in batches[1:]:
        shared = common_prefix_length([example.input_ids for example in batch])
        tokens = shared + sum(len(example.input_ids) - shared for example in batch)
        total += 2 * 2 * tokens * block * config.num_hidden_layers
        total += 2 * 2 * count_supervised(batch) * config.hidden_size * config.vocab_size
    return total


def worker(job: dict[str, Any]) -> None:
    batches = step_batches(job)
    result = (run_trl if "micro_batch" in job else run_ours)(job, batches)
    timed = [example for batch in batches[1:] for example in batch]
    result["examples"], result["tokens"] = (
        len(timed),
        sum(len(example.input_ids) for example in timed),
    )
    result["needed_flops"] = needed_flops(job["model"], batches)
    Path(job["output"]).write_text(json.dumps(result))


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """`job` in a fresh process, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        words = [
            sys.executable,
            "-m",
            "benchmarks.train",
            "--worker",
            json.dumps(job | {"output": str(output)}),
        ]
        done = subprocess.run(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        if done.returncode:
            raise SystemExit(f"{job}: " + "\n".join(done.stderr.splitlines()[-15:]))
        return json.loads(output.read_text())


def compare(job: dict[str, Any], peer_batches: list[int]) -> str:
    """One row of the table."""
    ours = run_job(job)
    peers = {
        size: run_job(job | {"micro_batch": size})
        for size in peer_batches
        if job["batch_size"] % size == 0
    }
    fastest = min(peers, key=lambda size: peers[size]["seconds"])
    peer = peers[fastest]
    difference = max(abs(a - b) for a, b in zip(ours["losses"], peer["losses"], strict=True))
    limit = ours["needed_flops"] / ours["flops_per_second"]
    cells = [
        job["shots"].replace("r", " random"),
        job["loss"],
        job["batch_size"],
        *(f"{result['examples'] / result['seconds']:.2f}" for result in (ours, peer)),
        f"**{peer['seconds'] / ours['seconds']:.2f}**",
        *(f"{result['tokens'] / result['seconds']:.0f}" for result in (ours, peer)),
        *(f"{result['memory'] / 2**30:.2f}" for result in (ours, peer)),
        f"{min(result['memory'] for result in peers.values()) / 2**30:.2f}",
        fastest,
        f"{limit / ours['seconds']:.0%} of {ours['flops_per_second'] / 1e9:.0f} GFLOP/s",
        f"{difference:.0e}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        worker(json.loads(arguments.worker))
        return
    try:
        import trl
    except ImportError:
        raise SystemExit("the benchmark compares with TRL: pip install trl") from None
    print(
        f"torch {torch.__version__}, TRL {trl.__version__}, {torch.get_num_threads()} threads, {arguments.model}\n"
    )
    names = "shots, loss, examples a step, examples/s, TRL, ratio, tokens/s, TRL, peak GiB, TRL, TRL's least"
    names = [*names.split(", "), "TRL's micro-batch", "arithmetic limit", "largest loss difference"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|", flush=True)
    with tempfile.TemporaryDirectory() as adapter:
        model = load_model(arguments.model)
        torch.manual_seed(0)
        inject_lora(model, LoRAConfig())
        save_adapter(model, adapter)
        del model
        for loss in arguments.losses:
            for batch_size in arguments.batch_sizes:
                for shots in arguments.shots:
                    options = (
                        "model",
                        "data",
                        "steps",
                        "micro_batch_tokens",
                        "checkpoint_activations",
                    )
                    job = {name: getattr(arguments, name) for name in options}
                    job |= {
                        "shots": shots,
                        "loss": loss,
                        "batch_size": batch_size,
                        "adapter": adapter,
                    }
                    print(compare(job, arguments.peer_batches), flush=True)


if __name__ == "__main__":
    main()
