"""Low-rank adaptation (Hu et al. 2021) as an add-on to the decoder, in PEFT's file format."""

from lora.adapter import adapter_fingerprint, load_adapter, save_adapter
from lora.inject import (
    inject_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    set_lora_scale,
)
from lora.layer import LoRAConfig, LoRALinear

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "adapter_fingerprint",
    "inject_lora",
    "load_adapter",
    "lora_disabled",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "save_adapter",
    "set_lora_scale",
]
