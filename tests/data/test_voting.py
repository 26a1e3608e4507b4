"""Votes and pass@k: against counting all subsets, and over whole questions alone."""

from itertools import combinations

import pytest

from data.registry import TASKS
from data.voting import majority, pass_at_k, samples_stem, shown_sizes, summarise_votes

TASK = TASKS["gsm8k"]


def sample(question: int, number: int, prediction: str | None, finish_reason: str = "stop"):
    name = f"t{question}#{number}"
    right = prediction == "2"
    about = {"prediction": prediction, "gold": "2", "correct": right}
    return name, {"id": name, "finish_reason": finish_reason, **about}


def samples(*predictions: str) -> dict:
    """A question a word, a sample a character: "22-" is right twice and once without a number."""
    answers = {}
    for question, votes in enumerate(predictions):
        for number, vote in enumerate(votes):
            name, answer = sample(question, number, None if vote == "-" else vote)
            answers[name] = answer
    return answers


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        (["1", "2", "2"], "2"),
        (["1", "2", "2", "1"], "1"),  # of equally many the first
        ([None, None, None, "7"], "7"),  # what is no number is no vote
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_counts_numbers_alone(votes, winner):
    assert majority(votes) == winner


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples):
    for right in range(samples + 1):
        outcomes = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            share = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(samples, right, k) == pytest.approx(share)


def test_pass_at_k_of_more_than_there_are_is_refused():
    for arguments in ((4, 1, 5), (4, 5, 1), (4, 1, 0)):
        with pytest.raises(ValueError, match="of 4 samples"):
            pass_at_k(*arguments)


def test_the_sizes_double_up_to_all_samples():
    assert [shown_sizes(count) for count in (1, 2, 6, 8)] == [
        [1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]
    ]  # fmt: skip


def test_votes_are_summarised_over_whole_questions():
    answers = samples("2233", "2333", "3333", "-222", "22")  # the last one lacks two
    summary = summarise_votes(TASK, answers, 4)
    assert summary["questions"] == 4 and summary["samples"] == 4
    assert (summary["maj"]["count"], summary["maj"]["total"]) == (2, 4)
    means = {size: value["mean"] for size, value in summary["pass"].items()}
    assert means["1"] == pytest.approx((2 + 1 + 0 + 3) / 16)
    assert means["2"] == pytest.approx((5 / 6 + 1 / 2 + 0 + 1) / 4)
    assert means["4"] == 3 / 4
    assert summary["pass"]["4"]["low"] < 3 / 4 <= summary["pass"]["4"]["high"]
    assert summary["cut_off"]["total"] == 18


def test_no_whole_question_has_no_rates():
    summary = summarise_votes(TASK, samples("2"), 2)
    assert summary["maj"]["rate"] is None and summary["pass"]["1"]["mean"] is None


def test_samples_lie_beside_the_single_answers():
    assert samples_stem(TASK) == "gsm8k-samples"
