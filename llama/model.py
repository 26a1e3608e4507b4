"""The decoder: Llama (Touvron et al. 2023; Llama 3, 2024) and Qwen3 (2025), by configuration.

Shapes: B batch, T tokens, E hidden_size, I intermediate_size, H query heads, K key/value heads, D
head_dim, V vocabulary. Parameter names are those of the published checkpoints, so weights load
without renaming.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llama.attention import scaled_dot_product_attention
from llama.config import ModelConfig
from llama.rope import rotary_tables, rotate

# Attention of one layer: (layer, queries [B, T, H, D], keys [B, T, K, D], values [B, T, K, D]) ->
# [B, T, H, D]. A cache or a packed batch passes its own function; the decoder knows neither.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def causal_attention(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention in which each token attends to itself and those before it."""
    queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    return scaled_dot_product_attention(queries, keys, values, causal=True).transpose(1, 2)


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).

    Computed in float32 and multiplied by the weight in the input's dtype, as transformers does. On
    CUDA one kernel normalises.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            with torch.autocast("cuda", enabled=False):  # it would make float32 of x and result
                return self.weight * F.rms_norm(x, self.weight.shape, None, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).

    Queries and keys are rotated by their positions; Qwen3 normalises every head before that.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.rotated = config.uses_rope(layer)
        hidden_size = config.hidden_size
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden_size, query_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, key_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, key_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_size, hidden_size, bias=config.attention_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        queries, keys, values = self.project(x)
        queries = self.q_norm(queries.unflatten(-1, (-1, self.head_dim)))  # [B, T, H, D]
        keys = self.k_norm(keys.unflatten(-1, (-1, self.head_dim)))  # [B, T, K, D]
        values = values.unflatten(-1, (-1, self.head_dim))  # [B, T, K, D]
        if self.rotated:
            queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        attended = attend(self.layer, queries, keys, values)  # [B, T, H, D]
        return self.o_proj(attended.flatten(-2))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, T, E] -> [B, T, H * D], [B, T, K * D], [B, T, K * D]."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, saving nothing but its two inputs for backward."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = F.silu(gate)
        (grad_gate,) = torch.autograd.grad(activated, gate, grad * up)
        return grad_gate, activated.detach().mul_(grad)


class SwiGLU(nn.Module):
    """silu(gate) * up (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """[B, T, I], [B, T, I] -> [B, T, I]."""
        return _SwiGLU.apply(gate, up)


class MLP(nn.Module):
    """Feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=config.mlp_bias)
        self.act = SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        return self.down_proj(self.activate(x))

    def activate(self, x: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, I]."""
        return self.act(self.gate_proj(x), self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.checkpoint_activations = False  # compute them again in the backward pass

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        if self.checkpoint_activations:
            return checkpoint(self.residual_stream, x, cos, sin, attend, use_reentrant=False)
        return self.residual_stream(x, cos, sin, attend)

    def residual_stream(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A causal language model: token ids -> hidden states; `logits` is a separate call.

    So nobody pays for logits of positions that nobody reads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vectors = torch.empty(config.vocab_size, config.hidden_size)
        if not vectors.is_meta:  # there it would load a second of PyTorch to draw nothing
            nn.init.normal_(vectors)
        embed_tokens = nn.Embedding.from_pretrained(vectors, freeze=False)
        blocks = [Block(config, layer) for layer in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.model = nn.ModuleDict(
            {"embed_tokens": embed_tokens, "layers": nn.ModuleList(blocks), "norm": norm}
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embedding

    @property
    def embedding(self) -> nn.Parameter:
        """The matrix [V, E] of token embeddings, which may be the weight of `lm_head` too."""
        return cast(nn.Parameter, self.model["embed_tokens"].weight)

    @property
    def blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.model["layers"].children()))

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def forward(
        self, input_ids: Tensor, positions: Tensor | None = None, attend: Attend = causal_attention
    ) -> Tensor:
        """Final hidden states, after the last norm: `input_ids` [B, T] int64 -> [B, T, E].

        `positions` [B, T] or [T] int64 default to 0 .. T-1. Padding on the right needs no mask:
        causal attention never looks at it.
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[-1], device=input_ids.device)
        x = self.model["embed_tokens"](input_ids)
        cos, sin = rotary_tables(self.config, positions, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return self.model["norm"](x)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Scores over the vocabulary: [..., E] -> [..., V]."""
        return self.lm_head(hidden_states)
