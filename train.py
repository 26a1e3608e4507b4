"""Fine-tune a chat model on GSM8K with LoRA: python train.py

Writes RUN/adapter/ (PEFT's format), RUN/train.jsonl (a line a step) and RUN/train.summary.json.
After an interruption the same command goes on from the newest checkpoint in RUN/checkpoints/.

On several devices: torchrun --nproc-per-node N -- train.py. Each process takes its share of every
step's examples.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import cli, distributed, runs
from common.errors import UserError
from common.ranks import rank, world_size
from common.shots import make_selector, report_near_duplicates
from data.ailuminate import AILuminate
from data.examples import LOSSES, Example, build_example, describe_example, split_validation
from data.gsm8k import gsm8k_training_messages, load_gsm8k
from data.records import write_json
from data.sources import is_official
from llama.config import ModelConfig
from llama.decoding import check_prompts
from llama.hub import resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import LoRAConfig, adapter_fingerprint, inject_lora, load_adapter, save_adapter
from lora.adapter import CONFIG_FILE, WEIGHTS_FILE
from lora.kl_anchor import Anchor, build_anchors
from lora.layer import TARGETS
from lora.loop import TrainingRun
from lora.malloc import keep_freed_memory
from lora.onednn import packed_weights
from lora.trainer import SCHEDULES, Trainer, TrainerOptions


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_run_options(
        parser,
        "meta-llama/Llama-3.2-1B-Instruct",
        16,
        "examples per optimizer step, of all processes together (%(default)s)",
    )
    cli.add_prompt_options(parser)
    add_data_options(parser)
    add_adapter_options(parser)
    add_optimizer_options(parser)
    add_machine_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.fsdp and world_size() == 1:
        parser.error(
            "--fsdp needs several processes: torchrun --nproc-per-node N -- train.py --fsdp ..."
        )
    return arguments


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What is trained on."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="gsm8k",
        metavar="gsm8k|demo|FILE",
        help="FILE: JSONL in GSM8K's format (gsm8k)",
    )
    data.add_argument(
        "--loss",
        choices=LOSSES,
        default="answer",
        help="train on the answer, or on every token (answer)",
    )
    data.add_argument(
        "--system-header",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="--no-system-header trains without the system turn that the chat template prints on its own",
    )
    data.add_argument(
        "--validation",
        type=cli.non_negative_int,
        metavar="N",
        help="examples held out (64, at most a tenth)",
    )


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """What is trained, and what holds it near the base model."""
    adapter = parser.add_argument_group("LoRA")
    adapter.add_argument(
        "--rank", type=cli.positive_int, default=8, metavar="N", help="of the low-rank update (8)"
    )
    adapter.add_argument(
        "--alpha",
        type=cli.positive_float,
        default=16.0,
        metavar="X",
        help="update times alpha / rank (16)",
    )
    adapter.add_argument(
        "--dropout",
        type=cli.fraction,
        default=0.0,
        metavar="P",
        help="before the low-rank path (0)",
    )
    adapter.add_argument(
        "--target",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="adapted linears: all, attention, mlp, or names such as q_proj (all)",
    )
    adapter.add_argument(
        "--init-adapter",
        type=Path,
        metavar="DIR",
        help="go on training this adapter, not a new one",
    )
    keep = parser.add_argument_group("keeping what the base model does")
    keep.add_argument(
        "--kl-weight",
        type=cli.non_negative_float,
        default=0.0,
        metavar="X",
        help="adds X times the divergence from the base, on --kl-prompts, to the loss (0)",
    )
    keep.add_argument(
        "--kl-prompts",
        metavar="demo|ailuminate|FILE",
        help="log the divergence on these prompts and on held-out examples: the embedded hazard prompts, the official "
        "ones, a CSV in their format, or a JSONL in GSM8K's (with --kl-weight: demo)",
    )


def add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    """How it is trained, and for how long."""
    optimizer = parser.add_argument_group("optimizer")
    optimizer.add_argument(
        "--lr",
        type=cli.positive_float,
        default=2e-4,
        metavar="X",
        help="peak learning rate (0.0002)",
    )
    optimizer.add_argument(
        "--schedule", choices=SCHEDULES, default="cosine", help="after the warm-up (%(default)s)"
    )
    optimizer.add_argument(
        "--warmup",
        type=cli.fraction,
        default=0.03,
        metavar="P",
        help="as a share of the steps (0.03)",
    )
    length = optimizer.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=cli.positive_float,
        default=1.0,
        metavar="X",
        help="passes over the data (1)",
    )
    length.add_argument(
        "--steps", type=cli.positive_int, metavar="N", help="optimizer steps, instead of --epochs"
    )
    optimizer.add_argument(
        "--weight-decay", type=cli.non_negative_float, default=0.0, metavar="X", help="AdamW's (0)"
    )
    optimizer.add_argument(
        "--clip",
        type=cli.positive_float,
        default=1.0,
        metavar="X",
        help="largest norm of the gradients (1)",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """What costs memory, time and disk and leaves the result as it is."""
    machine = parser.add_argument_group("memory and checkpoints")
    machine.add_argument(
        "--micro-batch-tokens",
        type=cli.positive_int,
        default=1024,
        metavar="N",
        help="tokens in one forward pass: changes memory and speed, not the gradients (%(default)s)",
    )
    machine.add_argument(
        "--checkpoint-activations",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute blocks twice, hold weights once: half to two thirds of the memory, 50 to 75 %% more time",
    )
    machine.add_argument(
        "--fsdp",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with torchrun: shard the frozen weights, for models too large for one device",
    )
    machine.add_argument(
        "--checkpoint-every",
        type=cli.positive_int,
        default=50,
        metavar="N",
        help="steps; validates as well (%(default)s)",
    )
    machine.add_argument(
        "--keep-checkpoints",
        type=cli.positive_int,
        default=2,
        metavar="N",
        help="the last N stay, and the best by validation loss (%(default)s)",
    )


def build_examples(
    arguments: argparse.Namespace, tokenizer: Tokenizer
) -> tuple[list[Example], list[str]]:
    """The tokenised training examples and the ids of their records."""
    pool = load_gsm8k("gsm8k" if arguments.data == "official" else arguments.data, "train")
    records = pool[: arguments.limit]
    selector = make_selector(arguments, pool, records)
    report_near_duplicates(arguments, selector, records, "train")
    examples = []
    for record in tqdm(records, desc="tokenising", leave=False, disable=rank() > 0 or None):
        messages = gsm8k_training_messages(
            record["question"], record["answer"], selector.select(record)
        )
        examples.append(build_example(tokenizer, messages, arguments.loss, arguments.system_header))
    return examples, [record["id"] for record in records]


def training_settings(
    arguments: argparse.Namespace, dtype: torch.dtype, examples: list[Example]
) -> dict[str, Any]:
    """Every option that changes the result; the examples go in by their hash."""
    ignored = {
        "run",
        "resume",
        "dtype",
        "checkpoint_every",
        "data",
        "model",
        "epochs",
        "init_adapter",
    }
    ignored |= {"checkpoint_activations", "fsdp", "keep_checkpoints"}
    if (
        not arguments.dropout
    ):  # with dropout, which values are dropped depends on how a step is cut into passes
        ignored.add("micro_batch_tokens")
    if arguments.shot_selection != "similar":
        ignored |= {"embedder", "pooling"}
    settings = {name: value for name, value in vars(arguments).items() if name not in ignored}
    token_ids = json.dumps([[example.input_ids, example.labels] for example in examples]).encode()
    return {
        "model": str(arguments.model),
        "data": str(arguments.data),
        "init_adapter": adapter_fingerprint(arguments.init_adapter)
        if arguments.init_adapter
        else None,
        "dtype": str(dtype).removeprefix("torch."),
        **settings,
        "training_examples_sha256": hashlib.sha256(token_ids).hexdigest()[:12],
    }


def train(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    device = distributed.device_of_rank(cli.resolve_device(arguments.device))
    silent = contextlib.redirect_stdout(io.StringIO()) if rank() else contextlib.nullcontext()
    with silent, distributed.process_group(device):
        train_on(device, arguments)


def train_on(device: torch.device, arguments: argparse.Namespace) -> None:
    """The whole run, as one of the processes there are; rank 0 writes the files."""
    run: Path = arguments.run
    runs.prepare_run(run)
    runs.refuse_overwriting(arguments.data, run / "train.jsonl")
    dtype = cli.resolve_dtype(arguments.dtype, device)
    tokenizer = load_tokenizer(arguments.model, date=arguments.date)
    examples, names = build_examples(arguments, tokenizer)
    complete(arguments, len(examples))
    settings = training_settings(arguments, dtype, examples)
    summary_path, adapter = run / "train.summary.json", run / "adapter"
    earlier = runs.load_previous_summary(
        run / "train.jsonl", summary_path, settings, arguments.resume, may_change=("device",)
    )
    if earlier.get("finished") and all(
        (adapter / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)
    ):
        print(f"{adapter} is finished already; --no-resume trains it again")
        return
    training, validation = split_validation(examples, arguments.validation, arguments.seed)
    print(describe_example(tokenizer, training[0]), flush=True)

    config = ModelConfig.load(resolve(arguments.model, allow_weights=False))
    check_prompts(config, [example.input_ids[:-1] for example in examples], names)
    model = build_model(arguments, dtype, device)
    anchors = build_anchors(model, tokenizer, arguments.kl_prompts) if arguments.kl_prompts else []
    trainer = build_trainer(arguments, dtype, model, anchors)
    distributed.barrier()  # nobody writes before all have read what an earlier call left
    first = rank() == 0
    if (
        first and not earlier
    ):  # other checkpoints must be gone before this summary vouches for what is there
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    if first:
        write_json(summary_path, {"task": "train", "finished": False, "settings": settings})
    distributed.barrier()
    log = TrainingRun(run, trainer, anchors)
    # Packed weights are faster, but each is there twice: not where memory is what counts.
    with contextlib.nullcontext() if arguments.checkpoint_activations else packed_weights(model):
        log.follow(training, validation, arguments)
    if not first:
        return
    save_adapter(model, adapter, base_model=str(arguments.model))
    summary = {
        "task": "train",
        "finished": True,
        "settings": settings,
        **log.summary(len(training)),
    }
    summary |= {
        "adapter_fingerprint": adapter_fingerprint(adapter),
        "environment": runs.environment(device),
    }
    write_json(summary_path, summary)
    print(f"{adapter}: {describe(summary)}")


def complete(arguments: argparse.Namespace, examples: int) -> None:
    """Fill in what depends on other options or on the number of examples. UserError for what must
    not go together.
    """
    if arguments.kl_weight and arguments.kl_prompts is None:
        arguments.kl_prompts = "demo"
    tested_on = arguments.kl_prompts == "ailuminate" or is_official(
        arguments.kl_prompts or "", AILuminate.official["test"]
    )
    if arguments.kl_weight and tested_on:
        raise UserError(
            f"--kl-weight with --kl-prompts {arguments.kl_prompts} would train on the prompts that are tested on"
        )
    if arguments.validation is None:
        arguments.validation = min(64, examples // 10)
    if arguments.steps is None:
        held_in = examples - arguments.validation
        arguments.steps = max(
            1, round(arguments.epochs * math.ceil(held_in / arguments.batch_size))
        )


def build_model(arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The base with its LoRA layers, new or of --init-adapter."""
    whole_on = (
        torch.device("cpu") if arguments.fsdp else device
    )  # sharding moves each part to where it belongs
    model = load_model(arguments.model, dtype=dtype, device=whole_on, quantize=arguments.quantize)
    torch.manual_seed(arguments.seed)
    targets = tuple(name for target in arguments.target for name in TARGETS.get(target, (target,)))
    inject_lora(model, LoRAConfig(arguments.rank, arguments.alpha, arguments.dropout, targets))
    if arguments.init_adapter:
        load_adapter(model, arguments.init_adapter)
    return model


