"""Training and decoding on the pretended CUDA device: `python -m tests.fake_cuda.cases LIBRARY`.

Prints one line of JSON: for each case None, or its traceback.
"""

import sys
from pathlib import Path

from tests.fake_cuda import device

if __name__ == "__main__":
    device.install(Path(sys.argv[1]))

import json
import os
import random
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_init
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from common.likelihood import mean_log_likelihoods
from data.examples import Example
from llama.decoding import generate
from llama.embedding import embed_tokens
from llama.engine import DecodingStats
from lora import LoRAConfig, fsdp, inject_lora, merge_lora
from lora.kl import mean_divergences
from lora.kl_anchor import Anchor, continue_sharded
from lora.trainer import Trainer, TrainerOptions
from tests.fake_cuda.pretend import (
    build,
    make_examples,
    model_config,
    pretended_cuda,
)
from tests.fake_cuda.sizes import LLAMA, QWEN

FAMILIES = {"llama": LLAMA, "qwen3": QWEN}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROMPTS, NEW_TOKENS = 9, 12

# Inference mode hides operators from the fake mode; no_grad records as little.
visible_generate = generate.__wrapped__  # type: ignore[attr-defined]
visible_embed = embed_tokens.__wrapped__  # type: ignore[attr-defined]
visible_continue_sharded = continue_sharded.__wrapped__  # type: ignore[attr-defined]
visible_likelihoods = mean_log_likelihoods.__wrapped__  # type: ignore[attr-defined]


def train(
    family: str = "llama",
    dtype: str = "bfloat16",
    prefix: int = 12,
    anchors: bool = False,
    quantize: bool = False,
    dropout: float = 0.0,
    supervise_all: bool = False,
    **options: Any,
) -> None:
    """Two optimizer steps of several passes each, validation, a checkpoint's state."""
    with pretended_cuda():
        model = build(model_config(FAMILIES[family]), DTYPES[dtype], quantize=quantize)
        inject_lora(model, LoRAConfig(rank=8, dropout=dropout))
        examples = make_examples(prefix)
        if supervise_all:
            examples = [Example(example.input_ids, example.input_ids) for example in examples]
        anchor = Anchor(model, make_examples(6, 4, seed=1), 1.0, 4, 0) if anchors else None
        settings = TrainerOptions(
            total_steps=4, dtype=DTYPES[dtype], micro_batch_tokens=100, **options
        )
        trainer = Trainer(model, settings, anchor)
        for _ in range(2):
            trainer.step(examples)
        trainer.validation_loss(examples)
        tensors, _ = trainer.state()
        if anchors:
            mean_divergences(model, examples)
        for name, tensor in tensors.items():
            assert tensor.dtype == torch.float32, name
            assert tensor.device.type == "cuda" or name.endswith(".step"), name


def prompts() -> list[list[int]]:
    """Prompts with a common beginning, of very different lengths."""
    numbers = random.Random(0)
    shared = [numbers.randrange(100) for _ in range(700)]
    made = []
    for index in range(PROMPTS):
        own = [numbers.randrange(1000) for _ in range(numbers.randrange(5, 700))]
        made.append([*shared, 300 + index, *own])
    return made


def decode(
    family: str = "llama",
    dtype: str = "bfloat16",
    repeat: bool = False,
    quantize: bool = False,
    lora: bool = False,
    merged: bool = False,
    **options: Any,
) -> None:
    """Decode more prompts than are in flight at a time."""
    with pretended_cuda(repeat), torch.no_grad():
        model = build(model_config(FAMILIES[family]), DTYPES[dtype], quantize=quantize)
        if lora or merged:
            inject_lora(model, LoRAConfig(rank=8))
        if merged:
            merge_lora(model)
        model.requires_grad_(False)
        stats = DecodingStats()
        outputs = visible_generate(
            model, prompts(), NEW_TOKENS, frozenset({3}), 4, stats=stats, **options
        )
        assert len(outputs) == PROMPTS
        assert all(output.token_ids for output in outputs)
        assert stats.new_tokens == sum(len(output.token_ids) for output in outputs)


def decode_without_graphs() -> None:
    """Decode where every capture fails: the same steps without graphs."""
    refused = mock.Mock(side_effect=RuntimeError("operation not permitted when capturing"))
    with mock.patch.object(torch.cuda, "graph", refused):
        decode()


