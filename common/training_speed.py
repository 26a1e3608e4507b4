"""Time of a training, estimated by two timed steps of models with few of the layers."""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from data.examples import Example
from llama.config import ModelConfig
from llama.model import Decoder
from llama.quantization import quantize_linears
from lora import LoRAConfig, inject_lora
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions

PROBE_LAYERS = (1, 3)
TIMED_STEPS = 2  # after one that warms up
CPU_EXAMPLES = 4  # of a step: there, time is as the tokens; a GPU needs a whole step to be busy


def seconds_per_step(
    config: ModelConfig,
    lora: LoRAConfig,
    options: TrainerOptions,
    examples: Sequence[Example],
    batch_size: int,
    device: torch.device,
    quantize: str | None = None,
) -> float:
    """Estimate the seconds of an optimizer step on `batch_size` of `examples`.

    Steps of 1 and of 3 layers give the share of a layer and that of all else, the head and the
    loss among it. The divergence from the base, validation and checkpoints are not in it.
    """
    batch = list(examples[: batch_size if device.type == "cuda" else CPU_EXAMPLES])
    few, more = PROBE_LAYERS
    base = _probe(config, few, lora, options, batch, device, quantize)
    layer = (_probe(config, more, lora, options, batch, device, quantize) - base) / (more - few)
    of_batch = base + max(0.0, layer) * (config.num_hidden_layers - few)
    tokens = sum(len(example.input_ids) for example in batch)
    mean = sum(len(example.input_ids) for example in examples) / len(examples)
    return of_batch * mean * batch_size / tokens


def _probe(
    config: ModelConfig,
    layers: int,
    lora: LoRAConfig,
    options: TrainerOptions,
    batch: list[Example],
    device: torch.device,
    quantize: str | None,
) -> float:
    """Seconds of the fastest timed step of a model with `layers` layers."""
    with torch.device("meta"):
        model = Decoder(replace(config, num_hidden_layers=layers)).to(options.dtype)
        if quantize:
            quantize_linears(model)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for tensor in model.state_dict().values():
        tensor.zero_()
    inject_lora(model, lora)
    trainer = Trainer(model, options)
    fastest = math.inf
    with contextlib.nullcontext() if options.checkpoint_activations else packed_weights(model):
        for step in range(1 + TIMED_STEPS):
            begin = time.perf_counter()
            trainer.step(batch)  # reads the loss back, so a GPU has finished
            if step:
                fastest = min(fastest, time.perf_counter() - begin)
    return fastest
