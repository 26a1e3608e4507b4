"""Self-instruct: which attempts are trained on, and what stands in for the unsolved questions."""

import pytest

from data.attempts import plan_attempts
from data.gsm8k import GSM8K
from data.records import rewrite_records
from data.registry import TASKS
from data.self_instruct import (
    RewriteUnsolved,
    Selection,
    SelfInstruct,
    assemble,
    count_right,
    count_sources,
    own_answer,
    rewrite_messages,
    unsolved,
)

RECORDS = [
    {
        "id": f"t{i}",
        "question": f"What is {i}+{i}?",
        "answer": f"{i}+{i}={2 * i}\n#### {2 * i}",
        "gold": str(2 * i),
    }
    for i in range(4)
]


def attempt(
    record: int, response: str, finish_reason: str = "stop", number: int = 0
) -> tuple[str, dict]:
    name = f"t{record}#{number}"
    return name, {
        "id": name,
        "response": response,
        "gold": RECORDS[record]["gold"],
        "finish_reason": finish_reason,
    }


def test_a_task_of_attempts_at_the_training_questions():
    task = SelfInstruct("sample", samples=2)
    attempts = task.load("demo")
    assert len(attempts) == 800 and attempts[1]["id"] == "demo-train-0#1"
    assert [record["id"] for record in task.sample(attempts, 2)] == [
        "demo-train-0#0", "demo-train-0#1", "demo-train-1#0", "demo-train-1#1"
    ]  # fmt: skip
    assert task.questions(attempts) == GSM8K().load("demo", "train")
    assert task.messages(attempts[0], attempts[8:9]) == GSM8K().messages(attempts[0], attempts[8:9])
    assert task.shots_from == "gsm8k" and SelfInstruct("rewrite").shots_from is None
    rewriting = SelfInstruct("rewrite").messages(attempts[0], attempts[8:9])
    assert rewriting == rewrite_messages(attempts[0]["question"], attempts[0]["answer"])
    assert SelfInstruct.name not in TASKS
    output = {"response": "#### 8", "token_ids": [5], "finish_reason": "length", "prompt_tokens": 1}
    summary = task.summarise([task.answer({**attempts[0], "gold": "8"}, output)])
    assert summary["attempts"] == summary["right"]["count"] == summary["cut_off"]["count"] == 1


def test_the_gold_answer_is_shown_for_rewriting():
    (message,) = rewrite_messages("What is 1+1?", "1+1=2\n#### 2")
    assert message["role"] == "user" and "Q: What is 1+1?" in message["content"]
    assert "Reference answer: 1+1=2\n#### 2" in message["content"] and message["content"].endswith(
        "after '####'."
    )


def test_every_question_is_asked_k_times_under_its_own_id():
    plan = plan_attempts(RECORDS[:2], 2)
    assert [record["id"] for record in plan] == ["t0#0", "t0#1", "t1#0", "t1#1"]
    assert plan[3]["question"] == "What is 1+1?" and RECORDS[0]["id"] == "t0"


@pytest.mark.parametrize(
    ("response", "finish_reason", "answer"),
    [
        ("A: One and one make two.\n#### 2", "stop", "One and one make two.\n#### 2"),
        ("  Two. #### 2.0 ", "stop", "Two.\n#### 2"),
        (
            "Two.\n#### 2\n\nYour own answer: the answer is 2.",
            "stop",
            "Two.\n#### 2",
        ),  # it would teach the remark
        ("#### 2", "stop", None),  # what the prompt shows, no answer of its own
        ("A: \n#### 2", "stop", None),
        ("**Answer**: #### 2", "stop", "**Answer**:\n#### 2"),
        ("<think>1+1? #### 2</think>Two.\n#### 2", "stop", "Two.\n#### 2"),
        ("<think>One and one make 2.</think>#### 2", "stop", None),
        ("#### 3", "stop", None),  # wrong
        ("I write it after '####'.\n\nThe answer is 2.", "stop", None),
        ("#### 1\nNo:\n#### 2", "stop", None),
        ("The answer is 2", "stop", None),  # no marker: train.py would refuse the file
        ("#### 2 and then", "length", None),  # cut off: it would not teach where to stop
    ],
)
def test_an_answer_must_end_by_itself_and_have_the_right_number(response, finish_reason, answer):
    assert own_answer(attempt(1, response, finish_reason)[1]) == answer


@pytest.mark.parametrize(
    ("response", "finish_reason", "answer"),
    [
        ("One and one make 2.", "stop", "One and one make 2.\n#### 2"),
        ("1+1 = 2 apples", "stop", "1+1 = 2 apples\n#### 2"),
        ("1+1 = 2, not 3", "stop", None),  # by the last number
        ("They are many.", "stop", None),
        ("1+1 = 2", "length", None),
        ("1+1 = 2", "stop", "1+1 = 2\n#### 2"),
        ("$2.", "stop", None),  # no work
        ("So 2.\n#### 3", "stop", None),  # with a marker, what is behind it counts
        ("So it is.\n#### 2", "stop", "So it is.\n#### 2"),
    ],
)
def test_by_the_flexible_reading_the_last_number_is_the_answer(response, finish_reason, answer):
    made = attempt(1, response, finish_reason)[1]
    assert own_answer(made, reading="flexible") == answer
    if "####" not in response:
        assert own_answer(made) is None


