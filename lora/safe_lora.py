"""Safe LoRA: an adapter kept along the directions in which alignment moved the weights.

Hsu et al. 2024, https://arxiv.org/abs/2405.16833. V = aligned - untuned [out, in] is what alignment
changed in a weight, C = V V^T / ||V||_F its projection as the paper defines it. Where an update
dW = B A of training points away from it, so that the cosine of dW and C dW is small, C dW takes
its place. C stands on the left: only B changes, and the adapter keeps its rank and its files.
"""

import torch
from torch import Tensor

from llama.config import ModelConfig
from llama.errors import UserError
from llama.model import Decoder
from llama.quantization import dense_weight
from lora.inject import lora_layers
from lora.layer import LoRALinear

SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def check_same_shape(config: ModelConfig, untuned: ModelConfig) -> None:
    """UserError, before a long training, for an untuned base with linears of other shapes."""
    for name in SHAPE:
        ours, theirs = getattr(config, name), getattr(untuned, name)
        if ours != theirs:
            raise UserError(
                f"Safe LoRA: {name} is {theirs} in the untuned base, {ours} in the model; name the "
                "base that this model was made from"
            )


@torch.no_grad()
def project_onto_alignment(model: Decoder, untuned: Decoder, threshold: float) -> dict[str, float]:
    """Replace B by C B in the LoRA layers of `model` whose cosine is below `threshold`.

    `untuned` is the model before alignment. Returns the cosine of every layer before the
    projection, by the layer's name. UserError if the two have other shapes or the same weights.
    """
    check_same_shape(model.config, untuned.config)
    cosines = {}
    changed = False
    for name, layer in lora_layers(model):
        alignment = _alignment(name, layer, untuned)
        norm = alignment.norm()
        changed |= norm.item() > 0
        projected = alignment @ (alignment.T @ layer.lora_B) / norm.clamp_min(1e-12)  # C B
        cosines[name] = _cosine(layer.lora_A, layer.lora_B, projected)
        if cosines[name] < threshold:
            layer.lora_B.copy_(projected)
    if not changed:
        raise UserError(
            "Safe LoRA: the untuned model has the weights of the one that was trained, so there is "
            "no alignment to project onto; name the base that was never fine-tuned"
        )
    return cosines


def _alignment(name: str, layer: LoRALinear, untuned: Decoder) -> Tensor:
    """The change that alignment made to a layer's weight: [out, in] float32."""
    aligned = dense_weight(layer.weight, layer.weight_scale, torch.float32)
    before = untuned.get_parameter(f"{name}.weight")
    return aligned - before.to(aligned)


def _cosine(A: Tensor, B: Tensor, projected: Tensor) -> float:
    """The cosine of B A and (C B) A, without forming them: <X A, Y A> = tr(X^T Y A A^T)."""
    gram = A @ A.T  # [rank, rank]
    product = (B.T @ projected * gram).sum()
    norms = (B.T @ B * gram).sum() * (projected.T @ projected * gram).sum()
    return (product / norms.sqrt().clamp_min(1e-30)).item()
