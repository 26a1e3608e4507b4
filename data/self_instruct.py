"""Training answers in the model's own words, in GSM8K's format.

What a model is trained on counts, and so does how far that is from what it would have said: answers
close to its own distribution change it less (SDFT, Yang et al. 2024,
https://arxiv.org/abs/2402.13669). `rewrite` shows the model the gold answer and asks for its own
version, `sample` lets it solve the problem several times. Either is kept only if it comes to an end
by itself and has the right number.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from data.gsm8k import INSTRUCTION
from data.prompts import Message
from data.scoring import MARKER, extract_number

MODES = ("rewrite", "sample")
FALLBACKS = ("gold", "drop")
SOURCES = (*MODES, "gold")

Record = dict[str, Any]


def rewrite_messages(question: str, answer: str) -> list[Message]:
    """The chat that asks for the gold answer in the model's own words."""
    content = (
        "Here is a problem with a reference answer. Use the reference answer as a guide and write your own answer to "
        f"the problem, in your own words.\n\nQ: {question}\n\nReference answer: {answer}\n\n"
        f"Your own answer: {INSTRUCTION}"
    )
    return [{"role": "user", "content": content}]


def plan_attempts(records: Sequence[Record], samples: int) -> list[Record]:
    """What is to be asked: each training record `samples` times, under the ids ID#0, ID#1, ..."""
    return [{**record, "id": f"{record['id']}#{i}"} for record in records for i in range(samples)]


def own_answer(attempt: Record) -> str | None:
    """The attempt as a training answer that ends in `#### N`; None unless it ended by itself and N
    is the gold number.

    Small models like to add a remark behind the number, which is cut off: trained on, it would come
    back in every answer. An attempt with several `####` is none of the format either.
    """
    text = attempt["response"].strip().removeprefix("A:").strip()
    steps, marker, tail = text.partition(MARKER)
    number = extract_number(marker + tail.strip().partition("\n")[0], "number")
    if number != attempt["gold"] or MARKER in tail or attempt["finish_reason"] != "stop":
        return None
    return f"{steps.rstrip()}\n{MARKER} {number}".lstrip()


def assemble(
    records: Sequence[Record], attempts: dict[str, Record], mode: str, fallback: str
) -> list[Record]:
    """The training file's records, {"id", "question", "answer", "source"}, in the order of
    `records`.

    The first attempt that passes counts; where none does, the gold answer stands in, or nothing if
    `fallback` is "drop". UserError if nothing is left at all.
    """
    chosen: list[Record] = []
    tried: dict[str, list[str]] = {}
    for name in attempts:
        tried.setdefault(name.rpartition("#")[0], []).append(name)
    for record in records:
        names = sorted(tried.get(record["id"], ()), key=lambda name: int(name.rpartition("#")[2]))
        answer = next(
            (text for name in names if (text := own_answer(attempts[name])) is not None), None
        )
        if answer is None and fallback == "drop":
            continue
        source = "gold" if answer is None else mode
        about = {"id": record["id"], "question": record["question"]}
        chosen.append(
            {**about, "answer": record["answer"] if answer is None else answer, "source": source}
        )
    if not chosen:
        raise UserError(
            f"none of the {len(records)} answers has the right number, so nothing is left to train on; use --fallback "
            "gold, a longer --max-new-tokens, or --mode sample with more --samples"
        )
    return chosen


def count_sources(records: Sequence[Record]) -> dict[str, int]:
    """How many records come from each source; empty for files that do not say."""
    return dict(Counter(record["source"] for record in records if "source" in record).most_common())
