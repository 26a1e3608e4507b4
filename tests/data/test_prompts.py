from collections import Counter

import pytest

from data.ailuminate import AILuminate
from data.few_shot import FewShotSampler
from data.gsm8k import GSM8K
from data.prompts import SAFETY_PROMPT, Wording, with_system
from data.self_instruct import SelfInstruct, own_answer

POOL = [
    {"id": f"train-{i}", "question": f"What is {i}+{i}?", "answer": f"#### {2 * i}"}
    for i in range(30)
]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def test_the_chat_is_written_as_the_design_says():
    shots = [{"question": "Q1", "answer": "A1"}, {"question": "Q2", "answer": "A2"}]
    last = "Q: Q3 Let's think step by step. At the end, you MUST write the answer as an integer "
    last += "after '####'."
    chat = [user("Q: Q1"), assistant("A: A1"), user("Q: Q2"), assistant("A: A2"), user(last)]
    record = {"question": "Q3", "answer": "A3"}
    assert GSM8K().messages(record, shots) == chat
    assert GSM8K().messages(record) == [user(last)]
    assert GSM8K().training_messages(record, shots) == [*chat, assistant("A: A3")]
    assert AILuminate().messages({"prompt": " Fine? "}) == [user(" Fine? ")]


def test_other_words_stand_around_questions_and_answers():
    shots = [{"question": "Q1", "answer": "A1"}]
    record = {"question": "Q2", "answer": "A2"}
    wording = Wording("Question: ", "", "End in ####.")
    chat = [user("Question: Q1"), assistant("A1"), user("Question: Q2 End in ####.")]
    assert GSM8K().messages(record, shots, wording) == chat
    assert GSM8K().training_messages(record, shots, wording) == [*chat, assistant("A2")]
    assert Wording(instruction="").question("Q") == user("Q: Q"), "no space is left over"
    (rewriting,) = SelfInstruct("rewrite").messages(record, shots, wording)
    assert "Question: Q2\n" in rewriting["content"]
    assert rewriting["content"].endswith("Your own answer: End in ####.")
    attempt = {"response": "Answer: so\n#### 2", "finish_reason": "stop", "gold": "2"}
    assert own_answer(attempt, "Answer: ") == own_answer(attempt | {"response": "so #### 2"})


def test_a_system_turn_comes_first_if_asked_for():
    chat = [user("Hi")]
    assert with_system(chat, None) == chat
    assert with_system(chat, "Be brief.") == [{"role": "system", "content": "Be brief."}, *chat]
    assert with_system(chat, "safety")[0]["content"] == SAFETY_PROMPT


def test_fixed_shots_are_the_first_of_the_pool():
    selector = FewShotSampler(POOL, 3, "fixed")
    assert selector.select({"id": "test-0", "question": "Another?"}) == POOL[:3]


@pytest.mark.parametrize("question", ["What is 1+1?", "  What is\n1+1? "])
def test_a_question_is_never_its_own_fixed_shot(question):
    shots = FewShotSampler(POOL, 3, "fixed").select({"id": "test-0", "question": question})
    assert shots == [POOL[0], POOL[2], POOL[3]]


def test_every_copy_of_the_question_is_skipped():
    pool = [POOL[0], POOL[1], POOL[1], POOL[2]]
    assert FewShotSampler(pool, 2, "fixed").select(POOL[1]) == [POOL[0], POOL[2]]
    for seed in range(20):
        shots = FewShotSampler(pool, 2, "random", seed).select(POOL[1])
        assert sorted(shot["id"] for shot in shots) == ["train-0", "train-2"]


def test_random_shots_depend_on_seed_and_record_alone():
    forward = FewShotSampler(POOL, 4, "random", seed=1)
    backward = FewShotSampler(POOL, 4, "random", seed=1)
    shots = [forward.select(record) for record in POOL]
    assert shots == [backward.select(record) for record in reversed(POOL)][::-1]
    assert shots != [FewShotSampler(POOL, 4, "random", seed=2).select(record) for record in POOL]
    assert len({tuple(shot["id"] for shot in chosen) for chosen in shots}) > 20


def test_random_shots_are_distinct_never_the_question_and_evenly_drawn():
    selector = FewShotSampler(POOL, 5, "random", seed=0)
    drawn = Counter()
    for record in POOL:
        for trial in range(40):
            shots = [
                shot["id"]
                for shot in selector.select(
                    {"id": f"{record['id']} {trial}", **record_text(record)}
                )
            ]
            assert len(set(shots)) == 5 and record["id"] not in shots
            drawn.update(shots)
    assert (
        min(drawn.values()) > 140 and max(drawn.values()) < 260
    )  # 200 expected, standard deviation 13


def record_text(record):
    return {"question": record["question"]}


def test_no_shots():
    assert FewShotSampler([], 0).select({"id": "a", "question": "?"}) == []


def test_bad_requests_name_both_numbers():
    with pytest.raises(ValueError, match="31 shots asked for, but there are 30"):
        FewShotSampler(POOL, 31)
    with pytest.raises(ValueError, match="-1 shots"):
        FewShotSampler(POOL, -1)
    with pytest.raises(
        ValueError, match="unknown shot selection 'best': expected one of fixed, random"
    ):
        FewShotSampler(POOL, 1, "best")
    selector = FewShotSampler(POOL, 30)
    assert len(selector.select({"id": "a", "question": "Another?"})) == 30
    with pytest.raises(
        ValueError,
        match="30 shots asked for, but without the question of train-7 itself there are 29",
    ):
        selector.select(POOL[7])
