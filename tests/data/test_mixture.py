"""Mixtures: counts stand to each other as the weights; the draw follows the seed alone."""

from collections import Counter

import pytest

from common.errors import UserError
from data.mixture import MOST_PASSES, Part, mix, parse_mixture

FIRST, SECOND = list(range(97)), [f"s{i}" for i in range(20)]


def test_words_are_names_with_weights(tmp_path):
    odd = tmp_path / "odd:3"
    odd.write_text("")
    words = ["gsm8k:0.97", r"C:\data\b.jsonl:3e-2", f"{odd}:1"]
    expected = [Part("gsm8k", 0.97), Part(r"C:\data\b.jsonl", 0.03), Part(str(odd), 1.0)]
    assert parse_mixture(words) == expected


@pytest.mark.parametrize("name", ["gsm8k", r"C:\data\a.jsonl", "C:a.jsonl", "a b.jsonl"])
def test_a_single_name_needs_no_weight(name):
    assert parse_mixture([name]) == [Part(name, 1.0)]


def test_a_file_that_is_there_keeps_its_whole_name(tmp_path):
    odd = tmp_path / "odd:3"
    odd.write_text("")
    assert parse_mixture([str(odd)]) == [Part(str(odd), 1.0)]
    with pytest.raises(UserError, match="no weight"):
        parse_mixture(["gsm8k:1", str(odd)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jsonl:0.5"], "a weight is for mixtures"),
        (["a.jsonl", "b.jsonl:0.5"], "--data a.jsonl: no weight"),
        (["a.jsonl:1", "b.jsonl:"], "--data b.jsonl:: no weight"),
        (["a.jsonl:1", r"C:\b.jsonl"], "no weight"),
        (["a.jsonl:1", "b.jsonl:0"], "the weight is 0, expected a number above 0"),
        (["a.jsonl:1", "b.jsonl:-2"], "the weight is -2"),
        (["a.jsonl:1", "b.jsonl:nan"], "the weight is nan"),
        (["a.jsonl:inf", "b.jsonl:1"], "the weight is inf"),
        (["a.jsonl:1", "./a.jsonl:2"], "names ./a.jsonl twice"),
        (["gsm8k:1", "gsm8k:2"], "names gsm8k twice"),
    ],
)
def test_what_is_no_mixture_is_refused(words, message):
    with pytest.raises(UserError) as error:
        parse_mixture(words)
    assert message in str(error.value)


@pytest.mark.parametrize(("weights", "taken"), [((0.97, 0.03), 3), ((97, 12), 12), ((1, 1e-9), 1)])
def test_the_first_is_whole_and_the_others_follow_from_the_weights(weights, taken):
    first, second = mix([FIRST, SECOND], weights, seed=0)
    assert first == FIRST
    assert len(second) == taken == len(set(second)) and second == sorted(second, key=SECOND.index)


def test_a_short_source_is_gone_through_evenly():
    _, second = mix([FIRST, SECOND], (97, 50), seed=0)
    counts = Counter(second)
    assert len(second) == 50 and len(counts) == 20 and set(counts.values()) == {2, 3}


def test_the_draw_follows_the_seed():
    drawn = [tuple(mix([FIRST, SECOND], (97, 5), seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_absurd_weights_are_refused():
    with pytest.raises(UserError, match=f"file 2 has 20: each would occur {MOST_PASSES} times"):
        mix([FIRST, SECOND], (97, 20 * MOST_PASSES), seed=0)
