"""The lists of refusal phrases against answers of three models that were labelled by hand.

Guards the figures that the lists are chosen and shown with: another phrase is another list, whose
precision and recall have to be told anew.
"""

from collections import Counter
from pathlib import Path

import pytest

from data.intervals import mcnemar_test, wilson_interval
from data.records import read_jsonl
from guards import refusal_phrases
from guards.refusal_phrases import ZOU, RefusalPhrases, XSTestPrefixes, ZouPhrases
from recipes.settings import PHRASES

ANSWERS = read_jsonl(Path(__file__).with_name("refusal_answers.jsonl"))
WORDS = 20  # of an answer's opening


class WithAsAn(RefusalPhrases):
    """The default list as it was before the answers were labelled."""

    phrases = (*ZOU, *RefusalPhrases.phrases)


def outcomes(guard: RefusalPhrases) -> list[tuple[bool, bool]]:
    """For each answer: does the list find a refusal, is it one."""
    return [(guard.is_refusal(answer["opening"]), answer["refused"]) for answer in ANSWERS]


def counts(guard: RefusalPhrases) -> tuple[int, int, int]:
    """Refusals found, answers taken for refusals, refusals missed."""
    tally = Counter(outcomes(guard))
    return tally[True, True], tally[True, False], tally[False, True]


def test_the_answers_are_openings_of_three_models_with_a_label():
    models = Counter((answer["model"], answer["refused"]) for answer in ANSWERS)
    assert models == {
        ("qwen2.5-coder-0.5b", True): 54,
        ("qwen2.5-coder-0.5b", False): 23,
        ("qwen2.5-coder-0.5b tuned", True): 52,
        ("qwen2.5-coder-0.5b tuned", False): 18,
        ("smollm2-135m", True): 16,
        ("smollm2-135m", False): 74,
    }
    assert max(len(answer["opening"].split()) for answer in ANSWERS) <= WORDS
    prompts = Counter((answer["model"], answer["prompt"]) for answer in ANSWERS)
    assert max(prompts.values()) == 1, "no answer counts twice"


@pytest.mark.parametrize(
    ("guard", "found", "taken", "missed"),
    [
        (RefusalPhrases(), 118, 5, 4),
        (ZouPhrases(), 112, 12, 10),
        (XSTestPrefixes(), 111, 13, 11),
        (WithAsAn(), 119, 12, 3),
    ],
)
def test_each_list_finds_and_misses_what_was_measured(guard, found, taken, missed):
    assert counts(guard) == (found, taken, missed)


@pytest.mark.parametrize("guard", [RefusalPhrases(), ZouPhrases(), XSTestPrefixes()])
def test_the_figures_in_the_documentation_are_these(guard):
    found, taken, missed = counts(guard)
    shown = []
    for total in (found + missed, found + taken):
        low, high = wilson_interval(found, total)
        shown.append(f"{100 * found / total:.0f} [{100 * low:.0f}, {100 * high:.0f}]")
    [line] = [
        line for line in refusal_phrases.__doc__.splitlines() if line.split()[:1] == [guard.name]
        and "[" in line
    ]  # fmt: skip
    assert line.split(maxsplit=1)[1].split("  ", 1)[0] == shown[0] and line.endswith(shown[1])


def test_the_default_is_the_list_with_the_fewest_errors():
    errors = {}
    for guard in (RefusalPhrases(), ZouPhrases(), XSTestPrefixes(), WithAsAn()):
        _, taken, missed = counts(guard)
        errors[guard.name, type(guard).__name__] = taken + missed
    assert min(errors, key=errors.__getitem__) == (PHRASES, "RefusalPhrases")


def test_the_default_and_zous_list_differ_on_few_of_these_refusals():
    """Paired, since both read the same answers: the recalls' difference may be chance."""
    pairs = Counter()
    for own, other in zip(outcomes(RefusalPhrases()), outcomes(ZouPhrases()), strict=True):
        if own[1]:
            pairs[own[0], other[0]] += 1
    lost, gained = pairs[False, True], pairs[True, False]
    assert (lost, gained) == (1, 7) and mcnemar_test(lost, gained) == pytest.approx(
        0.0703, abs=1e-4
    )
