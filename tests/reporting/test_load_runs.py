import json
from pathlib import Path

import pytest

from data.intervals import rate
from guards.verdicts import answer_sha256, summarise_verdicts
from reporting.cautions import find_cautions
from reporting.load_runs import Part, Rate, Run, distinct_names, load_runs, short_names
from reporting.sample_answers import pick_samples
from reporting.tables import (
    Table,
    build_tables,
    describe_adapter,
    describe_judge,
    describe_model,
    describe_shots,
    to_markdown,
    to_text,
)

QUESTIONS = ["What is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?", "What is 4 + 4?"]


def gsm8k_records(correct: str) -> list[dict]:
    """A record per letter of `correct`: r for right, w for wrong."""
    return [
        {
            "id": f"demo-test-{i}",
            "question": QUESTIONS[i],
            "response": f"#### {letter}",
            "prediction": None if letter == "w" else "2",
            "gold": "2",
            "correct": letter == "r",
        }
        for i, letter in enumerate(correct)
    ]


def write_gsm8k(folder: Path, correct: str = "rrw", finished: bool = True, **changes) -> Path:
    records = gsm8k_records(correct)
    right = rate(correct.count("r"), len(records))
    summary = {
        "task": "gsm8k",
        "finished": finished,
        "questions": len(records),
        "accuracy": {"homework": right, "strict": right, "flexible": right},
        "has_marker": rate(len(records), len(records)),
        "cut_off": rate(0, len(records)),
        "settings": {
            "model": "org/Tiny-1B",
            "adapter": None,
            "shots": 3,
            "shot_selection": "fixed",
        },
        "seconds": 12.5,
        "new_tokens_per_second": 100.0,
        "peak_memory_bytes": 2_000_000_000,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gsm8k.summary.json").write_text(json.dumps(summary))
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def write_safety(folder: Path, responses: str = "ssu", finished: bool = True, **changes) -> Path:
    """An answer and its verdict per letter of `responses`: s for safe, u for unsafe."""
    about = [{"id": f"p{i}", "hazard": "cse", "persona": "skilled"} for i in range(len(responses))]
    answers = [
        {**keys, "prompt": "?", "response": text}
        for keys, text in zip(about, responses, strict=True)
    ]
    labels = {"s": "Safe", "u": "Unsafe"}
    verdicts = [
        {
            **keys,
            "safety": labels[answer["response"]],
            "categories": [],
            "refusal": "No",
            "finish_reason": "stop",
            "answer_sha256": answer_sha256(answer),
        }
        for keys, answer in zip(about, answers, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("ailuminate", answers), ("verdicts", verdicts)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    answered = {
        "task": "ailuminate",
        "finished": True,
        "prompts": len(answers),
        "cut_off": rate(0, len(answers)),
    }
    judged = {
        "task": "judge",
        "finished": finished,
        **summarise_verdicts(verdicts, "guard"),
        "settings": {},
        **changes,
    }
    (folder / "ailuminate.summary.json").write_text(json.dumps(answered | {"settings": {}}))
    (folder / "judge.summary.json").write_text(json.dumps(judged))
    return folder


def part(**fields) -> Part:
    return Part(
        **{
            "finished": True,
            "done": 1,
            "total": 1,
            "settings": {},
            "environment": {},
            "records": [],
            **fields,
        }
    )


def test_a_run_is_read_with_its_numbers_and_rates(tmp_path):
    (run,) = load_runs([write_gsm8k(tmp_path / "base", "rrw")])
    gsm8k = run.parts["gsm8k"]
    assert list(run.parts) == ["gsm8k"] and run.name == "base"
    low, high = rate(2, 3)["low"], rate(2, 3)["high"]
    assert gsm8k.rates["accuracy.homework"] == Rate(2, 3, 2 / 3, low, high)
    assert gsm8k.numbers["seconds"] == 12.5 and gsm8k.total == 3 and gsm8k.finished


def test_a_missing_folder_and_a_folder_without_summaries_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such run folder"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "gsm8k.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"no summary of training, answers or judging"):
        load_runs([tmp_path])


BAD_RATE = {"count": 5, "total": 3, "rate": 0.5, "low": 0.1, "high": 0.9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "judge"}, r"gsm8k\.summary\.json: field 'task' must be 'gsm8k', found 'judge'"),
        ({"finished": "yes"}, "field 'finished' must be true or false, found 'yes'"),
        ({"settings": None}, "field 'settings' must be an object"),
        ({"seconds": "12"}, "field 'seconds' must be a number, found '12'"),
        ({"seconds": True}, "field 'seconds' must be a number, found True"),
        ({"adapter_path": 3}, "field 'adapter_path' must be text, found 3"),
        ({"questions": None}, "field 'questions' must be a whole number"),
        ({"accuracy": {}}, "field 'homework' must be an object, which is missing"),
        ({"cut_off": 0.5}, "field 'cut_off' must be an object, found 0.5"),
        ({"cut_off": BAD_RATE}, "in 'cut_off': a count of 5 out of 3"),
        (
            {"cut_off": {**BAD_RATE, "count": 1, "rate": 1.5}},
            "in 'cut_off': rate 1.5 outside its interval",
        ),
        (
            {"cut_off": {**BAD_RATE, "count": 1, "high": None}},
            "in 'cut_off': field 'high' must be a number",
        ),
    ],
)
def test_a_malformed_summary_is_refused_with_file_and_field(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_runs([write_gsm8k(tmp_path, **changes)])


def test_a_malformed_record_is_refused_with_its_line(tmp_path):
    path = write_gsm8k(tmp_path) / "gsm8k.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", '{"id": "x", "question": 3}', ""]))
    with pytest.raises(
        ValueError, match=r"gsm8k\.jsonl, line 3: field 'question' must be text, found 3"
    ):
        load_runs([tmp_path])
    path.write_text(lines[0] + "\n{broken\n")
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl, line 2: not valid JSON"):
        load_runs([tmp_path])


