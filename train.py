"""Fine-tune a chat model on GSM8K with LoRA: python train.py

Writes RUN/adapter/ (PEFT's format), RUN/train.jsonl (a line a step) and RUN/train.summary.json.
After an interruption the same command goes on from the newest checkpoint in RUN/checkpoints/.
--dry-run says what would be trained, in how many steps and how much memory.

On several devices: torchrun --nproc-per-node N -- train.py. Each process takes its share of every
step's examples.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import contextlib
import hashlib
import io
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import cli, distributed, runs
from common.devices import resolve_device, resolve_dtype
from common.errors import UserError
from common.options import (
    Scope,
    fraction,
    non_negative_float,
    non_negative_int,
    option,
    parse_settings,
    positive_float,
    positive_int,
    recorded,
)
from common.ranks import rank, world_size
from common.run_folder import set_aside
from common.settings import PromptSettings, RunSettings
from common.shots import make_selector, report_near_duplicates
from data.ailuminate import AILuminate
from data.examples import LOSSES, Example, build_example, describe_example, split_validation
from data.gsm8k import gsm8k_training_messages, load_gsm8k
from data.records import write_json
from data.sources import is_official
from llama.config import ModelConfig
from llama.decoding import check_prompts
from llama.hub import name_for_others, resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import LoRAConfig, adapter_fingerprint, inject_lora, load_adapter, save_adapter
from lora.adapter import CONFIG_FILE, WEIGHTS_FILE
from lora.kl_anchor import Anchor, build_anchors
from lora.layer import TARGETS
from lora.loop import TrainingRun
from lora.malloc import keep_freed_memory
from lora.memory_estimate import estimate_memory
from lora.onednn import packed_weights
from lora.trainer import SCHEDULES, Trainer, TrainerOptions

DATA, LORA, KEEPING = "data", "LoRA", "keeping what the base model does"
OPTIMIZER, MACHINE = "optimizer", "memory and checkpoints"
OUT_OF_MEMORY = (
    "try a smaller --micro-batch-tokens or --checkpoint-activations, which leave the result as it "
    "is (--batch-size changes it)"
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(PromptSettings, RunSettings):
    """What train.py can be told."""

    limit: int | None = option(
        None, "use only the first N records (all)", parse=positive_int, metavar="N"
    )
    batch_size: int = option(
        16,
        "examples per optimizer step, of all processes together (%(default)s)",
        parse=positive_int,
        metavar="N",
    )
    shots_data: str | None = option(
        None,
        "shots from this file, in GSM8K's format, instead of the training data",
        metavar="FILE",
    )
    data: str = option(
        "gsm8k",
        "FILE: JSONL in GSM8K's format (%(default)s)",
        metavar="gsm8k|demo|FILE",
        group=DATA,
    )
    loss: str = option(
        "answer", "train on the answer, or on every token (%(default)s)", choices=LOSSES, group=DATA
    )
    system_header: bool = option(
        True,
        "--no-system-header trains without the system turn that the chat template prints on its "
        "own",
        group=DATA,
    )
    validation: int | None = option(
        None,
        "examples held out (64, at most a tenth)",
        parse=non_negative_int,
        metavar="N",
        group=DATA,
    )
    rank: int = option(
        8, "of the low-rank update (%(default)s)", parse=positive_int, metavar="N", group=LORA
    )
    alpha: float = option(
        16.0,
        "update times alpha / rank (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=LORA,
    )
    dropout: float = option(
        0.0, "before the low-rank path (%(default)s)", parse=fraction, metavar="P", group=LORA
    )
    target: tuple[str, ...] = option(
        ("all",),
        "adapted linears: all, attention, mlp, or names such as q_proj (all)",
        nargs="+",
        metavar="NAME",
        group=LORA,
    )
    init_adapter: Path | None = option(
        None,
        "go on training this adapter, not a new one",
        parse=Path,
        metavar="DIR",
        group=LORA,
    )
    kl_weight: float = option(
        0.0,
        "adds X times the divergence from the base, on --kl-prompts, to the loss (%(default)s)",
        parse=non_negative_float,
        metavar="X",
        group=KEEPING,
    )
    kl_prompts: str | None = option(
        None,
        "log the divergence on these prompts and on held-out examples: the embedded hazard "
        "prompts, the official ones, a CSV in their format, or a JSONL in GSM8K's (with "
        "--kl-weight: demo)",
        metavar="demo|ailuminate|FILE",
        group=KEEPING,
    )
    lr: float = option(
        2e-4,
        "peak learning rate (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=OPTIMIZER,
    )
    schedule: str = option(
        "cosine", "after the warm-up (%(default)s)", choices=SCHEDULES, group=OPTIMIZER
    )
    warmup: float = option(
        0.03,
        "as a share of the steps (%(default)s)",
        parse=fraction,
        metavar="P",
        group=OPTIMIZER,
    )
    epochs: float = option(
        1.0,
        "passes over the data (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=OPTIMIZER,
        exclusive="length",
        scope=Scope.CALL,  # `steps` is recorded, which follows from it
    )
    steps: int | None = option(
        None,
        "optimizer steps, instead of --epochs",
        parse=positive_int,
        metavar="N",
        group=OPTIMIZER,
        exclusive="length",
    )
    weight_decay: float = option(
        0.0, "AdamW's (%(default)s)", parse=non_negative_float, metavar="X", group=OPTIMIZER
    )
    clip: float = option(
        1.0,
        "gradient clipping: maximum global norm (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=OPTIMIZER,
    )
    micro_batch_tokens: int = option(
        1024,
        "tokens in one forward pass: changes memory and speed, not the gradients (%(default)s)",
        parse=positive_int,
        metavar="N",
        group=MACHINE,
        # which values are dropped depends on how a step is cut into passes
        when=lambda settings: settings.dropout > 0,
    )
    checkpoint_activations: bool = option(
        False,
        "recompute blocks in the backward pass and hold weights once: half to two thirds of the "
        "memory, 50 to 75 %% more time",
        group=MACHINE,
        scope=Scope.COST,
    )
    fsdp: bool = option(
        False,
        "with torchrun: shard the frozen weights, for models too large for one device",
        group=MACHINE,
        scope=Scope.COST,
    )
    checkpoint_every: int = option(
        50,
        "steps; validates as well (%(default)s)",
        parse=positive_int,
        metavar="N",
        group=MACHINE,
        scope=Scope.COST,
    )
    keep_checkpoints: int = option(
        2,
        "the last N stay, and the best by validation loss (%(default)s)",
        parse=positive_int,
        metavar="N",
        group=MACHINE,
        scope=Scope.COST,
    )

    def __post_init__(self) -> None:
        if self.fsdp and world_size() == 1:
            raise UserError(
                "--fsdp needs several processes: torchrun --nproc-per-node N -- train.py --fsdp ..."
            )


def parse_arguments(argv: list[str] | None) -> TrainingSettings:
    return parse_settings(TrainingSettings, __doc__, argv)


def build_examples(
    settings: TrainingSettings, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype
) -> tuple[list[Example], list[str]]:
    """The tokenised training examples and the ids of their records."""
    if settings.dry_run and settings.shot_selection == "similar":
        settings = replace(settings, shot_selection="fixed")  # embedding takes long
        print("fixed shots in place of similar ones, for this estimate alone")
    pool = load_gsm8k("gsm8k" if settings.data == "official" else settings.data, "train")
    records = pool[: settings.limit]
    shots = load_gsm8k(settings.shots_data, "train") if settings.shots_data else pool
    selector = make_selector(settings, shots, records, device, dtype)
    if not settings.dry_run:
        report_near_duplicates(settings, selector, records, settings.run / "train.duplicates.json")
    examples = []
    for record in tqdm(records, desc="tokenising", leave=False, disable=rank() > 0 or None):
        messages = gsm8k_training_messages(
            record["question"], record["answer"], selector.select(record)
        )
        examples.append(build_example(tokenizer, messages, settings.loss, settings.system_header))
    return examples, [record["id"] for record in records]


def resolve_defaults(settings: TrainingSettings, examples: int) -> TrainingSettings:
    """Fill in what depends on other options or on the number of examples.

    UserError for options that must not go together.
    """
    kl_prompts = settings.kl_prompts
    if settings.kl_weight and kl_prompts is None:
        kl_prompts = "demo"
    uses_test_prompts = kl_prompts == "ailuminate" or is_official(
        kl_prompts or "", AILuminate.official["test"]
    )
    if settings.kl_weight and uses_test_prompts:
        raise UserError(
            f"--kl-weight with --kl-prompts {kl_prompts} would train on the prompts that are "
            "tested on"
        )
    validation = settings.validation
    if validation is None:
        validation = min(64, examples // 10)
    steps = settings.steps
    if steps is None:
        steps_per_epoch = math.ceil((examples - validation) / settings.batch_size)
        steps = max(1, round(settings.epochs * steps_per_epoch))
    return replace(settings, kl_prompts=kl_prompts, validation=validation, steps=steps)


def training_record(
    settings: TrainingSettings, dtype: torch.dtype, examples: list[Example]
) -> dict[str, Any]:
    """The settings as the summary keeps them; the examples go in by their hash."""
    adapter = settings.init_adapter
    token_ids = json.dumps([[example.input_ids, example.labels] for example in examples])
    return recorded(settings) | {
        "init_adapter": adapter_fingerprint(adapter) if adapter else None,
        "dtype": str(dtype).removeprefix("torch."),
        "training_examples_sha256": hashlib.sha256(token_ids.encode()).hexdigest()[:12],
    }


def train(settings: TrainingSettings) -> None:
    keep_freed_memory()
    device = distributed.device_of_rank(resolve_device(settings.device))
    silent = contextlib.redirect_stdout(io.StringIO()) if rank() else contextlib.nullcontext()
    with silent, distributed.process_group(device):
        train_on(device, settings)


def train_on(device: torch.device, settings: TrainingSettings) -> None:
    """The whole run, as one of the processes there are; rank 0 writes the files."""
    run = settings.run
    if not settings.dry_run:
        runs.prepare_run(run)
    runs.refuse_overwriting(settings.data, run / "train.jsonl")
    dtype = resolve_dtype(settings.dtype, device)
    tokenizer = load_tokenizer(settings.model, date=settings.date)
    examples, names = build_examples(settings, tokenizer, device, dtype)
    settings = resolve_defaults(settings, len(examples))
    record = training_record(settings, dtype, examples)
    summary_path, adapter = run / "train.summary.json", run / "adapter"
    earlier = runs.load_previous_summary(
        run / "train.jsonl", summary_path, record, settings.resume, TrainingSettings
    )
    if earlier.get("finished") and all(
        (adapter / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)
    ):
        print(f"{adapter} is finished already; --no-resume trains it again")
        return
    assert settings.validation is not None
    training, validation = split_validation(examples, settings.validation, settings.seed)
    config = ModelConfig.load(resolve(settings.model, allow_weights=False))
    check_prompts(config, [example.input_ids[:-1] for example in examples], names)
    if settings.dry_run:
        print(describe_plan(settings, config, dtype, device, training))
        return
    print(describe_example(tokenizer, training[0]), flush=True)

    model = build_model(settings, dtype, device)
    anchors = build_anchors(model, tokenizer, settings.kl_prompts) if settings.kl_prompts else []
    trainer = build_trainer(settings, dtype, model, anchors)
    distributed.barrier()  # nobody writes before all have read what an earlier call left
    first = rank() == 0
    if first and not earlier:
        # other checkpoints must be gone before this summary vouches for what is there
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        for path in set_aside(run / "train.jsonl", adapter, summary_path):
            print(f"--no-resume: what an earlier call made is kept as {path}")
    if first:
        write_json(summary_path, {"task": "train", "finished": False, "settings": record})
    distributed.barrier()
    log = TrainingRun(run, trainer, anchors)
    # Packed weights are faster, but each is there twice: not where memory is what counts.
    with contextlib.nullcontext() if settings.checkpoint_activations else packed_weights(model):
        log.follow(
            training,
            validation,
            settings.batch_size,
            settings.checkpoint_every,
            settings.keep_checkpoints,
        )
    if not first:
        return
    save_adapter(model, adapter, base_model=name_for_others(settings.model))
    summary = {
        "task": "train",
        "finished": True,
        "settings": record,
        **log.summary(len(training)),
        "adapter_fingerprint": adapter_fingerprint(adapter),
        "environment": runs.environment(device),
    }
    write_json(summary_path, summary)
    print(f"{adapter}: {describe(summary)}")


def lora_config(settings: TrainingSettings) -> LoRAConfig:
    targets: list[str] = []
    for name in settings.target:
        targets += TARGETS.get(name, (name,))
    return LoRAConfig(settings.rank, settings.alpha, settings.dropout, tuple(targets))


def build_model(settings: TrainingSettings, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The base with its LoRA layers, new or of --init-adapter."""
    # sharding moves each part to where it belongs
    load_device = torch.device("cpu") if settings.fsdp else device
    model = load_model(settings.model, dtype=dtype, device=load_device, quantize=settings.quantize)
    torch.manual_seed(settings.seed)
    inject_lora(model, lora_config(settings))
    if settings.init_adapter:
        load_adapter(model, settings.init_adapter)
    return model


