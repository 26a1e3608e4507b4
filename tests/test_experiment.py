"""experiment.py: a whole recipe on a tiny model, interrupted and started again."""

from collections.abc import Sequence

import pytest

import experiment
import generate
import judge
from data.records import read_json, read_jsonl

RECIPE = """\
title: one shot, twice
original: {gsm8k: 43.2, safe: 84.2}
self-instruct: {mode: rewrite, max-new-tokens: 4}
train:
  - {steps: 2, batch-size: 4, validation: 0, lr: 0.01}
  - {steps: 1, batch-size: 4, validation: 0, shots: 1}
gsm8k: {shots: 1, max-new-tokens: 4}
ailuminate: {max-new-tokens: 4}
sweep: [0.5]
"""
BASE = "title: base\ngsm8k: {shots: 1, max-new-tokens: 4}\nailuminate: {max-new-tokens: 4}\n"
SAFE = "title: safe\nadapter: row\ngsm8k: {shots: 1, max-new-tokens: 4, system: Hm}\nailuminate: {max-new-tokens: 4}\n"


@pytest.fixture
def call(chat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*recipes: str, settings: Sequence[str] = (), **texts: str) -> int:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        options = [
            "--model",
            str(chat_checkpoint),
            "--data",
            "demo",
            "--limit",
            "4",
            "--train-limit",
            "12",
        ]
        options += ["--judge", "refusal", "--kl-limit", "2", "--device", "cpu"]
        options += [word for setting in settings for word in ("--set", setting)]
        return experiment.main([*(f"{name}.yaml" for name in recipes), *options])

    return run


@pytest.fixture
def folder(chat_checkpoint, tmp_path):
    return tmp_path / "runs" / chat_checkpoint.name


def test_recipes_end_in_one_table(call, folder, capsys):
    assert call("base", "row", "safe", base=BASE, row=RECIPE, safe=SAFE) == 0
    printed = capsys.readouterr().out
    table = printed[printed.rindex("Rows of the experiment") :]
    assert "43.2 [35.0, 51.7]" in table and "one shot, twice, adapter x 0.5" in table
    settings = {
        name: read_json(folder / name / "gsm8k.summary.json")["settings"]
        for name in ("base", "row", "row/scale-0.5", "safe")
    }
    assert settings["base"]["adapter"] is None and settings["row"]["adapter_scale"] == 1.0
    assert settings["row/scale-0.5"]["adapter_scale"] == 0.5
    assert (
        settings["row/scale-0.5"]["adapter"]
        == settings["row"]["adapter"]
        == settings["safe"]["adapter"]
    )
    assert settings["safe"]["system"] == "Hm"

    stages = [read_json(folder / name / "train.summary.json") for name in ("row/stage-1", "row")]
    assert stages[1]["settings"]["init_adapter"] == stages[0]["adapter_fingerprint"]
    assert all(stage["settings"]["data"].endswith("self-instruct.train.jsonl") for stage in stages)
    assert len(read_jsonl(folder / "row" / "ailuminate.jsonl")) == 4
    divergence = read_json(folder / "row" / "kl.summary.json")["gsm8k"]
    assert divergence["mean"] > 0 and divergence["answers"] == 2, "--kl-limit"
    recipe = read_json(folder / "row" / "recipe.json")
    assert recipe["recipe"]["train"][0]["steps"] == 2 and any(
        "--shots 1" in text for text in recipe["commands"]
    )
    assert (folder / "report" / "report.html").is_file()


def test_an_interrupted_recipe_goes_on_where_it_stopped(call, folder, monkeypatch, capsys):
    real = judge.main
    monkeypatch.setattr(judge, "main", lambda argv: 130)
    assert call("row", row=RECIPE) == 130
    assert "interrupted" not in capsys.readouterr().err, "the step has said it"
    adapter = folder / "row" / "adapter" / "adapter_model.safetensors"
    answers = (folder / "row" / "gsm8k.jsonl").read_text()
    written = adapter.stat().st_mtime_ns
    monkeypatch.setattr(judge, "main", real)
    monkeypatch.setattr(experiment.train, "load_model", None)  # whoever trained again would fail
    assert call("row") == 0
    assert (
        adapter.stat().st_mtime_ns == written
        and (folder / "row" / "gsm8k.jsonl").read_text() == answers
    )
    assert "finished already" in capsys.readouterr().out


def test_a_failing_step_stops_with_its_name(call, monkeypatch, capsys):
    monkeypatch.setattr(generate, "main", lambda argv: 2)
    assert call("base", base=BASE) == 2
    assert (
        "base.yaml: gsm8k has failed. Once that is put right, the same command goes on"
        in capsys.readouterr().err
    )


def test_refused_settings_leave_what_the_recipe_says_of_the_results(call, folder):
    assert call("base", base=BASE) == 0
    before = (folder / "base" / "recipe.json").read_text()
    assert call("base", base=BASE.replace("shots: 1", "shots: 2")) == 2
    assert (folder / "base" / "recipe.json").read_text() == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.rank=4", "--set train.rank=4: none of these recipes has a section 'train'"),
        (
            "judge.batchsize=4",
            "base.yaml: unknown option of judge 'batchsize'; the nearest valid name is 'batch-size'",
        ),
        ("gsm8k.shots=[", "'gsm8k.shots=[': the value is not valid YAML"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(call, capsys, setting, message):
    assert call("base", base=BASE, settings=[setting]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_recipes_of_one_name_are_refused(call, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.yaml").write_text(BASE)
    assert call("base", "more/base", base=BASE) == 2
    assert "base.yaml and more/base.yaml: runs are named by the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BASE.replace("max-new", "maxnew", 1),
            "base.yaml: unknown option of gsm8k 'maxnew-tokens'; the nearest",
        ),
        (BASE.replace("shots: 1", "limit: 1"), "base.yaml: unknown option of gsm8k 'limit'"),
        (
            BASE.replace("shots: 1", "shots: few"),
            "base.yaml: gsm8k: argument --shots: expected a whole number",
        ),
        (BASE + "adapter: elsewhere\n", "base.yaml: adapter: 'elsewhere' has made no "),
        (BASE + "self-instruct: elsewhere\n", "base.yaml: self-instruct: 'elsewhere' has made no "),
    ],
)
def test_bad_recipes_are_one_line_before_any_work(call, folder, capsys, text, message):
    assert call("base", base=text) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not folder.exists()


def test_options_become_arguments():
    options = {"shots": 3, "system-header": False, "target": ["mlp", "q_proj"], "top-p": 0.9}
    assert (
        experiment.to_argv(options)
        == "--shots 3 --no-system-header --target mlp q_proj --top-p 0.9".split()
    )
    assert experiment.to_argv({"system": "-careful"}) == ["--system=-careful"], (
        "no option of its own"
    )
    assert {"batch-size", "max-new-tokens"} <= experiment.option_names()["judge"]