@pytest.mark.parametrize("correct", ["", "rr"])
def test_an_unfinished_part_has_progress_only_and_may_end_in_half_a_line(tmp_path, correct):
    folder = write_gsm8k(tmp_path / "run", correct, finished=False)
    with open(folder / "gsm8k.jsonl", "a") as file:
        file.write('{"id": "demo-te')
    (run,) = load_runs([folder])
    gsm8k = run.parts["gsm8k"]
    # "questions" of an unfinished summary counts the answers so far: no total.
    assert gsm8k.progress == f"running, {len(correct)} done"
    assert gsm8k.rates == {} and gsm8k.numbers == {}
    assert build_tables([run])[0].rows == [("run", gsm8k.progress, "running", "-", "-", "-", "-")]
    (caution,) = find_cautions([run])
    assert (
        caution
        == f"run: gsm8k is unfinished ({gsm8k.progress}, unless interrupted); its results are left out."
    )


def test_half_a_line_in_a_finished_part_is_an_error(tmp_path):
    with open(write_gsm8k(tmp_path) / "gsm8k.jsonl", "a") as file:
        file.write('{"id": "demo-te')
    with pytest.raises(ValueError, match="line 4: not valid JSON"):
        load_runs([tmp_path])


def test_training_progress_counts_steps(tmp_path):
    summary = {"task": "train", "finished": False, "settings": {"steps": 40}}
    (tmp_path / "train.summary.json").write_text(json.dumps(summary))
    lines = [
        {"step": 7, "loss": 1.0},
        {"step": 8, "loss": 0.9},
        {"step": 8, "validation_loss": 1.1},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = load_runs([tmp_path])
    assert run.parts["train"].progress == "running 8/40"
    (tmp_path / "train.jsonl").write_text('{"step": 1, "loss": "low"}\n')
    with pytest.raises(
        ValueError, match=r"train\.jsonl, line 1: field 'loss' must be a number, found 'low'"
    ):
        load_runs([tmp_path])


def test_judging_progress_counts_verdicts_of_those_planned(tmp_path):
    (run,) = load_runs([write_safety(tmp_path, "ssu", finished=False, planned=7)])
    assert run.parts["judge"].progress == "running 3/7"


def test_a_judge_summary_needs_a_known_method(tmp_path):
    summary = {"task": "judge", "finished": True, "settings": {}, "method": "vibes"}
    (tmp_path / "judge.summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        ValueError, match="field 'method' must be 'guard' or 'refusal', found 'vibes'"
    ):
        load_runs([tmp_path])


def test_equal_folder_names_are_told_apart_and_one_folder_counts_once(tmp_path):
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "other")]
    assert distinct_names(folders) == ["a/x/run", "b/x/run", "other"]
    folder = write_gsm8k(tmp_path / "run")
    assert [run.name for run in load_runs([folder, folder / ".." / "run"])] == ["run"]


def test_long_names_lose_their_middle_unless_that_makes_them_equal(tmp_path):
    names = ["short", "a" * 20 + "-one-" + "z" * 20, "a" * 20 + "-two-" + "z" * 20]
    runs = [Run(tmp_path, name, {}) for name in names]
    assert short_names(runs) == names
    assert short_names(runs[:2], width=13) == ["short", "aaaaa...zzzzz"]


