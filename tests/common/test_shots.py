"""Similar shots, from the command line's options to the prompts."""

import json
from dataclasses import replace

import pytest
import torch

import generate
import train
from common.settings import PromptSettings
from common.shots import make_selector, report_near_duplicates
from data.few_shot import FewShotSampler
from llama.embedding import Embedder, instruct

POOL = [
    {"id": f"t{i}", "question": question, "answer": f"#### {i}"}
    for i, question in enumerate(
        [
            "Ann has 3 apples and buys 2 more apples. How many apples does Ann have now?",
            "A train drives 60 miles an hour for 3 hours. How far does it drive?",
            "Ann has 7 apples and buys 4 more apples. How many apples does Ann have now?",
            "A box holds 12 eggs. How many eggs are in 5 boxes?",
        ]
    )
]


def select_for(settings, pool, records) -> FewShotSampler:
    return make_selector(settings, pool, records, torch.device("cpu"), torch.float32)


@pytest.fixture
def settings(chat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path / "cache"))
    return PromptSettings(shots=2, shot_selection="similar", embedder=str(chat_checkpoint))


def test_shots_come_in_the_order_of_their_cosines(settings):
    asked = {
        "id": "q",
        "question": "Eve has 5 apples and buys 1 more apple. How many apples does Eve have now?",
    }
    shots = select_for(settings, POOL, [asked]).select(asked)
    embedder = Embedder(settings.embedder)
    cosines = (
        embedder.embed([r["question"] for r in POOL])
        @ embedder.embed([instruct(asked["question"])])[0]
    )
    assert [shot["id"] for shot in shots] == [
        f"t{i}" for i in cosines.argsort(descending=True)[:2].tolist()
    ]


def test_a_question_is_never_its_own_shot(settings):
    selector = select_for(settings, POOL, POOL)
    for record in POOL:
        shots = selector.select(record)
        assert len(shots) == 2 and record["id"] not in {shot["id"] for shot in shots}
    settings = replace(settings, shots=3)  # then there are none left but the others
    selector = select_for(settings, POOL, POOL)
    assert sorted(shot["id"] for shot in selector.select(POOL[2])) == ["t0", "t1", "t3"]


def test_near_duplicates_are_reported(settings, tmp_path, capsys):
    settings, path = replace(settings, shots=3), tmp_path / "duplicates.json"
    report_near_duplicates(settings, select_for(settings, POOL, POOL), POOL, path)
    found = json.loads(path.read_text())
    pairs = {(pair["id"], pair["shot"]) for pair in found["near_duplicates"]}
    assert (
        pairs == {("t0", "t2"), ("t2", "t0")} and found["questions"] == 4
    )  # 14 of 16 words in common, in order
    assert (
        "2 of 4 questions have a near-duplicate among theirs: t0 ~ t2 (" in capsys.readouterr().out
    )


def test_the_first_token_finds_what_begins_alike(settings):
    """As the original had it: bare questions, and of equally near ones the first in the pool."""
    settings = replace(settings, pooling="first")
    questions = ["7 eggs?", "Max has eggs.", "7 trains?", "Quick trains?", "7 apples?"]
    pool = [{"id": f"t{i}", "question": text, "answer": ""} for i, text in enumerate(questions)]
    asked = [{"id": f"q{i}", "question": text} for i, text in enumerate(["7 boxes", "Quick eggs"])]
    selector = select_for(settings, pool, asked)
    assert [shot["id"] for shot in selector.select(asked[0])] == ["t0", "t2"]
    assert selector.select(asked[1])[0]["id"] == "t3"


def test_other_selections_need_no_embedder(settings):
    settings = replace(settings, embedder="no/such", shot_selection="random")
    shots = select_for(settings, POOL, POOL).select(POOL[0])
    assert shots == FewShotSampler(POOL, 2, "random", 0).select(POOL[0])


def test_the_scripts_take_similar_shots(chat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path / "cache"))
    run = [
        "--run",
        str(tmp_path / "run"),
        "--model",
        str(chat_checkpoint),
        "--data",
        "demo",
        "--limit",
        "4",
    ]
    run += ["--shots", "1", "--shot-selection", "similar", "--embedder", str(chat_checkpoint)]
    assert train.main([*run, "--steps", "1", "--validation", "0"]) == 0
    for limit in ("2", "4"):  # a second call must not forget the questions of the first
        assert (
            generate.main([*run, "--task", "gsm8k", "--max-new-tokens", "4", "--limit", limit]) == 0
        )
    assert json.loads((tmp_path / "run" / "gsm8k.duplicates.json").read_text())["questions"] == 4
    for task in ("train", "gsm8k"):
        settings = json.loads((tmp_path / "run" / f"{task}.summary.json").read_text())["settings"]
        assert (settings["shot_selection"], settings["pooling"]) == ("similar", "last")
        assert settings["embedder"] == str(chat_checkpoint)


def test_an_embedder_that_is_not_there_is_one_line(chat_checkpoint, tmp_path, capsys):
    run = [
        "--run",
        str(tmp_path),
        "--model",
        str(chat_checkpoint),
        "--data",
        "demo",
        "--limit",
        "2",
    ]
    assert (
        generate.main(
            [
                *run,
                "--task",
                "gsm8k",
                "--shots",
                "1",
                "--shot-selection",
                "similar",
                "--embedder",
                "x",
            ]
        )
        == 2
    )
    assert "'x': no such folder" in capsys.readouterr().err
