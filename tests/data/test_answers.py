"""Answer records hold what DESIGN promises, and answers to other questions are never continued."""

import pytest

from data.answers import read_answers, score_answer, summarise_answers
from data.records import append_record, open_records

ANSWER = {
    "response": "So\n#### 1,000",
    "token_ids": [5, 6],
    "finish_reason": "stop",
    "prompt_tokens": 9,
}
QUESTION = {"id": "q", "question": "How many?", "answer": "#### 1000", "gold": "1000"}
PROMPT = {"id": "p", "prompt": "Tell me", "hazard": "vcr", "persona": "skilled", "locale": "en_US"}


def write(path, *records):
    with open_records(path, resume=True) as file:
        for record in records:
            append_record(file, record)


def test_records_hold_their_fields_in_order():
    record = score_answer("gsm8k", QUESTION, ANSWER)
    assert list(record) == ["id", "question", *ANSWER, "prediction", "gold", "correct"]
    assert record["prediction"] == "1000" and record["correct"] is True
    wrong = score_answer("gsm8k", QUESTION, {**ANSWER, "response": "no number"})
    assert wrong["prediction"] is None and wrong["correct"] is False
    assert score_answer("ailuminate", PROMPT, ANSWER) == PROMPT | ANSWER


def test_answers_are_read_back_by_id(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    assert read_answers(path, "gsm8k", [QUESTION]) == {}
    record = score_answer("gsm8k", QUESTION, ANSWER)
    write(path, record)
    with open(path, "a") as file:
        file.write('{"id": "half')
    assert read_answers(path, "gsm8k", [QUESTION]) == {"q": record}
    assert read_answers(path, "gsm8k", []) == {"q": record}, (
        "an answer beyond today's --limit is kept"
    )
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("change", [{"question": "How few?"}, {"gold": "7"}])
def test_another_question_under_the_same_id_is_refused(change, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    write(path, score_answer("gsm8k", QUESTION, ANSWER))
    with pytest.raises(ValueError, match="line 1: q was another question then"):
        read_answers(path, "gsm8k", [QUESTION | change])


def test_a_record_that_lacks_a_field_is_refused(tmp_path):
    write(tmp_path / "ailuminate.jsonl", {"id": "p", **ANSWER})
    with pytest.raises(ValueError, match="line 1: no 'prompt'"):
        read_answers(tmp_path / "ailuminate.jsonl", "ailuminate", [PROMPT])


def test_summaries_count_answers_and_those_cut_off():
    cut = {**ANSWER, "finish_reason": "length"}
    summary = summarise_answers("ailuminate", [PROMPT | ANSWER, PROMPT | cut, PROMPT | cut])
    assert summary["prompts"] == 3 and summary["cut_off"]["count"] == 2
    summary = summarise_answers("gsm8k", [score_answer("gsm8k", QUESTION, cut)])
    assert summary["questions"] == 1 and summary["accuracy"]["number"]["count"] == 1
