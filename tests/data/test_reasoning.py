"""What stands between <think> tags is no part of an answer."""

import pytest

from data.gsm8k import GSM8K
from data.reasoning import opens_reasoning, strip_reasoning
from data.scoring import METHODS, extract_number


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 12", "#### 12"),
        ("  as it is \n", "  as it is \n"),
        ("<think>\nMaybe #### 10?\n</think>\n\n3*4=12\n#### 12", "3*4=12\n#### 12"),
        ("<think>\nMaybe #### 10. Or 20 and", ""),
        ("<think></think>", ""),
        ("opened in the prompt #### 10</think>\n#### 12", "#### 12"),
        ("<think>a</think>x <think>b</think>y", "x y"),
        ("<think>a</think>#### 12<think>or #### 13", "#### 12"),
        ("<think>the tag <think> in it</think>#### 12", "#### 12"),
        ("<think>a<think>b</think>c</think>#### 12", "#### 12"),
        ("<THINK>a</Think>#### 12", "#### 12"),
        ("I think <b>5</b> of 7 thinkers > 3", "I think <b>5</b> of 7 thinkers > 3"),
    ],
)
def test_reasoning_is_cut_out(response, answer):
    assert strip_reasoning(response) == answer


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|assistant|>\n", False),
        ("<|assistant|>\n<think>\n", True),
        ("<|assistant|>\n<think>\n\n</think>\n\n", False),
        ("What does <think> mean? <|assistant|><think></think>", False),
    ],
)
def test_a_prompt_that_opens_the_reasoning_is_recognised(prompt, opened):
    assert opens_reasoning(prompt) is opened


@pytest.mark.parametrize("method", METHODS)
def test_no_number_is_read_from_reasoning(method):
    thought = "<think>\nMaybe #### 10?\n</think>\n\n3*4=12\n#### 12"
    assert extract_number(thought, method) == "12"
    assert extract_number("<think>\nMaybe #### 10. Or 20 and", method) is None


def test_a_marker_within_reasoning_is_none():
    answer = {"response": "<think>#### 1</think>It is 2.", "finish_reason": "stop", "gold": "2"}
    answer |= GSM8K().score(answer, answer["response"])
    assert GSM8K().summarise([answer])["has_marker"]["count"] == 0
