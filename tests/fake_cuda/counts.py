"""Operators of a training step and a graph step: `python -m tests.fake_cuda.counts LIBRARY`.

Prints one line of JSON. Counted are the operators that a GPU would launch kernels for, on
Llama-3.2-1B's sizes: with one and with three layers, from which those of 16 follow. With MORE as
second argument, the most frequent ones of three layers follow on stderr.
"""

import sys
from pathlib import Path

from tests.fake_cuda import device

if __name__ == "__main__":
    device.install(Path(sys.argv[1]))

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch

from common.training_plan import CUDA_PASS_TOKENS
from llama.decoding import generate
from lora import LoRAConfig, inject_lora
from lora.loss import count_supervised, step_loss
from lora.trainer import Trainer, TrainerOptions
from tests.fake_cuda.pretend import (
    OperatorCount,
    build,
    make_examples,
    model_config,
    pretended_cuda,
)
from tests.fake_cuda.sizes import LLAMA

LAYERS = LLAMA["num_hidden_layers"]
visible_generate = generate.__wrapped__  # type: ignore[attr-defined]


def training_step(prefix: int, dtype: torch.dtype, layers: int) -> OperatorCount:
    """Forward and backward pass of 7 examples of about 150 tokens behind a common prefix."""
    with pretended_cuda():
        model = build(model_config(LLAMA, layers), dtype)
        inject_lora(model, LoRAConfig())
        trainer = Trainer(model, TrainerOptions(total_steps=9, dtype=dtype))
        examples = make_examples(prefix, count=7, own=150)
        supervised = count_supervised(examples)
        model.train()
        with trainer.autocast, OperatorCount() as count:
            step_loss(model, examples, CUDA_PASS_TOKENS, lambda loss: loss / supervised)
    return count


def graph_step(prefix: int, layers: int) -> OperatorCount:
    """The first decoding step that is captured as a graph, 32 sequences behind a prefix."""
    captured = []

    @contextlib.contextmanager
    def capture(*_, **__) -> Iterator[None]:
        with OperatorCount() as count:
            yield
        captured.append(count)

    numbers = random.Random(0)
    prompts = [[7] * prefix + [300 + i, numbers.randrange(1000)] for i in range(32)]
    with pretended_cuda(), torch.no_grad(), mock.patch.object(torch.cuda, "graph", capture):
        model = build(model_config(LLAMA, layers), torch.bfloat16)
        visible_generate(model, prompts, 4, frozenset(), 32)
    return captured[0]


def count_layers(count: Callable[[int], OperatorCount]) -> dict[str, float]:
    """Operators of a layer, of all 16 layers and what is around them, and softmaxes of three."""
    one, three = count(1), count(3)
    per_layer = (three.total - one.total) / 2
    if len(sys.argv) > 2:
        print(three.operators.most_common(40), file=sys.stderr)
    return {
        "per_layer": per_layer,
        "all": one.total + (LAYERS - 1) * per_layer,
        "softmaxes": sum(n for name, n in three.operators.items() if "softmax" in name),
    }


def main() -> None:
    counts = {}
    for dtype in (torch.bfloat16, torch.float32):
        training_step(0, dtype, 1)  # checks its attention kernel once, which is not counted
        for prefix in (0, 40, 430):
            name = f"training {dtype} prefix {prefix}".replace("torch.", "")
            counts[name] = count_layers(partial(training_step, prefix, dtype))
    for prefix in (0, 700):
        counts[f"graph step prefix {prefix}"] = count_layers(partial(graph_step, prefix))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for the pretended device is never joined
