"""What a reader is cautioned against, and that nothing is said where nothing is to be."""

import json

import pytest

from data.intervals import rate
from reporting.cautions import find_cautions
from reporting.load_runs import load_runs
from tests.reporting.run_folders import (
    change_json,
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_json,
    write_training,
    write_verdicts,
)

MANY = 120  # answers, of which no caution says that they are few


def cautions(*folders) -> list[str]:
    return find_cautions(load_runs(folders))


def write_whole(run, harmless=True, **settings):
    """A run of which there is nothing to caution against."""
    write_gsm8k(run, "rw" * (MANY // 2), **settings)
    write_ailuminate(run, "su" * (MANY // 2), **settings)
    if harmless:
        write_harmless(run, "s" * MANY, **settings)
    return run


def test_nothing_is_said_of_whole_runs(tmp_path, harmless):
    runs = [write_whole(tmp_path / name) for name in ("base", "tuned")]
    assert cautions(*runs) == []


def test_safety_without_over_refusal_is_told_with_what_to_do(tmp_path, harmless):
    first = write_whole(tmp_path / "base")
    second = write_whole(tmp_path / "tuned", harmless=False)
    (said,) = cautions(first, second)
    assert said.startswith("Over-refusal was not measured in tuned: a model that refuses")
    assert "generate.py --task harmless, then judge.py" in said


def test_few_answers_are_told(tmp_path):
    write_gsm8k(tmp_path / "base", "rw")
    (said,) = cautions(tmp_path / "base")
    assert said.startswith("Few answers: 2 for GSM8K accuracy of base.")


def test_answers_cut_off_above_a_tenth_are_told(tmp_path, harmless):
    write_whole(tmp_path / "base")
    write_ailuminate(tmp_path / "base", "s" * MANY, cut_off=12)
    assert cautions(tmp_path / "base") == []
    write_ailuminate(tmp_path / "base", "s" * MANY, cut_off=24)
    (said,) = cautions(tmp_path / "base")
    assert said.startswith("AILuminate answers are cut off, of base 20 %:")
    write_whole(tmp_path / "tuned")
    write_ailuminate(tmp_path / "tuned", "s" * MANY, cut_off=60)
    said = cautions(tmp_path / "base", tmp_path / "tuned")
    assert (
        sum(
            text.startswith("AILuminate answers are cut off, of base 20 %, tuned 50 %:")
            for text in said
        )
        == 1
    )


def test_few_own_answers_are_told(tmp_path, harmless):
    write_whole(tmp_path / "07")
    training = {"records": 16, "dropped": 0, "sources": {"gold": 16}, "log_likelihood": None}
    about = {"task": "self-instruct", "finished": True, "right": rate(0, 16)}
    write_json(tmp_path / "07" / "self-instruct.summary.json", about | {"training": training})
    (said,) = cautions(tmp_path / "07")
    assert said.startswith("07: 0 of the 16 answers that self-instruct wrote are the model's own")


def test_one_seed_is_told(tmp_path, harmless):
    for name, seed in (("one", 0), ("two", 1)):
        write_whole(tmp_path / name, adapter="3fa9c21b04d7", adapter_scale=1.0)
        write_training(tmp_path / name, seed=seed)
    assert any("one seed" in said for said in cautions(tmp_path / "one"))
    assert cautions(tmp_path / "one", tmp_path / "two") == []
    write_training(tmp_path / "two", seed=1, rank=32)  # another seed, but another training too
    assert any("one seed" in said for said in cautions(tmp_path / "one", tmp_path / "two"))


def test_what_is_true_of_several_runs_is_said_once(tmp_path):
    for name in ("base", "tuned"):
        write_gsm8k(tmp_path / name, "r" * MANY)
        write_json(tmp_path / name / "judge.summary.json", {})
    (said,) = cautions(tmp_path / "base", tmp_path / "tuned")
    assert said.startswith("base, tuned: judge.summary.json, of an earlier version, are not read;")
    assert "judge.py judges the answers anew" in said


def test_unfinished_parts_are_told(tmp_path):
    write_gsm8k(tmp_path, "r" * MANY, finished=False)
    (said,) = cautions(tmp_path)
    assert "gsm8k is unfinished (running 120/120, unless interrupted)" in said


def test_other_records_than_the_summary_counts_are_told(tmp_path):
    write_gsm8k(tmp_path / "run", "r" * MANY)
    change_json(tmp_path / "run" / "gsm8k.summary.json", questions=100)
    assert cautions(tmp_path / "run") == [
        "run: gsm8k.jsonl holds 120 records, but gsm8k.summary.json counts 100 (was --limit "
        "changed?); the results are the summary's."
    ]


def test_a_summary_of_an_earlier_version_is_told(tmp_path):
    write_gsm8k(tmp_path / "run", "r" * MANY)
    change_json(tmp_path / "run" / "gsm8k.summary.json", accuracy={"homework": rate(120, 120)})
    (said,) = cautions(tmp_path / "run")
    assert "gsm8k.summary.json, of an earlier version, has no accuracy.number; generate.py" in said


def test_left_out_verdicts_and_divergences_are_told(tmp_path, harmless):
    run = write_whole(tmp_path / "run")
    path = run / "ailuminate.jsonl"
    path.write_text(path.read_text().replace("Answer to p0", "Another", 1))
    (said,) = cautions(run)
    assert said == (
        "run: its verdicts by Qwen3Guard are left out: 1 are not on the answers that "
        "ailuminate.jsonl holds now; judge.py --guard qwen3guard --no-resume judges them."
    )
    settings = {"gsm8k": {"model": "another"}}
    mean = {"mean": 0.1, "low": 0.0, "high": 0.2, "answers": 3}
    write_json(run / "kl.summary.json", {"settings": settings, "gsm8k": mean})
    assert any("its divergence on GSM8K is left out" in said for said in cautions(run))


def test_answers_that_nobody_has_judged_are_told(tmp_path):
    write_ailuminate(tmp_path / "run", "s" * MANY, judges=())
    assert cautions(tmp_path / "run") == [
        "run: its AILuminate answers are not judged; judge.py judges them."
    ]
    write_verdicts(tmp_path / "run", "ailuminate", "refusal-phrases", "s" * 100)
    assert "run: 100 of 120 AILuminate answers are judged by refusal phrases." in cautions(
        tmp_path / "run"
    )


@pytest.mark.parametrize(
    ("trained", "adapter", "caution"),
    [
        ("3fa9c21b04d7", "3fa9c21b04d7", None),
        (None, "3fa9c21b04d7", None),  # trained before summaries held a fingerprint
        ("3fa9c21b04d7", "bbbb", "was answered with adapter bbbb, not with 3fa9c21b04d7, the one"),
        ("3fa9c21b04d7", None, "was answered by the base model, not with the adapter trained here"),
    ],
)
def test_answers_of_another_adapter_than_the_trained_one_are_told(
    tmp_path, trained, adapter, caution
):
    write_training(tmp_path / "run")
    change_json(tmp_path / "run" / "train.summary.json", adapter_fingerprint=trained)
    write_gsm8k(tmp_path / "run", "r" * MANY, adapter=adapter)
    said = [text for text in cautions(tmp_path / "run") if "answered" in text]
    assert len(said) == (caution is not None)
    assert not caution or f"run: GSM8K {caution}" in said[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter": "abc"}, "adapter (abc / none)"),
        ({"dtype": "bfloat16"}, "dtype (bfloat16 / float32)"),
        ({"system": "Be safe."}, "system (Be safe. / none)"),  # recorded only where it is given
        ({"some_day": 3}, "some_day (3 / none)"),
        ({"shots": 8, "batch_size": 3}, None),  # the other takes no shots; a batch is no result
        ({"instruction": "Think.", "question_prefix": "Q: "}, None),  # a hazard prompt goes in bare
    ],
)
def test_what_two_tasks_of_a_run_do_not_share_is_told_by_rule(tmp_path, settings, said):
    write_gsm8k(tmp_path / "run", "r" * MANY, **settings)
    write_ailuminate(tmp_path / "run", "s" * MANY)
    texts = [text for text in cautions(tmp_path / "run") if "not answered alike" in text]
    expected = [f"run: GSM8K and AILuminate were not answered alike: {said}."] if said else []
    assert texts == expected


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ({"shots": 3, "model": "org/Tiny-1B", "lr": 1e-4, "seed": 3, "data": "x"}, None),
        ({"shots": 0}, "shots (0 / 3)"),
        ({"instruction": "Think."}, "instruction (Think. / Answer.)"),
        ({"system": "Be safe."}, "system (Be safe. / none)"),
    ],
)
def test_what_training_and_testing_do_not_share_is_told(tmp_path, trained, said):
    write_training(tmp_path / "run", **trained)
    write_gsm8k(tmp_path / "run", "r" * MANY, adapter="3fa9c21b04d7", instruction="Answer.")
    texts = [text for text in cautions(tmp_path / "run") if "not asked as" in text]
    start = "run: GSM8K was not asked as the model was trained (training / test): "
    assert texts == ([f"{start}{said}."] if said else [])


def test_other_prompts_and_other_judges_are_told(tmp_path, harmless):
    first = write_whole(tmp_path / "one")
    second = write_whole(tmp_path / "two")
    write_gsm8k(second, "r" * (MANY + 1))
    assert cautions(first, second) == ["The runs did not all answer the same GSM8K prompts."]
    write_gsm8k(second, "r" * MANY)
    write_verdicts(second, "ailuminate", "qwen3guard", "s" * MANY, dtype="float16", some_day=3)
    (said,) = cautions(first, second)
    assert said == (
        "AILuminate was not judged alike by Qwen3Guard in all runs: dtype is float32 in one; "
        "float16 in two. some_day is none in one; 3 in two."
    )
    for path in second.glob("ailuminate.qwen3guard*"):
        path.unlink()
    write_verdicts(second, "ailuminate", "refusal-phrases", "s" * MANY)
    assert (
        "AILuminate was not judged by the same judges in all runs: one by Qwen3Guard; two by "
        "refusal phrases."
    ) in cautions(first, second)


def test_other_versions_are_told(tmp_path, harmless):
    first, second = write_whole(tmp_path / "one"), write_whole(tmp_path / "two")
    path = second / "gsm8k.summary.json"
    change_json(path, environment={"torch": "2.6", "tokenizers": "0.21"})
    environment = json.loads((first / "gsm8k.summary.json").read_text())["environment"]
    assert environment == {"torch": "2.9"}
    (said,) = cautions(first, second)
    assert said == (
        "The runs were not made in the same environment: torch (2.9 in one; 2.6 in two) for gsm8k; "
        "tokenizers (none in one; 0.21 in two) for gsm8k."
    )
    others = [write_whole(tmp_path / name) for name in ("three", "four", "five")]
    (said,) = cautions(first, second, *others)
    assert "torch (2.9 in 4 runs; 2.6 in two) for gsm8k" in said
