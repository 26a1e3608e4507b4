"""Settings and counts of `generate`."""

from collections.abc import Callable, Collection, Set
from dataclasses import dataclass

import torch

from llama.sampling import Sampling
from llama.sequence import Output

# Returns the token ids allowed next, at least one, given a sequence's new tokens; None allows every
# token. A single allowed token needs no forward pass.
AllowedTokensFn = Callable[[list[int]], Collection[int] | None]
OnFinish = Callable[[int, Output], None]
OnToken = Callable[[int, int], None]  # (prompt index, token id)


@dataclass(frozen=True)
class GenerationConfig:
    """Settings that all sequences of one `generate` call share. `cache_bytes` bounds the cache."""

    max_new_tokens: int
    stop_ids: Set[int]
    batch_size: int
    sampling: Sampling
    allowed_tokens_fn: AllowedTokensFn | None = None
    cache_bytes: int | None = None
    cache_dtype: torch.dtype | None = None
    on_token: OnToken | None = None
    graphs: bool = True

    def allowed_tokens(self, new_tokens: list[int]) -> list[int] | None:
        """The token ids allowed behind `new_tokens`; None for any."""
        if self.allowed_tokens_fn is None:
            return None
        allowed = self.allowed_tokens_fn(new_tokens)
        return None if allowed is None else list(allowed)


@dataclass
class DecodingStats:
    """Counts of one or more `generate` calls; `prefill_tokens` are the prompt tokens computed."""

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    new_tokens: int = 0
    forward_passes: int = 0
