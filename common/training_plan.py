"""The work of train.py before it begins: what --dry-run says."""

import math

import torch

from common import runs
from common.devices import total_memory
from common.ranks import world_size
from common.training_data import TrainingData
from common.training_settings import TrainingSettings
from common.training_speed import seconds_per_step
from data.records import Record
from llama.config import ModelConfig
from lora.memory_estimate import estimate_memory
from lora.trainer import TrainerOptions


def steps_per_epoch(settings: TrainingSettings, data: TrainingData) -> int:
    return math.ceil(len(data.training) / settings.batch_size)


def describe_plan(
    settings: TrainingSettings,
    config: ModelConfig,
    options: TrainerOptions,
    data: TrainingData,
    device: torch.device,
) -> str:
    """The work of a call without --dry-run, in lines."""
    estimate = estimate_memory(
        config,
        settings.lora_config(),
        options,
        data.examples,
        settings.batch_size,
        device,
        settings.quantize,
        world_size() if settings.fsdp else 1,
    )
    process = runs.peak_memory_bytes(device)  # what it has taken already, without a model
    parts = {
        "frozen weights": estimate.frozen_weights,
        "LoRA and AdamW": estimate.trained_weights,
        "activations": estimate.activations,
        "logits": estimate.logits,
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
        f"trainable parameters  {estimate.trainable_parameters:,}",
        f"peak memory           about {(estimate.total + process) / 2**30:.2f} GiB of {device} "
        f"({memory})",
        describe_time(settings, config, options, data, device, estimate.total + process),
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
