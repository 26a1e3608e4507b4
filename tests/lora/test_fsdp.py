"""Sharding leaves everything on the rank's device; common/test_distributed runs it for real."""

import torch

from llama import Decoder, ModelConfig
from lora import LoRAConfig, fsdp, inject_lora, lora_parameters
from lora.fsdp import shard_base
from tests.tiny import tiny_transformers_model


def test_lora_parameters_follow_the_base_to_its_device(monkeypatch):
    """FSDP moves what it manages and ignores them: they used to stay on the CPU."""
    model = Decoder(ModelConfig.from_dict(tiny_transformers_model("llama").config.to_dict()))
    inject_lora(model, LoRAConfig(rank=4))
    ignored = []
    monkeypatch.setattr(
        fsdp, "fully_shard", lambda _, ignored_params: ignored.append(ignored_params)
    )
    shard_base(model, torch.device("meta"))
    parameters = lora_parameters(model)
    assert {parameter.device.type for parameter in parameters} == {"meta"}
    assert all(parameter.requires_grad for parameter in parameters)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert ignored == [set(parameters)] * (model.config.num_hidden_layers + 1)
