"""The device that benchmarks/gpu.py looks at, and random models and prompts for it."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from common.runs import peak_memory_bytes
from data.examples import IGNORE_INDEX, Example
from llama import Decoder, ModelConfig

LLAMA_1B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
SMOLLM2 = LLAMA_1B | {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
TINY = SMOLLM2 | {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """The device that is looked at, and how large the work on it is."""

    device: torch.device
    rehearsal: bool

    def size(self, large: int, tiny: int) -> int:
        return tiny if self.rehearsal else large

    def model(self, sizes: dict[str, Any], dtype: torch.dtype, device: Any = None) -> Decoder:
        """A random model, made on the device, whose greedy answers are not all alike."""
        config = ModelConfig.from_dict(TINY if self.rehearsal else sizes)
        torch.manual_seed(0)
        with torch.device(device or self.device):
            model = Decoder(config).requires_grad_(False).eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=config.hidden_size**-0.5)
        return model.to(dtype)

    def prompts(self, count: int, tokens: int, model: Decoder) -> list[list[int]]:
        """Random prompts; a quarter of each is common to all."""
        generator = torch.Generator().manual_seed(1)
        shape = count, tokens
        ids = torch.randint(5, model.config.vocab_size, shape, generator=generator)
        ids[:, : tokens // 4] = ids[0, : tokens // 4]
        return ids.tolist()

    def examples(self, count: int, tokens: int, model: Decoder) -> list[Example]:
        """Random examples that supervise their last two thirds."""
        examples = []
        for ids in self.prompts(count, tokens, model):
            ignored = tokens // 3
            examples.append(Example(ids, [IGNORE_INDEX] * ignored + ids[ignored:]))
        return examples

    def start_clock(self) -> float:
        """Wait for the device, forget its largest allocation, and read the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        return time.perf_counter()

    def seconds_since(self, start: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    @property
    def peak(self) -> str:
        return f"{peak_memory_bytes(self.device) / 2**30:.2f} GiB at most"
