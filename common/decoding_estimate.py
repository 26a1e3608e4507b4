"""Peak memory of decoding, estimated from the architecture before anything is loaded."""

from dataclasses import dataclass

import torch

from llama.cache import bytes_per_token
from llama.config import ModelConfig
from llama.model import Decoder
from llama.quantization import quantize_linears


@dataclass(frozen=True)
class DecodingMemory:
    """Bytes on the device, of one process, and what they are spent on."""

    weights: int
    cache: int

    def describe(self, device: torch.device, process: int) -> str:
        """In a line; `process` is what the process has taken already, without a model."""
        total = self.weights + self.cache + process
        parts = {"weights": self.weights, "key/value cache": self.cache, "this process": process}
        shares = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
        return f"peak memory about {_gib(total)} GiB of {device} ({shares})"


def estimate_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    sequences: int,
    capacity: int,
    quantize: str | None = None,
    cache_bytes: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> DecodingMemory:
    """Estimate what `sequences` in progress need, each of up to `capacity` tokens.

    `cache_bytes` bounds the cache, as in `llama.generate`. Left out are activations and workspaces,
    which are small beside the weights unless those are.
    """
    with torch.device("meta"):
        model = Decoder(config)
        if quantize:
            quantize_linears(model)
    cache = sequences * capacity * bytes_per_token(config, cache_dtype or dtype)
    if cache_bytes is not None:
        cache = min(cache, cache_bytes)
    return DecodingMemory(_weight_bytes(model, dtype), cache)


def _weight_bytes(model: Decoder, dtype: torch.dtype) -> int:
    total = 0
    for tensor in model.state_dict().values():
        size = dtype.itemsize if tensor.is_floating_point() else tensor.itemsize
        total += tensor.numel() * size
    if model.config.tie_word_embeddings:  # the head is the embedding, not one more matrix
        total -= model.lm_head.weight.numel() * dtype.itemsize
    return total


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
