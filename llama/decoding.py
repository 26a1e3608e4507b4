"""Batched decoding: `generate`, the function everybody calls; llama/engine.py does the work."""

from collections.abc import Sequence, Set

import torch

from llama.config import ModelConfig
from llama.device_memory import default_batch_size
from llama.engine import Engine
from llama.errors import UserError
from llama.finite import NonFiniteLogits, non_finite_error
from llama.generation_config import (
    AllowedTokensFn,
    DecodingStats,
    GenerationConfig,
    OnFinish,
    OnToken,
)
from llama.model import Decoder
from llama.onednn import prepacked
from llama.sampling import Sampling, SeedIndex
from llama.sequence import Output


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], names: Sequence[str] | None = None
) -> None:
    """Check that each prompt fits the context with room for one token, and holds known tokens.

    Raises UserError, naming the prompt by `names` or by its index.
    """
    for index, prompt in enumerate(prompts):
        name = names[index] if names else f"prompt {index}"
        if not prompt:
            raise UserError(f"{name}: the prompt is empty")
        if len(prompt) >= config.max_position_embeddings:
            raise UserError(
                f"{name}: {len(prompt)} tokens leave no room in the model's context of "
                f"{config.max_position_embeddings}; use fewer shots or a shorter text"
            )
        if max(prompt) >= config.vocab_size or min(prompt) < 0:
            raise UserError(
                f"{name}: token id {max(prompt)} is outside the vocabulary of {config.vocab_size}"
            )


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    stop_ids: Set[int] = frozenset(),
    batch_size: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    indices: Sequence[SeedIndex] | None = None,
    allowed_tokens_fn: AllowedTokensFn | None = None,
    cache_bytes: int | None = None,
    cache_dtype: torch.dtype | None = None,
    on_finish: OnFinish | None = None,
    on_token: OnToken | None = None,
    stats: DecodingStats | None = None,
    names: Sequence[str] | None = None,
    graphs: bool = True,
) -> list[Output]:
    """Continue every prompt up to a stop id, `max_new_tokens`, or the end of the context.

    Prompts are token ids; outputs are in input order.

    batch_size: prompts in flight at most (32; 256 on CUDA); fewer if their cache would need more
        than `cache_bytes`, or than a CUDA device has free.
    temperature, top_p, seed: 0 is greedy. Else each prompt has a generator of its own, seeded by
        (seed, indices[i]): no sample depends on its neighbours. Indices are 0, 1, ... by default; a
        tuple (i, k) seeds the k-th sample of prompt i, and (i, 0) is the same as i.
    allowed_tokens_fn: called with a prompt's new tokens, returns the token ids allowed next, or
        None for any (constrained decoding).
    cache_dtype: the model's by default; bfloat16 halves a float32 cache and is not exact.
    on_finish: called with (i, output) as soon as prompt i is done.
    on_token: called with (i, token id) for each new token of prompt i, in order (streaming).
    stats: counts are added to it.
    names: of the prompts, for errors; their indices by default.
    graphs: on CUDA, capture decoding steps as graphs; False runs them kernel by kernel.

    Raises UserError for an empty prompt, one that fills the context, an unknown token id, a setting
    out of range, or logits that are not finite: the prompt's name, the step and the first layer
    where that happens. Nothing is reported of the step in which it does.
    """
    if batch_size is None:
        batch_size = default_batch_size(model.device)
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(
            f"max_new_tokens = {max_new_tokens}, batch_size = {batch_size}: expected at least 1"
        )
    check_prompts(model.config, prompts, names)
    if not prompts:
        return []
    generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        batch_size=batch_size,
        sampling=Sampling(temperature, top_p, seed),
        allowed_tokens_fn=allowed_tokens_fn,
        cache_bytes=cache_bytes,
        cache_dtype=cache_dtype,
        on_token=on_token,
        graphs=graphs,
    )
    indices, stats = indices or range(len(prompts)), stats or DecodingStats()
    try:
        with prepacked(model):
            return Engine(model, prompts, indices, generation_config, stats).run(on_finish)
    except NonFiniteLogits as error:
        non_finite = error.with_traceback(None)  # which would keep the cache alive
    # Behind the block the model's modules are the plain ones again.
    name = names[non_finite.index] if names else f"prompt {non_finite.index}"
    what = f"the logits of new token {non_finite.step}"
    raise non_finite_error(model, non_finite.token_ids, name, what)
