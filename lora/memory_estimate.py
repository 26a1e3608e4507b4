"""Peak memory of a training run, estimated from the architecture before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from data.examples import Example, epoch_batches
from llama.config import ModelConfig
from llama.model import Decoder
from lora.inject import inject_lora, lora_layers, lora_parameters
from lora.layer import LoRAConfig
from lora.loss import CHUNK, shared_prefix_length
from lora.packed_batch import micro_batches
from lora.trainer import TrainerOptions

FLOAT32 = 4  # bytes
ADAMW_COPIES = 4  # of each trained number: itself, its gradient, AdamW's two moments
LOGITS_COPIES = 3  # of a chunk: in the head's dtype, in float32, as probabilities for the gradient
# glibc fits the tensors of one pass badly into what another has freed: measured 1.2 to 2 times.
CPU_FRAGMENTATION = 1.7


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, of one process, and what they are spent on."""

    frozen_weights: int
    trained_weights: int
    activations: int
    logits: int
    trainable_parameters: int

    @property
    def total(self) -> int:
        return self.frozen_weights + self.trained_weights + self.activations + self.logits


def estimate_memory(
    config: ModelConfig,
    lora: LoRAConfig,
    options: TrainerOptions,
    examples: Sequence[Example],
    batch_size: int,
    device: torch.device,
    quantize: str | None = None,
    shards: int = 1,
) -> MemoryEstimate:
    """Estimate the peak of training on `examples`, `batch_size` a step; nothing is allocated.

    `shards` is over how many processes FSDP spreads the frozen weights.
    Left out is what a process needs anyway (Python, torch, its kernels and workspaces), which is a
    few hundred MB.
    """
    with torch.device("meta"):
        model = Decoder(config)
    inject_lora(model, lora)
    trained = sum(parameter.numel() for parameter in lora_parameters(model))
    frozen = _frozen_bytes(model, options, device, quantize)
    tokens = _tokens_in_largest_pass(options, examples, batch_size, device)
    activations = tokens * _numbers_per_token(config, lora, options) * options.dtype.itemsize
    if device.type == "cpu":
        activations = round(activations * CPU_FRAGMENTATION)
    return MemoryEstimate(
        frozen_weights=frozen // shards,
        trained_weights=trained * FLOAT32 * ADAMW_COPIES,
        activations=activations,
        logits=CHUNK * config.vocab_size * FLOAT32 * LOGITS_COPIES,
        trainable_parameters=trained,
    )


def _frozen_bytes(
    model: Decoder, options: TrainerOptions, device: torch.device, quantize: str | None
) -> int:
    """Weights that are not trained. A CPU holds those of adapted layers packed, in two layouts."""
    packed = device.type == "cpu" and options.dtype == torch.float32 and quantize is None
    twice = packed and not options.checkpoint_activations
    adapted = {name for name, _ in lora_layers(model)}
    total = 0
    for name, module in model.named_modules():
        in_block = name.startswith("model.layers.")
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                continue
            small = quantize is not None and in_block and isinstance(module, nn.Linear)
            copies = 2 if twice and name in adapted else 1
            total += parameter.numel() * copies * (1 if small else options.dtype.itemsize)
    if model.config.tie_word_embeddings:
        total -= model.lm_head.weight.numel() * options.dtype.itemsize
    return total


def _tokens_in_largest_pass(
    options: TrainerOptions, examples: Sequence[Example], batch_size: int, device: torch.device
) -> int:
    """Tokens alive at a time in the first epoch: a step's shared prefix and its largest pass."""
    lengths = [len(example.input_ids) for example in examples]
    largest = 0
    for indices in epoch_batches(lengths, batch_size, options.seed, epoch=0):
        batch = [examples[i] for i in indices]
        prefix = shared_prefix_length(batch, device)
        for part in micro_batches(batch, prefix, options.micro_batch_tokens):
            own_tokens = sum(len(example.input_ids) - prefix for example in part)
            largest = max(largest, prefix + own_tokens)
    return largest


def _numbers_per_token(config: ModelConfig, lora: LoRAConfig, options: TrainerOptions) -> int:
    """Numbers per token that the forward pass keeps for the backward pass."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    residuals = 2 * config.hidden_size
    attention = 3 * queries + 2 * keys  # queries, its output as it is and transposed; keys, values
    if config.qk_norm:
        attention += queries + keys  # before the norm
    low_rank = lora.rank * len(lora.target_modules)
    block = residuals + attention + 2 * config.intermediate_size + low_rank
    if options.checkpoint_activations:
        return config.num_hidden_layers * config.hidden_size + block
    return config.num_hidden_layers * block
