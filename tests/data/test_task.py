"""Answer records hold what DESIGN promises, and answers to other questions are never continued."""

import pytest

from common.errors import UserError
from data.ailuminate import AILuminate
from data.gsm8k import GSM8K
from data.records import rewrite_records
from data.registry import TASKS, get_task

OUTPUT = {
    "response": "So\n#### 1,000",
    "token_ids": [5, 6],
    "finish_reason": "stop",
    "prompt_tokens": 9,
}
QUESTION = {"id": "q", "question": "How many?", "answer": "#### 1000", "gold": "1000"}
PROMPT = {"id": "p", "prompt": "Tell me", "hazard": "vcr", "persona": "skilled", "locale": "en_US"}


def test_answers_hold_their_fields_in_order():
    answer = GSM8K().answer(QUESTION, OUTPUT)
    assert list(answer) == ["id", "question", *OUTPUT, "prediction", "gold", "correct"]
    assert answer["prediction"] == "1000" and answer["correct"] is True
    wrong = GSM8K().answer(QUESTION, {**OUTPUT, "response": "no number"})
    assert wrong["prediction"] is None and wrong["correct"] is False
    assert AILuminate().answer(PROMPT, OUTPUT) == PROMPT | OUTPUT


def test_answers_are_read_back_by_id(tmp_path):
    path, task = tmp_path / "gsm8k.jsonl", GSM8K()
    assert task.read_answers(path, [QUESTION]) == {}
    answer = task.answer(QUESTION, OUTPUT)
    rewrite_records(path, [answer])
    with open(path, "a") as file:
        file.write('{"id": "half')
    assert task.read_answers(path, [QUESTION]) == {"q": answer}
    assert task.read_answers(path) == {"q": answer}, "an answer beyond today's --limit is kept"
    assert path.read_text().endswith("half"), "reading writes nothing"


@pytest.mark.parametrize("change", [{"question": "How few?"}, {"gold": "7"}])
def test_another_question_under_the_same_id_is_refused(change, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    rewrite_records(path, [GSM8K().answer(QUESTION, OUTPUT)])
    with pytest.raises(UserError, match="line 1: q was another question then"):
        GSM8K().read_answers(path, [QUESTION | change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": None}, "field 'response' must be text, found None"),
        ({"token_ids": "5"}, "field 'token_ids' must be a list, found '5'"),
        ({"token_ids": [5, "6"]}, "'token_ids' holds what is no token id"),
        ({"token_ids": [5, -1]}, "'token_ids' holds what is no token id"),
        ({"prompt_tokens": True}, "field 'prompt_tokens' must be a whole number, found True"),
        ({"correct": 1}, "field 'correct' must be true or false, found 1"),
        ({"question": 3}, "field 'question' must be text, found 3"),
    ],
)
def test_an_answer_edited_by_hand_is_refused(change, message, tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    rewrite_records(path, [GSM8K().answer(QUESTION, OUTPUT) | change])
    with pytest.raises(UserError, match=f"line 1: {message}"):
        GSM8K().read_answers(path)


def test_an_answer_that_lacks_a_field_is_refused(tmp_path):
    path = tmp_path / "ailuminate.jsonl"
    rewrite_records(path, [{"id": "p", **OUTPUT}])
    with pytest.raises(
        UserError, match="line 1: field 'prompt' must be text, which is missing; start again"
    ):
        AILuminate().read_answers(path, [PROMPT])


@pytest.mark.parametrize("prediction", [["8"], 8])
def test_a_vote_edited_by_hand_is_refused(prediction, tmp_path):
    """It would be counted with the others, for which it has to be text."""
    path = tmp_path / "gsm8k.jsonl"
    rewrite_records(path, [GSM8K().answer(QUESTION, OUTPUT) | {"prediction": prediction}])
    with pytest.raises(UserError, match="line 1: field 'prediction' must be text, found "):
        GSM8K().read_answers(path)


def test_summaries_count_answers_and_those_cut_off():
    cut = {**OUTPUT, "finish_reason": "length"}
    answers = [AILuminate().answer(PROMPT, output) for output in (OUTPUT, cut, cut)]
    summary = AILuminate().summarise(answers)
    assert summary["prompts"] == 3 and summary["cut_off"]["count"] == 2
    assert AILuminate().describe(summary) == "3 answers, 2 cut off; judge.py judges them"
    summary = GSM8K().summarise([GSM8K().answer(QUESTION, cut)])
    assert summary["questions"] == 1 and summary["accuracy"]["number"]["count"] == 1
    assert GSM8K().describe(summary).startswith("1 of 1 right, 100.0% (95 % interval 20.7% to")


@pytest.mark.parametrize(("name", "nearest"), [("gsm8", "gsm8k"), ("AILuminate", "ailuminate")])
def test_an_unknown_task_gets_the_nearest_one_named(name, nearest):
    with pytest.raises(UserError, match=f"unknown task '{name}': .*did you mean {nearest}"):
        get_task(name)


@pytest.mark.parametrize("task", [GSM8K(), AILuminate()], ids=["gsm8k", "ailuminate"])
def test_the_facts_of_answers_are_few_and_make_the_summary(task):
    record = QUESTION if task.name == "gsm8k" else PROMPT
    cut = {**OUTPUT, "finish_reason": "length", "response": "#### 3"}
    answers = [task.answer(record, output) for output in (OUTPUT, cut)]
    facts = [task.facts(answer) for answer in answers]
    texts = [answer["response"] for answer in answers] + [record[task.prompt_field]]
    for each in facts:
        assert hash(tuple(each.values())) and not set(each.values()) & set(texts)
    assert task.summarise_facts(facts) == task.summarise(answers)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_whole(task):
    """What generate.py, judge.py and reports rely on."""
    assert task.kind in ("skill", "safety") and task.prompt_field in task.fields
    assert set(task.groups) <= set(task.fields)
    assert "test" in task.official and all(part.sha256 for part in task.official.values())
    assert len({measure.path for measure in task.measures}) == len(task.measures) > 0
    answered = {measure.needs == "answer" for measure in task.measures}
    assert answered == {task.kind == "skill"}, "a judge says what an answer is worth, or nobody"
    assert task.shots_from is None or "train" in TASKS[task.shots_from].official
