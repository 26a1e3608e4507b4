"""A prompt in flight: its tokens, how many of them are cached, what it is to give in a step."""

from collections import abc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama.prompt_lookup import Drafter

BLOCK = 32  # tokens compared at once


@dataclass(frozen=True)
class Output:
    """New tokens of one prompt; `finish_reason` is "stop" (they end in a stop id) or "length"."""

    token_ids: list[int]
    finish_reason: str


@dataclass(eq=False)
class Sequence:
    """One prompt and the tokens generated for it so far.

    `tokens` excludes the prefix that all prompts share: first `prompt_length` prompt tokens, then
    the generated ones, at most `max_new_tokens`. The keys and values of the first
    `num_cached_tokens` are stored in the cache.
    """

    index: int
    tokens: list[int]
    prompt_length: int
    max_new_tokens: int
    random: np.random.Generator
    num_cached_tokens: int = 0
    drafter: Drafter | None = None  # made at the first step that verifies drafts
    draw: float | None = None  # the next token's random number, once it is drawn

    def append(self, token: int) -> None:
        """Add a new token."""
        self.tokens.append(token)
        self.draw = None
        if self.drafter:
            self.drafter.append(token)

    def next_draw(self) -> float:
        """The random number in [0, 1) of the next token.

        A step that runs out of memory is repeated and gets the same one: a token has one draw.
        """
        if self.draw is None:
            self.draw = self.random.random()
        return self.draw

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def num_new_tokens(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens to compute before the next one can be chosen: 1 while decoding."""
        return len(self.tokens) - self.num_cached_tokens


class LogitsRequest(NamedTuple):
    """A sequence that needs logits in this step, at `len(draft) + 1` positions."""

    sequence: Sequence
    draft: list[int]


def shared_length(a: list[int], b: list[int], limit: int) -> int:
    """The number of leading tokens, at most `limit`, that two sequences have in common."""
    limit = min(limit, len(a), len(b))
    for begin in range(0, limit, BLOCK):
        end = min(begin + BLOCK, limit)
        if a[begin:end] == b[begin:end]:
            continue
        for place in range(begin, end):
            if a[place] != b[place]:
                return place
    return limit


def common_prefix_length(prompts: abc.Sequence[list[int]]) -> int:
    """The number of leading tokens all prompts share, leaving each at least one token of its own.

    0 for a single prompt, which shares nothing.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)  # what the extremes in sorted order share, all share
    return shared_length(low, high, min(map(len, prompts)) - 1)
