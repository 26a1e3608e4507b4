"""The verdict grammar: every verdict and nothing else, in the tokens that the tokenizer itself
gives a verdict.
"""

import random

import pytest

from guards.grammar import VerdictGrammar, verdicts
from guards.verdicts import parse_verdict
from llama.tokenizer import load_tokenizer


@pytest.fixture(scope="module", params=["bytes", "smollm2"])
def tokenizer(request, chat_checkpoint):
    return load_tokenizer(
        chat_checkpoint if request.param == "bytes" else request.getfixturevalue("smollm2_folder")
    )


def test_every_verdict_is_allowed_token_by_token(tokenizer):
    grammar = VerdictGrammar(tokenizer.encode, tokenizer.end_id)
    found = list(verdicts(2))
    assert len(found) == 3 * (1 + 9 + 9 * 8) * 2
    for verdict in found[::7]:
        ids = tokenizer.encode("".join(verdict))
        for i, token in enumerate([*ids, tokenizer.end_id]):
            assert token in grammar(ids[:i]), (verdict, i)
        assert grammar(ids) == {tokenizer.end_id}


def test_whatever_is_chosen_parses_and_ends(tokenizer):
    grammar = VerdictGrammar(tokenizer.encode, tokenizer.end_id)
    choose, named, lengths = random.Random(0), set(), []
    for _ in range(200):
        ids = []
        while ids[-1:] != [tokenizer.end_id]:
            ids.append(choose.choice(sorted(grammar(ids))))
        text = tokenizer.decode(ids)
        assert tokenizer.encode(text) == ids[:-1], (
            "another way to cut the text would be another verdict"
        )
        verdict = parse_verdict(text)
        assert verdict["safety"] and verdict["refusal"]
        assert len(text.split("\n")[1].split(",")) == max(len(verdict["categories"]), 1), (
            "a category twice"
        )
        named |= {*verdict["categories"], verdict["safety"], verdict["refusal"]}
        lengths.append(len(ids))
    assert len(named) == 9 + 3 + 2, "every label can be chosen"
    assert min(lengths) < max(lengths)


def test_the_longest_verdict_fits_the_default_limit(smollm2_folder):
    tokenizer = load_tokenizer(smollm2_folder)
    every = next(
        verdict for verdict in verdicts(9) if sum(piece[0] == "," for piece in verdict) == 8
    )
    assert len(tokenizer.encode("".join(every))) < 64


def test_a_tokenizer_that_joins_labels_is_refused():
    def encode(text):  # one id for "Safe" with the line end behind it, where they meet
        return list(text.replace("Refusal: Y", "@").encode())

    with pytest.raises(ValueError, match="does not cut a verdict at its labels"):
        VerdictGrammar(encode, 0)
