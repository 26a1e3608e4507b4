"""experiment.py: a whole recipe on a tiny model, interrupted and started again."""

from collections.abc import Sequence

import pytest

import experiment
import generate
import judge
from data.records import read_json, read_jsonl, rewrite_records
from data.registry import TASKS
from recipes.steps import to_argv

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
SAFE = """\
title: safe
about: 2026-07-01
adapter: row
gsm8k: {shots: 1, max-new-tokens: 4, system: Hm}
ailuminate: {max-new-tokens: 4}
"""
SKILL = """\
title: skill alone
train: {steps: 1, batch-size: 4, validation: 0, lr: 0.01}
gsm8k: {max-new-tokens: 4}
svamp: {max-new-tokens: 4}
"""


@pytest.fixture
def call(chat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(
        *recipes: str, settings: Sequence[str] = (), options: Sequence[str] = (), **texts: str
    ) -> int:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        argv = [f"{name}.yaml" for name in recipes]
        argv += ["--model", str(chat_checkpoint), "--data", "demo", "--limit", "4"]
        argv += ["--train-limit", "12", "--judge", "refusal", "--kl-limit", "2"]
        argv += ["--device", "cpu", *options]
        for setting in settings:
            argv += ["--set", setting]
        return experiment.main(argv)

    return run


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """Plots take seconds; report.py's own tests look at them."""
    monkeypatch.setattr(experiment.report.plot_style, "is_available", lambda: False)


@pytest.fixture
def folder(chat_checkpoint, tmp_path):
    return tmp_path / "runs" / chat_checkpoint.name


@pytest.mark.slow
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
        "--shots=1" in text for text in recipe["commands"]
    )
    assert (folder / "report" / "report.html").is_file()


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_a_judge_without_a_model_would_ignore_is_not_asked_of_it(call, capsys):
    text = BASE + "judge: {max-new-tokens: 8, grammar: false}\n"
    assert call("base", base=text, options=["--dry-run", "--dtype", "float32"]) == 0
    steps = capsys.readouterr().out
    assert "--guard refusal-phrases" in steps and "--max-new-tokens=8" not in steps
    assert call("base", base=text, options=["--dtype", "float32"]) == 0


def test_a_failing_step_stops_with_its_name(call, monkeypatch, capsys):
    monkeypatch.setattr(generate, "main", lambda argv: 2)
    assert call("base", base=BASE) == 2
    assert (
        "base.yaml: gsm8k has failed. Once that is put right, the same command goes on"
        in capsys.readouterr().err
    )


@pytest.mark.slow
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
            "base.yaml: unknown option of judge 'batchsize'; the nearest valid name is 'batch-s",
        ),
        ("gsm8k.shots=[", "'gsm8k.shots=[': not valid YAML"),
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
        (
            SKILL + "self-instruct: elsewhere\n",
            "base.yaml: self-instruct: 'elsewhere' has made no ",
        ),
        ("[" * 3000, "base.yaml, line 1: nested more than 10 deep"),
        ("a: &a [x]\nb: [*a, *a]", "base.yaml: the alias *a is not read"),
    ],
)
def test_bad_recipes_are_one_line_before_any_work(call, folder, capsys, text, message):
    assert call("base", base=text) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not folder.exists()


def test_options_become_arguments():
    options = {"shots": 3, "system-header": False, "target": ["mlp", "q_proj"], "top-p": 0.9}
    expected = "--shots=3 --no-system-header --target mlp q_proj --top-p=0.9".split()
    assert to_argv(options) == expected
    assert to_argv({"system": "-careful"}) == ["--system=-careful"], "no option of its own"
    assert {"batch-size", "max-new-tokens"} <= experiment.option_names()["judge"]


@pytest.mark.slow
def test_a_recipe_may_answer_one_task_and_then_nothing_is_judged(call, folder, capsys):
    assert call("skill", skill=SKILL) == 0
    assert "--data demo: there is none for svamp, which is left out" in capsys.readouterr().out
    files = {path.name for path in (folder / "skill").iterdir()}
    assert {"gsm8k.summary.json", "kl.summary.json", "adapter"} <= files
    assert not {"ailuminate.jsonl", "ailuminate.refusal-phrases.jsonl"} & files


