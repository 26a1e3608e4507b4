"""Activation memory of training: recompute what RMSNorm and SwiGLU return, keep what they read."""

from torch import Tensor, nn

from llama.model import Decoder
from lora.layer import LoRALinear, Recompute


def recompute_activations_in_backward(model: Decoder) -> None:
    """Let LoRA layers fed by an RMSNorm or SwiGLU save that module's inputs for backward.

    The inputs are alive anyway (residual, gate, up), so activation memory drops by the modules'
    outputs, for one cheap recomputation in each layer's backward pass.
    """
    for block in model.blocks:
        attention, mlp = block.self_attn, block.mlp
        _hand_over(block.input_layernorm, attention, ("q_proj", "k_proj", "v_proj"))
        _hand_over(block.post_attention_layernorm, mlp, ("gate_proj", "up_proj"))
        _hand_over(mlp.act, mlp, ("down_proj",))


def _hand_over(producer: nn.Module, parent: nn.Module, names: tuple[str, ...]) -> None:
    """Let `producer` give a `Recompute` of its output to the LoRA layers of `parent` it feeds."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recompute = None
        if output.requires_grad:
            detached = tuple(tensor.detach() for tensor in inputs)
            recompute = Recompute(module.forward, detached, output)
        for name in names:
            layer = getattr(parent, name)
            if isinstance(layer, LoRALinear):
                layer.recompute = recompute

    producer.register_forward_hook(hook)
