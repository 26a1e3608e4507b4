"""The next tokens from logits: constrained, greedy or sampled, and checked to be finite."""

from collections import abc

import torch
from torch import Tensor

from llama.generation_config import GenerationConfig
from llama.sampling import sample
from llama.sequence import Sequence


def choose_tokens(
    logits: Tensor, sequences: abc.Sequence[Sequence], config: GenerationConfig
) -> tuple[list[int], list[bool]]:
    """The next token of each sequence from logits [sequences, V], which are changed in place.

    With it comes whether its logits are finite; if not, the token is meaningless. They are noticed
    by their maximum, which NaN and infinity pass through and which is needed anyway.
    """
    sampling = config.sampling
    highest = None
    if config.allowed_tokens_fn or not sampling.is_greedy:
        highest = logits.amax(-1)
    if config.allowed_tokens_fn:
        _mask_disallowed(logits, [config.allowed_tokens(each.new_tokens) for each in sequences])
    if sampling.is_greedy:
        scores, chosen = logits.max(-1)
    else:
        draws = torch.tensor([each.next_draw() for each in sequences], device=logits.device)
        chosen = sample(logits, draws, sampling.temperature, sampling.top_p)
        scores = logits.gather(-1, chosen[:, None])[:, 0]
    finite = scores.isfinite()
    if highest is not None:
        finite &= highest.isfinite()
    token_ids, flags = torch.stack((chosen, finite)).tolist()  # both in one copy to the host
    return token_ids, [bool(flag) for flag in flags]


def _mask_disallowed(logits: Tensor, allowed: list[list[int] | None]) -> None:
    """Set the logits of all tokens but the allowed ones to -inf; None allows every token.

    Rows and ids go to the device in one copy, however many sequences are constrained.
    """
    rows: list[int] = []
    token_ids: list[int] = []
    for row, tokens in enumerate(allowed):
        if tokens is not None:
            assert tokens, "allowed_tokens_fn must allow at least one token"
            rows += [row] * len(tokens)
            token_ids += tokens
    if rows:
        places = torch.tensor([rows, token_ids], device=logits.device).unbind()
        scores = logits[places]
        logits.index_fill_(0, places[0], float("-inf"))
        logits[places] = scores