def move_states(
    parameters: list[nn.Parameter], buffers: list[torch.Tensor], device: torch.device
) -> None:
    """FSDP's way to the device, for fake tensors, which do not follow an assignment to `.data`."""
    for tensor in [*parameters, *buffers]:
        tensor.fake_device = device  # type: ignore[attr-defined]


def train_sharded() -> None:
    """FSDP2 itself, as rank 0 of two: base and adapter on one device, anchors, two steps."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    with_mesh = partial(fsdp.fully_shard, mesh=init_device_mesh("cuda", (2,)))
    with (
        mock.patch.dict(os.environ, {"WORLD_SIZE": "2", "RANK": "0"}),
        mock.patch.object(_fsdp_init, "_move_states_to_device", move_states),
        mock.patch.object(fsdp, "fully_shard", with_mesh),
        pretended_cuda(),
    ):
        model = build(model_config(LLAMA), torch.bfloat16, device="cpu")
        inject_lora(model, LoRAConfig(rank=8))
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        fsdp.shard_base(model, torch.device("cuda", 0))
        for name, parameter in model.named_parameters():
            assert parameter.device == torch.device("cuda", 0), name
            assert isinstance(parameter, DTensor) == ("lora_" not in name), name
        asked = [example.input_ids for example in make_examples(6, 3, seed=1)]
        anchors = visible_continue_sharded(model, asked, frozenset({3}))
        options = TrainerOptions(total_steps=4, dtype=torch.bfloat16, micro_batch_tokens=100)
        trainer = Trainer(model, options, Anchor(model, anchors, 1.0, 4, 0))
        for _ in range(2):
            trainer.step(make_examples(12))
    torch.distributed.destroy_process_group()


def every_other_token(new: Sequence[int]) -> list[int] | None:
    return [5, 6, 7] if len(new) % 2 else None


def embed() -> None:
    with pretended_cuda(), torch.no_grad():
        model = build(model_config(QWEN), torch.bfloat16)
        for pooling in ("last", "first"):
            vectors = visible_embed(model, [[1, 2, 3], [4, 5, 6, 7]], pooling)
            assert vectors.device.type == "cpu"
            assert vectors.dtype == torch.float32


def likelihood() -> None:
    with pretended_cuda(), torch.no_grad():
        model = build(model_config(LLAMA), torch.bfloat16)
        assert len(visible_likelihoods(model, make_examples(10))) == 5


def training_cases() -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for family in FAMILIES:
        for dtype in DTYPES:
            for prefix in (0, 12):
                name = f"train {family} {dtype}, prefix of {prefix}"
                cases[name] = partial(train, family, dtype, prefix)
    more = {
        "loss on all tokens": {"supervise_all": True},
        "dropout": {"dropout": 0.1},
        "checkpointing": {"checkpoint_activations": True},
        "checkpointing float16": {"dtype": "float16", "checkpoint_activations": True},
        "int8": {"quantize": True},
        "int8 float16 anchors": {"dtype": "float16", "quantize": True, "anchors": True},
        "anchors": {"anchors": True},
        "anchors checkpointing": {"anchors": True, "checkpoint_activations": True},
    }
    for name, options in more.items():
        cases[f"train {name}"] = partial(train, **options)
    return cases


def decoding_cases() -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for family in FAMILIES:
        for dtype in DTYPES:
            cases[f"decode {family} {dtype}"] = partial(decode, family, dtype)
    more: dict[str, dict[str, Any]] = {
        "drafts": {"repeat": True, "graphs": False},
        "int8": {"quantize": True},
        "int8 with LoRA": {"quantize": True, "lora": True},
        "merged LoRA": {"merged": True},
        "sampling": {"temperature": 0.7, "top_p": 0.9},
        "sampling float16, top_p 1": {"dtype": "float16", "temperature": 0.7},
        "allowed tokens": {"allowed_tokens_fn": every_other_token},
        "bfloat16 cache of a float32 model": {"dtype": "float32", "cache_dtype": torch.bfloat16},
        "bounded cache": {"cache_bytes": 2**24},
    }
    for name, options in more.items():
        cases[f"decode {name}"] = partial(decode, **options)
    cases["decode without graphs"] = decode_without_graphs
    return cases


OTHERS = {"train --fsdp": train_sharded, "embed": embed, "likelihood": likelihood}
CASES = training_cases() | decoding_cases() | OTHERS


def main() -> None:
    results: dict[str, str | None] = {}
    for name, case in CASES.items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        results[name] = None
        try:
            case()
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for the pretended device is never joined