def test_the_reading_holds_for_rewrites_and_the_unsolved_as_well():
    flexible = Selection("distinct", fallback="rewrite", reading="flexible")
    attempts = dict([attempt(1, "1+1 = 2"), attempt(2, "What?")])
    assert unsolved(RECORDS[1:3], attempts, flexible) == {"t2"}
    assert unsolved(RECORDS[1:3], attempts, Selection()) == {"t1", "t2"}
    assert count_right(attempts.values(), flexible) == 1
    assert count_right(attempts.values(), Selection()) == 0
    rewrites = dict([attempt(2, "2+2 = 4")])
    chosen = assemble(RECORDS[1:3], attempts, "sample", flexible, rewrites=rewrites)
    assert [record["answer"] for record in chosen] == ["1+1 = 2\n#### 2", "2+2 = 4\n#### 4"]


def test_the_first_right_attempt_counts_whatever_order_they_finished_in():
    attempts = dict(
        [
            attempt(1, "third #### 2", number=10),
            attempt(1, "second #### 2", number=2),
            attempt(1, "first #### 5", number=0),
            attempt(2, "wrong #### 5"),
        ]
    )
    by_gold = assemble(RECORDS[1:3], attempts, "sample", Selection())
    assert [(r["id"], r["answer"], r["source"]) for r in by_gold] == [
        ("t1", "second\n#### 2", "sample"),
        ("t2", "2+2=4\n#### 4", "gold"),
    ]
    dropping = assemble(RECORDS[1:3], attempts, "sample", Selection(fallback="drop"))
    assert [record["id"] for record in dropping] == ["t1"]
    assert count_sources(by_gold) == {"sample": 1, "gold": 1}


SOLUTIONS = (
    "A: 1+1 = 2\n#### 2",
    "One and one: 1 + 1 = <<1+1=2>>2.\n#### 2",  # the same equation in other words
    "4-2 = 2, so\n#### 2",
    "4-2 = 2 and wrong\n#### 3",
    "They make two.\n#### 2",  # no equation at all
    "It is two.\n#### 2",
    "1*2 = 2\n#### 2",
)


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(), [0]),
        (Selection("distinct"), [0, 2, 4, 6]),
        (Selection("distinct", per_question=2), [0, 2]),
        (Selection("distinct", per_question=1), [0]),
        (Selection("distinct", per_question=9), [0, 2, 4, 6]),
    ],
)
def test_distinct_solutions_are_those_with_other_equations(selection, kept):
    attempts = dict(attempt(1, text, number=i) for i, text in enumerate(SOLUTIONS))
    chosen = assemble(RECORDS[1:2], attempts, "sample", selection)
    assert [record["answer"] for record in chosen] == [
        SOLUTIONS[i].removeprefix("A: ") for i in kept
    ]
    assert {(record["id"], record["question"]) for record in chosen} == {("t1", "What is 1+1?")}


def test_unsolved_questions_are_rewritten_and_dropped_if_that_fails():
    attempts = dict([attempt(0, "#### 9"), attempt(1, "Two.\n#### 2"), attempt(3, "#### 9")])
    assert unsolved(RECORDS, attempts, Selection()) == {"t0", "t2", "t3"}
    task = RewriteUnsolved({"t0", "t3"})
    asked = task.sample(plan_attempts(RECORDS, 1), limit=None)
    assert [record["id"] for record in asked] == ["t0#0", "t3#0"]
    assert task.messages(asked[1]) == rewrite_messages(asked[1]["question"], asked[1]["answer"])
    rewrites = dict([attempt(0, "None.\n#### 0"), attempt(3, "Seven.\n#### 7")])
    selection = Selection("distinct", fallback="rewrite")
    chosen = assemble(RECORDS, attempts, "sample", selection, rewrites=rewrites)
    assert [(record["id"], record["source"]) for record in chosen] == [
        ("t0", "rewrite"),
        ("t1", "sample"),
    ]


def test_nothing_left_is_an_error_that_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"none of the 4 answers has the right number.*--fallback gold"
    ):
        assemble(RECORDS, {}, "rewrite", Selection(fallback="drop"))


def test_the_file_is_training_data_that_says_where_it_came_from(tmp_path):
    path = tmp_path / "own.jsonl"
    attempts = dict([attempt(1, "A: mine\n#### 2")])
    rewrite_records(path, assemble(RECORDS[:2], attempts, "rewrite", Selection()))
    loaded = GSM8K().load(path, "train")
    assert [(r["answer"], r["gold"], r["source"]) for r in loaded] == [
        ("0+0=0\n#### 0", "0", "gold"),
        ("mine\n#### 2", "2", "rewrite"),
    ]


def test_either_all_records_say_where_they_came_from_or_none(tmp_path):
    path = tmp_path / "own.jsonl"
    records = assemble(RECORDS[:2], {}, "rewrite", Selection())
    del records[0]["source"]
    rewrite_records(path, records)
    with pytest.raises(
        ValueError, match=r"own\.jsonl, line 2: a 'source', unlike the first record"
    ):
        GSM8K().load(path, "train")


@pytest.mark.parametrize("field", ["question", "answer", "source"])
def test_a_record_that_lacks_a_field_is_named(tmp_path, field):
    path = tmp_path / "own.jsonl"
    records = assemble(RECORDS[:2], {}, "rewrite", Selection())
    del records[1][field]
    rewrite_records(path, records)
    with pytest.raises(ValueError, match=rf"own\.jsonl, line 2: no '{field}'"):
        GSM8K().load(path, "train")
