"""Constrained decoding: only allowed tokens come next; a forced one needs no forward pass."""

import pytest
import torch

from llama import generate, load_model
from llama.decoding import DecodingStats

PROMPTS = [[1, 20, 30, 40], [1, 20, 31], [1, 20, 30, 41, 50, 60, 70], [1, 99]]
STOP = 2


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint("qwen3"))


def allowed_tokens(tokens):
    """Two forced tokens, one of three, one of any, and so on.

    Sequences end after 12 or 16 tokens, as their third token says.
    """
    if len(tokens) == (12 if len(tokens) > 2 and tokens[2] == 7 else 16):
        return {STOP}
    turn = len(tokens) % 4
    return [[100 + len(tokens)], [120], (7, 130, 140), None][turn]


def one_token_at_a_time(model, prompt, limit):
    tokens = []
    while len(tokens) < limit and tokens[-1:] != [STOP]:
        logits = model.logits(model(torch.tensor([prompt + tokens]))[0, -1])
        allowed = allowed_tokens(tokens)
        tokens.append(
            int(logits.argmax())
            if allowed is None
            else max(sorted(allowed), key=lambda t: logits[t])
        )
    return tokens


@pytest.mark.parametrize("limit", [1, 3, 10, 30])
def test_constrained_tokens_are_those_decoded_one_at_a_time(model, limit):
    expected = [one_token_at_a_time(model, prompt, limit) for prompt in PROMPTS]
    for batch_size in (1, 2, 4):
        outputs = generate(
            model, PROMPTS, limit, {STOP}, batch_size, allowed_tokens_fn=allowed_tokens
        )
        assert [output.token_ids for output in outputs] == expected
        assert [output.finish_reason == "stop" for output in outputs] == [
            tokens[-1] == STOP for tokens in expected
        ]
    if limit == 30:
        assert len(set(map(len, expected))) > 1, "sequences must end at different times"


def test_forced_tokens_cost_no_forward_pass(model):
    def passes(function):
        stats = DecodingStats()
        (output,) = generate(
            model, PROMPTS[:1], 30, {STOP}, stats=stats, allowed_tokens_fn=function
        )
        return len(output.token_ids), stats.forward_passes

    script = [5, 6, 7, 8, STOP]
    assert passes(lambda tokens: [script[len(tokens)]])[0] == 5
    assert passes(lambda tokens: [script[len(tokens)]])[1] == 0
    fork = lambda tokens: [script[len(tokens)]] if len(tokens) != 2 else [7, 9]  # noqa: E731
    assert passes(fork) == (5, 1)


def test_a_sample_keeps_to_the_allowed_tokens(model):
    outputs = generate(model, PROMPTS, 3, {STOP}, temperature=5.0, allowed_tokens_fn=allowed_tokens)
    assert {output.token_ids[2] for output in outputs} <= {7, 130, 140}
