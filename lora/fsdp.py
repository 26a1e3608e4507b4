"""Shard the frozen weights over the processes of a torchrun (FSDP2)."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from llama.model import Decoder
from lora.inject import lora_layers, lora_parameters


def shard_base(model: Decoder, device: torch.device) -> None:
    """Leave each rank its part of the frozen weights, on `device`; a block is whole while it runs.

    The model may lie on the CPU, so that no device ever holds all of it. LoRA parameters are not
    sharded but copied to `device`: every rank has them all, and the trainer sums their gradients.
    """
    for _, layer in lora_layers(model):
        layer.lora_A = nn.Parameter(layer.lora_A.detach().to(device))
        layer.lora_B = nn.Parameter(layer.lora_B.detach().to(device))
    ignored = set(lora_parameters(model))
    layers = model.model["layers"]
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        fully_shard(block, ignored_params=ignored)
    fully_shard(model, ignored_params=ignored)
