"""Frozen float32 weights in oneDNN's blocked layout while training on a CPU.

llama/onednn.py does the same for decoding. A frozen weight takes part in two products a token,
forward and backward to the input, and each has its own layout.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from llama.model import Decoder
from llama.private_ops import pack_weight
from lora.layer import LoRALinear


@contextmanager
def packed_weights(model: Decoder) -> Iterator[None]:
    """Within the block, LoRA layers hold their frozen weights in packed form only, twice.

    Their `weight` is None meanwhile. Quantised weights, those of another device or dtype and those
    that FSDP shards stay as they are. Afterwards every weight is back, bit for bit.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, LoRALinear) and module.can_be_packed():
                weight = module.weight.detach()
                module.packed = pack_weight(weight), pack_weight(weight.T.contiguous())
                module.register_parameter("weight", None)
                undo.callback(_unpack, module)
        yield


def _unpack(module: LoRALinear) -> None:
    assert module.packed is not None
    module.weight = nn.Parameter(module.packed[0].to_dense(), requires_grad=False)
    module.packed = None