def trainer_options(settings: TrainingSettings, dtype: torch.dtype) -> TrainerOptions:
    assert settings.steps is not None
    return TrainerOptions(
        total_steps=settings.steps,
        learning_rate=settings.lr,
        schedule=settings.schedule,
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=settings.seed,
        dtype=dtype,
        checkpoint_activations=settings.checkpoint_activations,
        fsdp=settings.fsdp,
    )


def build_trainer(
    settings: TrainingSettings, dtype: torch.dtype, model: Decoder, anchors: list[Example]
) -> Trainer:
    anchor = None
    if settings.kl_weight:
        anchor = Anchor(model, anchors, settings.kl_weight, settings.batch_size, settings.seed)
    return Trainer(model, trainer_options(settings, dtype), anchor)


def describe_plan(
    settings: TrainingSettings,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    training: list[Example],
) -> str:
    """What a call without --dry-run would do, in lines."""
    options = trainer_options(settings, dtype)
    estimate = estimate_memory(
        config,
        lora_config(settings),
        options,
        training,
        device,
        settings.quantize,
        world_size(),
    )
    longest = max(len(example.input_ids) for example in training)
    epochs = options.total_steps / math.ceil(len(training) / settings.batch_size)
    process = runs.peak_memory_bytes(device)  # what it has taken already, without a model
    memory = [
        f"frozen weights {to_gib(estimate.frozen_weights)}",
        f"LoRA and AdamW {to_gib(estimate.trained_weights)}",
        f"activations {to_gib(estimate.activations)}",
        f"logits {to_gib(estimate.logits)}",
        f"this process {to_gib(process)}",
    ]
    lines = [
        f"records               {len(training)} to train on, {settings.validation} held out",
        f"longest example       {longest} tokens",
        f"steps                 {options.total_steps}, {settings.batch_size} examples each, "
        f"{epochs:.3g} epochs",
        f"trainable parameters  {estimate.trainable_parameters:,}",
        f"peak memory           about {to_gib(estimate.total + process)} GiB of {device} "
        f"({', '.join(memory)})",
        f"--dry-run: nothing was written to {settings.run}",
    ]
    return "\n".join(lines)


def to_gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


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
    return cli.run_script(train, parse_arguments(argv), OUT_OF_MEMORY)


if __name__ == "__main__":
    distributed.flush_and_exit(main())