def build_trainer(
    arguments: argparse.Namespace, dtype: torch.dtype, model: Decoder, anchors: list[Example]
) -> Trainer:
    options = TrainerOptions(
        total_steps=arguments.steps,
        learning_rate=arguments.lr,
        schedule=arguments.schedule,
        warmup_steps=round(arguments.warmup * arguments.steps),
        weight_decay=arguments.weight_decay,
        clip_norm=arguments.clip,
        micro_batch_tokens=arguments.micro_batch_tokens,
        seed=arguments.seed,
        dtype=dtype,
        checkpoint_activations=arguments.checkpoint_activations,
        fsdp=arguments.fsdp,
    )
    anchor = None
    if arguments.kl_weight:
        anchor = Anchor(model, anchors, arguments.kl_weight, arguments.batch_size, arguments.seed)
    return Trainer(model, options, anchor)


def describe(summary: dict[str, Any]) -> str:
    """One line for the terminal."""
    text = (
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['examples_per_second']:.2f} examples/s, "
        f"loss {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}"
    )
    return text + (
        f", {summary['skipped_steps']} steps skipped for overflow"
        if summary["skipped_steps"]
        else ""
    )


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(train, parse_arguments(argv))


if __name__ == "__main__":
    distributed.flush_and_exit(main())
