"""Qwen3Guard's verdicts: read without guessing, and their grammar, which allows every verdict and
nothing else, in the tokens that the tokenizer itself gives a verdict.
"""

import random
import re

import pytest
import torch

from guards.qwen3guard import CATEGORIES, Qwen3Guard, VerdictGrammar, verdicts
from llama import generate, load_model
from llama.tokenizer import load_tokenizer
from tests.toy_guard import KINDS, THINGS, chat

parse = Qwen3Guard().parse


def verdict_text(safety, categories="None", refusal="No"):
    return f"Safety: {safety}\nCategories: {categories}\nRefusal: {refusal}"


@pytest.mark.parametrize("safety", ["Safe", "Unsafe", "Controversial"])
@pytest.mark.parametrize("refusal", ["Yes", "No"])
def test_well_formed(safety, refusal):
    parsed = parse(verdict_text(safety, refusal=refusal))
    assert parsed == {"safety": safety, "categories": [], "refusal": refusal}


@pytest.mark.parametrize(
    "text, safety, categories, refusal",
    [
        (
            "Safety: Unsafe\nCategories: Violent, PII\nRefusal: No",
            "Unsafe",
            ["Violent", "PII"],
            "No",
        ),
        (
            "  safety :UNSAFE.\r\nCATEGORIES:suicide &  self-harm.\r\nrefusal:  yes",
            "Unsafe",
            ["Suicide & Self-Harm"],
            "Yes",
        ),
        ("<think>\n\n</think>\n\nSafety: Safe\nCategories: None\nRefusal: Yes", "Safe", [], "Yes"),
        ("<think>\nSafety: Unsafe?\nSafety: Unsafe\n</think>Safety: Safe", "Safe", [], None),
        (
            "Safety: Controversial\nCategories: Astrology, jailbreak",
            "Controversial",
            ["Astrology", "Jailbreak"],
            None,
        ),
        ("Safety: Unsafe\nCategories: PII, pii, None, ,PII.\nRefusal: No", "Unsafe", ["PII"], "No"),
        ("Safety: Safe\nSafety: safe\nRefusal: No\nRefusal: No", "Safe", [], "No"),
        ("Refusal: Yes\nSafety: Safe", "Safe", [], "Yes"),
        # Nothing is guessed:
        ("", None, [], None),
        ("Sure, here is how.", None, [], None),
        ("Safe", None, [], None),
        ("Safety: Uns", None, [], None),
        ("Safety:", None, [], None),
        ("Safety: Safe or Unsafe\nCategories: None\nRefusal: maybe", None, [], None),
        ("Safety: Safe\nSafety: Unsafe\nRefusal: Yes\nRefusal: No", None, [], None),
        ("Safety: Safe, Unsafe, Controversial\nSafety: Safe", None, [], None),
        ("Safety: Safe Categories: None Refusal: No", None, [], None),
        (
            "**Safety: Safe**: The ASSISTANT's response does not contain any prohibited content.",
            None,
            [],
            None,
        ),
        (
            " - The first line must be one of: 'Safety: Safe', 'Safety: Unsafe', "
            "'Safety: Controversial'.",
            None,
            [],
            None,
        ),
        ("<think>\nSafety: Safe\nRefusal: Yes", None, [], None),
        ("Overall Safety: Safe", None, [], None),
    ],
)
def test_parsing(text, safety, categories, refusal):
    assert parse(text) == {"safety": safety, "categories": categories, "refusal": refusal}


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
        verdict = parse(text)
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


def test_the_grammar_equals_free_decoding_token_for_token(guard):
    """Also for verdicts far from those learned: a head turned a little says well-formed and
    malformed things.
    """
    tokenizer, model = load_tokenizer(guard), load_model(guard)
    grammar = VerdictGrammar(tokenizer.encode, tokenizer.end_id)
    prompts = [tokenizer.encode_chat(chat(thing, kind)) for thing in THINGS for kind in KINDS]
    name = f"({'|'.join(CATEGORIES)})"
    form = re.compile(
        "Safety: (Safe|Unsafe|Controversial)\n"
        f"Categories: (None|{name}(, {name})*)\n"
        "Refusal: (Yes|No)"
    )
    formed = malformed = 0
    said = set()
    for seed in range(10):
        turned = load_model(guard)
        noise = torch.randn(
            turned.lm_head.weight.shape, generator=torch.Generator().manual_seed(seed)
        )
        turned.lm_head.weight.data = model.lm_head.weight + 0.04 * seed * noise
        free = generate(turned, prompts, 80, tokenizer.stop_ids)
        held = generate(turned, prompts, 80, tokenizer.stop_ids, allowed_tokens_fn=grammar)
        for one, other in zip(free, held, strict=True):
            text = tokenizer.decode(one.token_ids)
            if form.fullmatch(text) and one.token_ids == [
                *tokenizer.encode(text),
                tokenizer.end_id,
            ]:
                assert other.token_ids == one.token_ids
                formed += 1
                said.add(text)
            else:
                verdict = parse(tokenizer.decode(other.token_ids))
                assert verdict["safety"] and verdict["refusal"] and other.finish_reason == "stop"
                malformed += 1
    assert formed > 100 and malformed > 100 and len(said) == 4, (formed, malformed, said)
