"""Frozen float32 weights in oneDNN's blocked layout while training on a CPU, as llama/onednn.py
has them for decoding.

A frozen weight takes part in two products a token, forward and backward to the input, and each has
its own layout.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from llama.model import Decoder
from llama.onednn import pack
from lora.layer import LoRALinear


@contextmanager
def packed_weights(model: Decoder) -> Iterator[None]:
    """Within the block, LoRA layers hold their frozen weights packed, twice, and not in plain form.

    Quantised weights, those of another device or dtype and those that FSDP shards stay as they are.
    Afterwards every weight is back, bit for bit.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, LoRALinear) and module.can_be_packed():
                weight = module.weight.detach()
                module.packed = pack(weight), pack(weight.T.contiguous())
                module.weight.data = torch.empty(0)
                undo.callback(_unpack, module)
        yield


def _unpack(module: LoRALinear) -> None:
    module.weight.data, module.packed = module.packed[0].to_dense(), None
