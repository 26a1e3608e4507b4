"""Peak memory and time of decoding, estimated before the model is loaded."""

import math
import time
from dataclasses import dataclass, replace

import torch

from llama.cache import bytes_per_token
from llama.config import ModelConfig
from llama.decoding import generate
from llama.model import Decoder
from llama.quantization import quantize_linears

# The probe that times decoding: models of so many layers answer prompts of so many tokens.
PROBE_LAYERS = (1, 3)
PROBE_PROMPT = 32
PROBE_STEPS = (3, 11)  # new tokens: what happens once, such as graph capture, cancels out
PROBE_VOCABULARY = 4096  # large enough for sampled text not to repeat, which would be drafted


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


@dataclass(frozen=True)
class DecodingSpeed:
    """Seconds on a device that nobody else uses meanwhile."""

    prompt_token: float
    step: float  # in which every sequence in progress gets a token

    def seconds(self, prompt_tokens: int, sequences: int, in_progress: int, length: int) -> float:
        """The time for `sequences` answers of `length` tokens, `in_progress` at one time."""
        steps = math.ceil(sequences / in_progress) * length
        return prompt_tokens * self.prompt_token + steps * self.step


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


def measure_speed(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, in_progress: int
) -> DecodingSpeed:
    """Time a few layers with weights of zero, and extrapolate to the model's layers and head.

    The head is taken to cost what a layer of as many weights would.
    """
    few, more = PROBE_LAYERS
    probes = [_probe(config, layers, device, dtype, in_progress) for layers in PROBE_LAYERS]
    with torch.device("meta"):
        block = Decoder(replace(config, num_hidden_layers=1)).get_submodule("model.layers.0")
    weights = sum(parameter.numel() for parameter in block.parameters())
    head = config.hidden_size * config.vocab_size / weights  # in layers
    (prompt_few, step_few), (prompt_more, step_more) = probes
    prompt_layer = max(0.0, prompt_more - prompt_few) / (more - few)
    step_layer = max(0.0, step_more - step_few) / (more - few)
    layers = config.num_hidden_layers - few
    return DecodingSpeed(
        prompt_token=max(0.0, prompt_few + layers * prompt_layer),
        step=max(0.0, step_few + (layers + head) * step_layer),
    )


def _probe(
    config: ModelConfig, layers: int, device: torch.device, dtype: torch.dtype, in_progress: int
) -> tuple[float, float]:
    """Seconds for a prompt token and for a step of a model of `layers` layers."""
    vocabulary = min(PROBE_VOCABULARY, config.vocab_size)
    with torch.device("meta"):
        model = Decoder(replace(config, num_hidden_layers=layers, vocab_size=vocabulary)).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for tensor in model.state_dict().values():
        tensor.zero_()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocabulary, (in_progress, PROBE_PROMPT), generator=generator)
    fastest = dict.fromkeys(PROBE_STEPS, math.inf)
    for steps in (*PROBE_STEPS, *PROBE_STEPS):  # the first round warms up
        begin = time.perf_counter()
        generate(model, prompts.tolist(), steps, batch_size=in_progress, temperature=1.0)
        fastest[steps] = min(fastest[steps], time.perf_counter() - begin)
    few, more = PROBE_STEPS
    step = max(0.0, fastest[more] - fastest[few]) / (more - few)
    prefill = max(0.0, fastest[few] - few * step)
    return prefill / prompts.numel(), step


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
