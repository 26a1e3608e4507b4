"""The work of train.py before it begins: its steps and passes, its memory, what --dry-run says."""

import math
from dataclasses import replace

import torch

from common import runs
from common.devices import total_memory
from common.ranks import world_size
from common.training_data import TrainingData
from common.training_settings import TrainingSettings
from common.training_speed import seconds_per_step
from data.records import Record
from llama.config import ModelConfig
from lora.memory_estimate import MemoryEstimate, estimate_memory
from lora.trainer import TrainerOptions

# Tokens in one forward pass. A CPU is busy with few, and has its memory for other things as well; a
# GPU waits for kernels to be launched unless each has much to do.
PASS_TOKENS, CUDA_PASS_TOKENS = 1024, 8192
USABLE_SHARE = 0.8  # of a device's memory: an estimate may be too low


def steps_per_epoch(settings: TrainingSettings, data: TrainingData) -> int:
    return math.ceil(len(data.training) / settings.batch_size)


def trainer_options(settings: TrainingSettings, dtype: torch.dtype) -> TrainerOptions:
    """The trainer's part of the settings, which have been resolved."""
    assert settings.steps is not None, "train.resolve_defaults fills it in"
    assert settings.micro_batch_tokens is not None, "choose_pass_tokens fills it in"
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
        ema_decay=settings.ema,
    )


def choose_pass_tokens(
    settings: TrainingSettings,
    config: ModelConfig,
    data: TrainingData,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainingSettings:
    """Fill in --micro-batch-tokens if it was not given.

    It depends on the device's whole memory and not on what is free: the call that goes on with a
    run must choose the same.
    """
    if settings.micro_batch_tokens is not None:
        return settings
    if device.type != "cuda":
        return replace(settings, micro_batch_tokens=PASS_TOKENS)
    usable = USABLE_SHARE * torch.cuda.get_device_properties(device).total_memory
    tokens = CUDA_PASS_TOKENS
    while tokens > PASS_TOKENS:
        chosen = replace(settings, micro_batch_tokens=tokens)
        options = trainer_options(chosen, dtype)
        if estimate(chosen, config, options, data, device).total <= usable:
            break
        tokens //= 2
    return replace(settings, micro_batch_tokens=tokens)


def estimate(
    settings: TrainingSettings,
    config: ModelConfig,
    options: TrainerOptions,
    data: TrainingData,
    device: torch.device,
) -> MemoryEstimate:
    """The peak memory of this training on the device of one process."""
    return estimate_memory(
        config,
        settings.lora_config(),
        options,
        data.examples,
        settings.batch_size,
        device,
        settings.quantize,
        world_size() if settings.fsdp else 1,
    )


def describe_plan(
    settings: TrainingSettings,
    config: ModelConfig,
    options: TrainerOptions,
    data: TrainingData,
    device: torch.device,
) -> str:
    """The work of a call without --dry-run, in lines."""
    needed = estimate(settings, config, options, data, device)
    process = runs.peak_memory_bytes(device)  # what it has taken already, without a model
    parts = {
        "frozen weights": needed.frozen_weights,
        "LoRA and AdamW": needed.trained_weights,
        "activations": needed.activations,
        "logits": needed.logits,
        "this process": process,
    }
    memory = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in parts.items())
    longest = max(len(example.input_ids) for example in data.examples)
    epochs = options.total_steps / steps_per_epoch(settings, data)
    lines = [
        f"records               {len(data.training)} to train on, {len(data.validation)} held out",
        *[describe_part(part) for part in data.mixture],
        f"longest example       {longest} tokens",
        f"steps                 {options.total_steps}, {settings.batch_size} examples each, "
        f"{epochs:.3g} epochs",
        f"tokens in a pass      {options.micro_batch_tokens} at most",
        f"trainable parameters  {needed.trainable_parameters:,}",
        f"peak memory           about {(needed.total + process) / 2**30:.2f} GiB of {device} "
        f"({memory})",
        describe_time(settings, config, options, data, device, needed.total + process),
        f"--dry-run: nothing was written to {settings.run}",
    ]
    return "\n".join(lines)


def describe_time(
    settings: TrainingSettings,
    config: ModelConfig,
    options: TrainerOptions,
    data: TrainingData,
    device: torch.device,
    needed: int,
) -> str:
    """The time of all steps in a line, measured on a few layers if `needed` bytes are there."""
    memory = total_memory(device)
    if memory is not None and needed > memory:
        return f"time                  not measured: {device} has {memory / 2**30:.2f} GiB"
    share = math.ceil(settings.batch_size / world_size())
    seconds = seconds_per_step(
        config, settings.lora_config(), options, data.training, share, device, settings.quantize
    )
    line = (
        f"time                  about {seconds * options.total_steps / 60:.1f} min, "
        f"{seconds:.2f} s a step, measured on a few layers"
    )
    return line + ("; --kl-weight comes on top" if settings.kl_weight else "")


def describe_part(part: Record) -> str:
    """A file of a mixture in a line."""
    return (
        f"  of {part['data']}: {part['taken']} records taken of {part['records']}, "
        f"weight {part['weight']:g}"
    )