@pytest.mark.slow
def test_trainings_with_several_seeds_are_runs_of_their_own(call, folder, capsys):
    row = SKILL.replace("gsm8k: {", "gsm8k: {shots: 1, shots-data: self-instruct, ")
    recipes = {"base": BASE, "row": "self-instruct: {max-new-tokens: 4}\n" + row, "safe": SAFE}
    assert call("base", "row", "safe", **recipes, options=["--seeds", "2"]) == 0
    made = {path.name for path in folder.iterdir()}
    assert made == {"base", "row", "row-seed1", "safe", "safe-seed1", "report"}
    printed = capsys.readouterr().out
    assert "Between trainings" in printed and "0.0 +- 0.0 (2)" in printed
    first, second = (
        read_json(folder / name / "train.summary.json") for name in ("row", "row-seed1")
    )
    assert (first["settings"]["seed"], second["settings"]["seed"]) == (0, 1000)
    assert first["adapter_fingerprint"] != second["adapter_fingerprint"]
    assert second["settings"]["data"] == first["settings"]["data"], "written once, trained on twice"
    answers = read_json(folder / "row-seed1" / "gsm8k.summary.json")["settings"]
    assert answers["shots_data"] == first["settings"]["data"], "shots-data: self-instruct"
    borrowed = read_json(folder / "safe-seed1" / "gsm8k.summary.json")["settings"]["adapter"]
    assert borrowed == second["adapter_fingerprint"]
    assert read_json(folder / "row-seed1" / "recipe.json")["training"] == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shots: 1}", "shots: 1, seed: 1000}", "0 and 1 would both use the seed 1000"),
        ("shots: 1}", "shots: 1, seed: 4294967000}", "training 1 would have the seed 4294968000"),
        ("shots: 1}", "shots: 1, seed: a}", "train: seed should be a whole number, found 'a'"),
    ],
)
def test_seeds_that_collide_or_do_not_fit_are_refused(call, folder, capsys, old, new, message):
    assert call("row", row=RECIPE.replace(old, new, 1), options=["--seeds", "2"]) == 2
    error = capsys.readouterr().err
    assert message in error and "row.yaml: " in error and error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.slow
def test_a_dry_run_lists_the_steps_and_writes_nothing(call, folder, tmp_path, capsys):
    assert call("row", row=RECIPE, options=["--dry-run", "--limit", "gsm8k=3"]) == 0
    before = sorted(tmp_path.rglob("*"))
    printed = capsys.readouterr().out
    assert [path.name for path in before] == ["row.yaml"]
    lines = [line.strip() for line in printed.splitlines() if ".py" in line]
    assert [line.partition(":")[0] for line in lines][:4] == [
        "self-instruct",
        "training, stage 1",
        "training",
        "gsm8k",
    ]
    assert "--limit 3 " in lines[3] and "--limit 4 " in lines[4], "of gsm8k and of the others"

    assert call("skill", skill=SKILL) == 0 and call("skill", options=["--dry-run"]) == 0
    printed = capsys.readouterr().out.rpartition("\nskill: skill alone\n")[2]
    assert "training (finished already): train.py" in printed


@pytest.mark.parametrize("limit", ["few", "0", "gsm8k=", "gsm8k=-1", "gsm9k=3"])
def test_a_limit_that_is_none_is_refused(call, capsys, limit):
    with pytest.raises(SystemExit):
        call("base", base=BASE, options=["--limit", limit])
    error = capsys.readouterr().err
    assert "N a whole number from 1" in error or "did you mean gsm8k?" in error
    assert error.count("\n") == 1


def test_prompts_that_are_tested_are_never_trained_on(call, folder, tmp_path, capsys):
    anchored = RECIPE.replace("shots: 1}", "shots: 1, kl-weight: 1.0}", 1)
    assert call("row", row=anchored) == 2
    message = "row.yaml: 4 of the 4 ailuminate prompts that are tested are among the demo"
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not folder.exists()

    question = TASKS["gsm8k"].load("demo", "test")[1]
    shots = tmp_path / "shots.jsonl"
    changed = question["question"].upper().replace(" ", "  ") + " And why?"
    rewrite_records(shots, [{"question": changed, "answer": question["answer"]}])
    with_shots = RECIPE.replace("shots: 1}", f"shots: 1, shots-data: {shots}}}", 1)
    assert call("row", row=with_shots) == 2
    assert (
        "1 of the 4 gsm8k questions that are tested are among the shots" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_steps_are_shared_among_processes(call, folder):
    recipe = SKILL.replace("svamp: {max-new-tokens: 4}\n", "")
    assert call("skill", options=["--processes", "2"], skill=recipe) == 0
    for name in ("train", "gsm8k"):
        summary = read_json(folder / "skill" / f"{name}.summary.json")
        assert summary["finished"] and summary["environment"]["processes"] == 2
    assert read_json(folder / "skill" / "kl.summary.json")["finished"]


@pytest.mark.slow
def test_a_step_that_fails_in_processes_ends_the_experiment(call, capfd):
    options = ["--processes", "2", "--set", "gsm8k.shots=500"]  # more than there are to choose from
    assert call("skill", options=options, skill=SKILL) == 2
    error = capfd.readouterr().err
    assert "500 shots asked for" in error and "has failed" in error.splitlines()[-1]


def test_under_torchrun_it_says_how_to_share_the_work(call, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SystemExit) as exit:
        call("skill", skill=SKILL)
    assert exit.value.code == 2
    assert "experiment.py --processes 4" in capsys.readouterr().err
