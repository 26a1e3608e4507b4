"""Batched decoding: the function everybody calls; the work is done by `llama.engine`."""

from collections.abc import Callable, Sequence, Set

import torch

from llama.config import ModelConfig
from llama.engine import DecodingStats, Engine, Guide, Options, Output
from llama.errors import UserError
from llama.model import Decoder
from llama.onednn import prepacked
from llama.sampling import Sampling


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], names: Sequence[str] | None = None
) -> None:
    """ValueError, naming the prompt, unless each fits the context with room for one token and names
    known tokens.
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
    batch_size: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    guide: Guide | None = None,
    cache_bytes: int | None = None,
    cache_dtype: torch.dtype | None = None,
    on_finish: Callable[[int, Output], None] | None = None,
    stats: DecodingStats | None = None,
) -> list[Output]:
    """Continue every prompt (token ids) until a stop id, `max_new_tokens`, or the end of the
    context.

    Outputs are in input order; `on_finish(i, output)` is called as soon as prompt `i` is done. At
    most `batch_size` prompts are in flight, fewer if their keys and values would need more than
    `cache_bytes`; `cache_dtype` is the model's by default (bfloat16 halves the cache and is not
    exact). Sampling draws from one generator a prompt, seeded by (seed, indices[i]), with indices
    0, 1, ... by default, so no sample depends on its neighbours. `guide(new_tokens)` returns the
    token ids allowed next, or None for any. `stats` is added to.

    Raises UserError for an empty prompt, one that fills the context, or an option out of range.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(
            f"max_new_tokens = {max_new_tokens}, batch_size = {batch_size}: expected at least 1"
        )
    check_prompts(model.config, prompts)
    if not prompts:
        return []
    sampling = Sampling(temperature, top_p, seed)
    options = Options(
        max_new_tokens, stop_ids, batch_size, sampling, guide, cache_bytes, cache_dtype
    )
    with prepacked(model):
        engine = Engine(
            model, prompts, indices or range(len(prompts)), options, stats or DecodingStats()
        )
        return engine.run(on_finish)