def test_cautions_name_what_must_not_be_compared(tmp_path):
    records = [{"id": "p", "prompt": "?", "hazard": "cse", "response": "!"}]
    mixed = {
        "gsm8k": part(settings={"model": "m", "adapter": "0123"}),
        "ailuminate": part(settings={"model": "m", "adapter": None}, records=records * 3),
        "judge": part(done=2, total=2, method="guard"),
    }
    assert find_cautions([Run(tmp_path, "mixed", mixed)]) == [
        "mixed: 2 of 3 AILuminate answers are judged.",
        "mixed: adapter was 0123 for GSM8K and None for AILuminate.",
    ]
    runs = [
        Run(tmp_path, name, {"gsm8k": part(records=gsm8k_records(name))})
        for name in ("rr", "ww", "rrr")
    ]
    assert find_cautions(runs[:2]) == []
    assert find_cautions(runs) == ["The runs did not all answer the same GSM8K prompts."]


def test_verdicts_on_other_answers_are_left_out(tmp_path):
    folder = write_safety(tmp_path / "run", "ssu")
    (run,) = load_runs([folder])
    assert run.stale_verdicts == 0 and build_tables([run])[0].rows[0][3] == "66.7 [20.8, 93.9]"
    assert [sample.kind for sample in pick_samples([run], "ailuminate")] == [
        "safe",
        "safe",
        "not safe",
    ]

    path = folder / "ailuminate.jsonl"
    answers = path.read_text()
    for changed in (
        answers.replace('"response": "u"', '"response": "U"'),
        answers[: answers.index("\n") + 1],
        "",
    ):
        path.write_text(changed)
        (stale,) = load_runs([folder])
        assert "judge" not in stale.parts
        cautions = "\n".join(find_cautions([stale]))
        assert (
            "run: its verdicts are left out" in cautions
            and f"(others: {stale.stale_verdicts})" in cautions
        )
        assert all(
            row[-1] == "-"
            for table in build_tables([stale])
            for row in table.rows
            if "judged by" in table.header
        )
        assert {sample.kind for sample in pick_samples([stale], "ailuminate")} <= {"not judged"}
        assert all(
            a.good is None for sample in pick_samples([stale], "ailuminate") for a in sample.answers
        )
    path.write_text(answers)
    assert pick_samples([stale], "ailuminate") == []  # the folder is read once, when it is loaded


def test_verdicts_that_do_not_say_what_they_judge_are_left_out(tmp_path):
    path = write_safety(tmp_path) / "verdicts.jsonl"
    path.write_text(path.read_text().replace("answer_sha256", "answer_md5"))
    assert load_runs([tmp_path])[0].stale_verdicts == 3


@pytest.mark.parametrize(
    ("trained", "adapter", "caution"),
    [
        ("aaaa", "aaaa", None),
        (None, "aaaa", None),  # trained before summaries held a fingerprint
        ("aaaa", "bbbb", "was answered with adapter bbbb, not with aaaa, the one trained here."),
        ("aaaa", None, "was answered by the base model, not with the adapter trained here."),
        (None, None, "was answered by the base model, not with the adapter trained here."),
    ],
)
def test_answers_of_another_adapter_than_the_trained_one_are_told(
    tmp_path, trained, adapter, caution
):
    answered = {task: part(settings={"adapter": adapter}) for task in ("gsm8k", "ailuminate")}
    train = part(adapter_fingerprint=trained)
    expected = [f"run: {title} {caution}" for title in ("GSM8K", "AILuminate")] if caution else []
    assert find_cautions([Run(tmp_path, "run", answered | {"train": train})])[-2:] == expected
    young = part(finished=False, adapter_fingerprint=trained)
    assert (
        len(find_cautions([Run(tmp_path, "run", answered | {"train": young})])) == 1
    )  # unfinished, nothing else


def test_other_records_than_the_summary_counts_are_told(tmp_path):
    counted = {
        "questions": 2,
        "accuracy": {name: rate(1, 2) for name in ("homework", "strict", "flexible")},
    }
    (run,) = load_runs([write_gsm8k(tmp_path / "run", "rrw", **counted)])
    assert find_cautions([run]) == [
        "run: gsm8k.jsonl holds 3 records, but gsm8k.summary.json counts 2 (was --limit changed?); the results are the "
        "summary's."
    ]
    training = Run(
        tmp_path, "run", {"train": part(records=[{"step": 1}, {"step": 1}])}
    )  # a step and its validation
    assert find_cautions([training]) == []


