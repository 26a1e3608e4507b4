"""A model's reasoning and its answer told apart.

A reasoning model writes <think>what it considers</think> and then its answer. What it considers is
neither scored nor judged: a number or a refusal in there is no answer.
"""

import re

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>", re.IGNORECASE)


def strip_reasoning(response: str) -> str:
    """`response` without the text between <think> tags, and without the tags; stripped of spaces.

    Reasoning that was cut off goes to the end of the response, so nothing of it is left. Where the
    chat template has opened the reasoning in the prompt there is a closing tag alone, and all
    before it is reasoning. A response without tags comes back as it is.
    """
    answer: list[str] = []
    thinking, begin = False, 0
    for tag in _TAG.finditer(response):
        if not thinking:
            answer.append(response[begin : tag.start()])
        closes = tag[0].lower() == CLOSE
        if closes and not thinking:
            answer.clear()
        thinking, begin = not closes, tag.end()
    if begin == 0:
        return response
    if not thinking:
        answer.append(response[begin:])
    return "".join(answer).strip()


def opens_reasoning(prompt: str) -> bool:
    """Tell if a rendered prompt ends within reasoning, as templates that print <think> leave it."""
    *_, last = ["", *_TAG.findall(prompt)]
    return last.lower() == OPEN