def test_runs_judged_in_different_ways_are_told(tmp_path):
    def judged(name: str, method: str = "guard", **settings) -> Run:
        defaults = (
            {} if method == "refusal" else {"model": "Qwen/Qwen3Guard-Gen-4B", "dtype": "bfloat16"}
        )
        return Run(tmp_path, name, {"judge": part(method=method, settings=defaults | settings)})

    one = judged("one")
    assert find_cautions([one, judged("two"), Run(tmp_path, "unjudged", {})]) == []
    phrase = "The runs were not all judged alike: one by Qwen/Qwen3Guard-Gen-4B in bfloat16; two by"
    assert find_cautions([one, judged("two", "refusal")]) == [f"{phrase} refusal phrases."]
    assert find_cautions([one, judged("two", dtype="float32")]) == [
        f"{phrase} Qwen/Qwen3Guard-Gen-4B in float32."
    ]
    free = f"{phrase} Qwen/Qwen3Guard-Gen-4B in bfloat16, decoded freely."
    assert find_cautions([one, judged("two", grammar=False)]) == [free]
    assert find_cautions([one, judged("two", model="m/x")]) == [f"{phrase} m/x in bfloat16."]
    names = [
        describe_judge(run) for run in (one, judged("two", "refusal"), judged("x", model="a/b/"))
    ]
    assert names == ["Qwen3Guard-Gen-4B", "refusal phrases", "b"]


def test_how_a_run_was_made_is_described_shortly(tmp_path):
    def described(
        gsm8k: dict, ailuminate: dict | None = None, path: str | None = None
    ) -> tuple[str, str, str]:
        parts = {"gsm8k": part(settings=gsm8k, adapter_path=path)}
        parts |= {"ailuminate": part(settings=ailuminate)} if ailuminate else {}
        run = Run(tmp_path, "run", parts)
        return describe_model(run), describe_adapter(run), describe_shots(run)

    base = {
        "model": "meta-llama/Llama-3.2-1B-Instruct",
        "adapter": None,
        "adapter_scale": None,
        "shots": 0,
    }
    assert described(base) == ("Llama-3.2-1B-Instruct", "base", "0")
    tuned = base | {
        "adapter": "3fa9c21b04d7",
        "adapter_scale": 1.0,
        "shots": 3,
        "shot_selection": "random",
    }
    assert described(tuned) == ("Llama-3.2-1B-Instruct", "3fa9c21b04d7", "3 random")
    assert described(tuned, path="/home/me/runs/tuned/adapter/")[1] == "tuned/adapter"
    assert described(tuned, path="adapter")[1] == "adapter"
    assert (
        described(tuned | {"adapter_scale": 0.5}, base, "runs/x/adapter")[1]
        == "x/adapter x 0.5 / base"
    )


def test_tables_align_numbers_and_escape_markdown():
    table = Table(
        "Title", ("run", "n", "who"), [("a|b", "7", "x"), ("c", "1,200", "-")], note="A note."
    )
    assert to_text(table, ["a", "long"]).splitlines() == [
        "Title",
        "run       n  who",
        "----------------",
        "a         7  x",
        "long  1,200  -",
        "A note.",
    ]
    assert to_markdown(table).splitlines()[2:6] == [
        "| run | n | who |",
        "| :--- | ---: | :--- |",
        "| a\\|b | 7 | x |",
        "| c | 1,200 | - |",
    ]


def test_samples_show_what_was_lost_and_gained_on_shared_questions(tmp_path):
    folders = [write_gsm8k(tmp_path / name, name) for name in ("rwrw", "wrrw")]
    samples = pick_samples(load_runs(folders), "gsm8k")
    assert [(sample.kind, sample.prompt) for sample in samples] == [
        ("right → wrong", QUESTIONS[0]),
        ("wrong → right", QUESTIONS[1]),
        ("right", QUESTIONS[2]),
        ("wrong", QUESTIONS[3]),
    ]
    assert [answer.verdict for answer in samples[0].answers] == ["right: 2", "wrong: no number"]
    (tmp_path / "rwrw" / "gsm8k.jsonl").write_text(
        json.dumps(gsm8k_records("r")[0] | {"question": "Another?"}) + "\n"
    )
    assert pick_samples(load_runs(folders), "gsm8k") == []


def test_at_most_two_samples_of_a_kind_the_first_by_id(tmp_path):
    records = gsm8k_records("rrrr")
    runs = [Run(tmp_path, "run", {"gsm8k": part(records=records[::-1])})]
    assert [sample.prompt for sample in pick_samples(runs, "gsm8k")] == QUESTIONS[:2]
