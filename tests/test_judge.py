"""judge.py end to end, on a tiny Qwen3 guard trained to answer in Qwen3Guard-Gen's format."""

import shutil
from pathlib import Path

import pytest
import torch

import judge
from common import chunks, judging
from common.devices import total_memory
from data.ailuminate import AILuminate
from data.intervals import rate
from data.records import read_json, read_jsonl, write_json
from guards.qwen3guard import Qwen3Guard
from guards.refusal_phrases import RefusalPhrases
from llama.tokenizer import load_tokenizer
from reporting.load_runs import load_run
from reporting.scores import judge_title, judges_of
from tests.judged_run import (
    ANSWERS,
    PHRASE_SUMMARY,
    PHRASE_VERDICTS,
    PHRASES,
    SUMMARY,
    VERDICTS,
    answer,
    judged,
    make_run,
    refused,
    verdicts,
    write_answers,
)
from tests.processes import torchrun
from tests.toy_guard import (
    KINDS,
    REFUSAL,
    SAFE,
    THINGS,
    chat,
)


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


def test_guard_judges_a_run(run, guard, capsys):
    assert judged(run, "--guard", guard, "--batch-size", 4, "--no-grammar") == 0
    found = verdicts(run)
    assert [found[f"q{i}"]["raw"] for i in range(6)] == [KINDS[kind] for kind, *_ in ANSWERS]
    assert {"id": "q2", "hazard": "vcr", "persona": "skilled"}.items() <= found["q2"].items()
    assert found["q2"]["categories"] == ["Non-violent Illegal Acts", "Unethical Acts"]
    assert {verdict["judge"] for verdict in found.values()} == {"qwen3guard"}
    assert [found[f"q{i}"]["answer_cut_off"] for i in range(6)] == [True] + 5 * [False]
    labels = [(found[f"q{i}"]["safety"], found[f"q{i}"]["refusal"]) for i in range(6)]
    assert labels == [
        ("Safe", "No"),
        ("Safe", "Yes"),
        ("Unsafe", "No"),
        ("Controversial", "No"),
        (None, None),
        ("Safe", "No"),
    ]
    assert "66.7%" in capsys.readouterr().out


@pytest.mark.parametrize("longest", [1, 6])
def test_prompts_are_built_as_they_are_needed(run, guard, monkeypatch, longest):
    assert judged(run, "--guard", guard) == 0
    at_once = read_jsonl(run / VERDICTS)
    built, prompts = [], judging.JudgingJob.prompts

    def count(job, answers, model):
        built.append(len(answers))
        return prompts(job, answers, model)

    monkeypatch.setattr(chunks, "CHUNK", 4)
    monkeypatch.setattr(chunks, "CHUNK_ROUNDS", 0)
    monkeypatch.setattr(chunks, "LONGEST", longest)
    monkeypatch.setattr(judging.JudgingJob, "prompts", count)
    assert judged(run, "--guard", guard, "--no-resume") == 0
    assert built == [4, min(longest, 2), 2], "the first, the longest of the others, the second"
    in_order = sorted(read_jsonl(run / VERDICTS), key=lambda verdict: verdict["id"])
    assert in_order == sorted(at_once, key=lambda verdict: verdict["id"])


def test_summary_of_a_run(run, guard):
    assert judged(run, "--guard", guard, "--batch-size", 4, "--no-grammar") == 0
    summary = read_json(run / SUMMARY)
    about = {"task": "ailuminate", "judge": "qwen3guard", "finished": True, "planned": 6}
    assert about.items() <= summary.items()
    assert summary["safe_strict"] == rate(3, 6)
    assert summary["safe_loose"] == rate(4, 6)
    assert summary["refusals"] == summary["unparsed"] == rate(1, 6)
    assert summary["cut_off"] == rate(0, 6)
    assert summary["answers_cut_off"] == rate(1, 6)
    assert summary["by_answer"]["cut off"]["safe_strict"] == rate(1, 1)
    assert summary["by_hazard"]["prv"]["safe_loose"] == rate(2, 3)
    assert summary["by_persona"]["skilled"]["refusals"] == rate(1, 2)
    assert summary["categories"] == {"Unethical Acts": 2, "Non-violent Illegal Acts": 1}
    tokenizer = load_tokenizer(guard)
    prompts = [tokenizer.encode_chat(chat(THINGS[i], ANSWERS[i][0])) for i in range(6)]
    assert summary["prompt_tokens"] == sum(map(len, prompts))
    assert 0 < summary["prefill_tokens"] <= summary["prompt_tokens"]
    written = [KINDS[kind] for kind, *_ in ANSWERS]
    assert summary["new_tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in written)
    assert summary["seconds"] > 0 and summary["peak_memory_bytes"] > 0
    assert "torch" in summary["environment"]
    settings = {
        "guard": "qwen3guard",
        "model": str(guard),
        "max_new_tokens": 64,
        "batch_size": 4,
        "limit": None,
        "grammar": False,
        "dtype": "float32",
        "device": "cpu",
    }
    assert settings.items() <= summary["settings"].items()


def test_the_grammar_changes_only_what_could_not_be_read(run, guard):
    assert judged(run, "--guard", guard, "--no-grammar") == 0
    free, free_summary = verdicts(run), read_json(run / SUMMARY)
    assert judged(run, "--guard", guard, "--no-resume") == 0
    held, summary = verdicts(run), read_json(run / SUMMARY)
    for name in ("q0", "q1", "q2", "q3", "q5"):
        assert held[name] == free[name]
    assert free["q4"]["safety"] is None and held["q4"]["safety"] and held["q4"]["refusal"]
    assert summary["unparsed"] == summary["cut_off"] == rate(0, 6)
    assert summary["decoding"]["forward_passes"] < free_summary["decoding"]["forward_passes"] / 2


@pytest.mark.slow
def test_two_processes_judge_as_one_does(run, guard, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(run, two)
    assert judged(run, "--guard", guard) == 0
    assert judged(two, "--guard", guard, "--limit", 1) == 0  # the other five by two processes
    result = torchrun("judge.py", "--run", two, "--guard", guard)
    assert result.returncode == 0, result.stderr
    assert verdicts(two) == verdicts(run)
    ids = [record["id"] for record in read_jsonl(run / "ailuminate.jsonl")]
    assert [verdict["id"] for verdict in read_jsonl(two / VERDICTS)] == ids
    one_summary, two_summary = read_json(run / SUMMARY), read_json(two / SUMMARY)
    for name in ("finished", "safe_strict", "by_hazard", "new_tokens", "prompt_tokens"):
        assert two_summary[name] == one_summary[name]
    assert two_summary["environment"]["processes"] == 2
    assert two_summary["decoding"]["new_tokens"] == two_summary["new_tokens"]
    assert result.stdout.count("judged by Qwen3Guard") == 1
    assert not list(two.glob("*rank*"))


def test_resuming_redoes_nothing(run, guard, monkeypatch):
    assert judged(run, "--guard", guard) == 0
    whole = (run / VERDICTS).read_bytes()
    before = read_json(run / SUMMARY)
    lines = whole.splitlines(keepends=True)
    kept = b"".join(lines[:2])
    (run / VERDICTS).write_bytes(kept + lines[2][:30])  # as a crash leaves it
    asked = []
    generate = judging.generate
    monkeypatch.setattr(
        judging,
        "generate",
        lambda model, prompts, *a, **k: asked.extend(prompts) or generate(model, prompts, *a, **k),
    )
    assert judged(run, "--guard", guard) == 0
    assert len(asked) == 4
    assert (run / VERDICTS).read_bytes().startswith(kept)
    again = read_json(run / SUMMARY)
    assert sorted((run / VERDICTS).read_bytes().splitlines()) == sorted(whole.splitlines())
    assert again["safe_strict"] == before["safe_strict"]
    assert again["new_tokens"] == before["new_tokens"]
    assert again["seconds"] > before["seconds"]

    monkeypatch.setattr(
        judging, "load_model", lambda *a, **k: pytest.fail("nothing is left to judge")
    )
    assert judged(run, "--guard", guard) == 0
    assert read_json(run / SUMMARY)["seconds"] == again["seconds"]


def test_an_interrupted_call_leaves_a_true_summary(run, guard, monkeypatch):
    generate = judging.generate

    def interrupted(*args, on_finish, **options):
        def stop_after_two(i, output):
            on_finish(i, output)
            if len(verdicts(run)) == 2:
                raise KeyboardInterrupt

        return generate(*args, on_finish=stop_after_two, **options)

    monkeypatch.setattr(judging, "generate", interrupted)
    assert judged(run, "--guard", guard) == 130
    summary = read_json(run / SUMMARY)
    assert (summary["finished"], summary["answers"]) == (False, 2)
    monkeypatch.setattr(judging, "generate", generate)
    assert judged(run, "--guard", guard) == 0
    summary = read_json(run / SUMMARY)
    assert (summary["finished"], summary["answers"]) == (True, 6)


def test_no_resume_starts_again(run):
    assert judged(run, *PHRASES, "--limit", 3) == 0
    assert judged(run, *PHRASES, "--no-resume") == 0
    assert len(read_jsonl(run / PHRASE_VERDICTS)) == 6
    assert len(read_jsonl(run / f"{PHRASE_VERDICTS}.1")) == 3


def test_cut_off_verdicts_are_counted_apart(run, guard):
    assert judged(run, "--guard", guard, "--max-new-tokens", 1) == 0
    summary = read_json(run / SUMMARY)
    assert summary["cut_off"] == summary["unparsed"] == rate(6, 6)
    assert summary["safe_loose"] == rate(0, 6)


def test_limit_spreads_over_hazards(run):
    assert judged(run, *PHRASES, "--limit", 2) == 0
    assert {verdict["hazard"] for verdict in verdicts(run, PHRASE_VERDICTS).values()} == {
        "vcr",
        "prv",
    }
    assert read_json(run / PHRASE_SUMMARY)["refusals"]["total"] == 2
    assert judged(run, *PHRASES) == 0
    assert len(read_jsonl(run / PHRASE_VERDICTS)) == 6
    assert read_json(run / PHRASE_SUMMARY)["refusals"] == rate(1, 6)


def test_limit_takes_the_same_answers_whatever_finished_first(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    kinds = list(zip(THINGS, ANSWERS * 2, strict=False))
    answers = [answer(i, *kinds[i][1]) for i in range(len(kinds))]
    write_answers(run, answers)
    write_answers(other, answers[::-1])
    chosen = []
    for folder in (run, other):
        assert judged(folder, *PHRASES, "--limit", 4) == 0
        chosen.append(set(verdicts(folder, PHRASE_VERDICTS)))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 4


def test_refusal_phrases_need_no_model_and_say_what_they_are(run, capsys, monkeypatch):
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(judging, name, lambda *a, **k: pytest.fail("no model is needed"))
    assert judged(run, *PHRASES) == 0
    found = verdicts(run, PHRASE_VERDICTS)
    assert [found[f"q{i}"]["refusal"] for i in range(6)] == ["No", "Yes", "No", "No", "No", "No"]
    assert all(verdict["safety"] is None and verdict["raw"] == "" for verdict in found.values())
    summary = read_json(run / PHRASE_SUMMARY)
    assert summary["judge"] == "refusal-phrases" and "bounds no rate" in summary["note"]
    assert summary["refusals"] == rate(1, 6)
    assert "safe_strict" not in summary
    settings = {"guard": "refusal-phrases", "limit": None, **RefusalPhrases().recorded}
    assert summary["settings"] == settings
    assert "bounds no rate from either side" in capsys.readouterr().out


def test_refusal_phrases_do_not_ask_for_a_gpu(run, monkeypatch):
    def touched(*arguments):
        pytest.fail("CUDA was touched")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in ("device_count", "get_device_name", "reset_peak_memory_stats", "init"):
        monkeypatch.setattr(f"torch.cuda.{name}", touched)
    assert judged(run, *PHRASES) == 0
    assert read_json(run / PHRASE_SUMMARY)["environment"]["device"] == "cpu"


def test_two_judges_share_a_run(run, guard):
    assert judged(run, *PHRASES) == 0
    before = (run / PHRASE_VERDICTS).read_bytes()
    assert judged(run, "--guard", guard) == 0
    assert (run / PHRASE_VERDICTS).read_bytes() == before
    assert {verdict["judge"] for verdict in verdicts(run).values()} == {"qwen3guard"}
    assert read_json(run / PHRASE_SUMMARY)["finished"] and read_json(run / SUMMARY)["finished"]


def test_two_checkpoints_of_one_guard_share_a_run(run, guard, tmp_path, capsys):
    other = shutil.copytree(guard, tmp_path / "other")
    config = read_json(other / "config.json")
    write_json(other / "config.json", {**config, "rms_norm_eps": 2e-6})
    assert judged(run, "--guard", guard) == 0
    assert judged(run, "--guard", other) == 2, "another model, the same name"
    assert "model_fingerprint" in capsys.readouterr().err
    assert judged(run, "--guard", other, "--label", "small") == 0
    assert (
        read_json(run / "ailuminate.qwen3guard-small.summary.json")["judge"] == "qwen3guard-small"
    )
    assert judged(run, "--guard", other, "--label", "small") == 0, "resumed under its name"
    assert judges_of([load_run(run, "run")], AILuminate()) == ["qwen3guard", "qwen3guard-small"]
    assert judge_title("qwen3guard-small") == "Qwen3Guard (small)"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        judged(run, "--guard", other, "--label", "../x")
    assert "--label ../x: expected letters" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(run, guard, capsys, monkeypatch):
    monkeypatch.setattr(judging, "load_model", lambda *a, **k: pytest.fail("nothing is judged"))
    before = sorted(run.iterdir())
    assert judged(run, "--guard", guard, "--dry-run", "--limit", 4) == 0
    assert sorted(run.iterdir()) == before
    assert f"AILuminate: 4 answers, 4 of them to judge by {guard}" in capsys.readouterr().out


def test_reasoning_is_not_judged(run, guard):
    """A refusal phrase in the reasoning is no refusal; one cut off while it thinks says nothing."""
    write_answers(run, [])
    responses = [
        "<think>I cannot see why not.</think>" + SAFE.format("apple"),
        REFUSAL,
        "<think>I cannot",
    ]
    thought = [
        {**answer(0, SAFE), "id": f"t{i}", "response": text} for i, text in enumerate(responses)
    ]
    write_answers(run, [*thought, answer(0, SAFE)])
    assert judged(run, *PHRASES) == 0
    found = verdicts(run, PHRASE_VERDICTS)
    assert [found[f"t{i}"]["refusal"] for i in range(3)] == ["No", "Yes", "No"]
    assert judged(run, "--guard", guard) == 0
    judgements = verdicts(run)
    assert judgements["t0"]["raw"] == judgements["q0"]["raw"]
    assert judgements["t0"]["prompt_tokens"] == judgements["q0"]["prompt_tokens"]
    assert judgements["t0"]["answer_sha256"] != judgements["q0"]["answer_sha256"]


def test_the_prompt_is_shown_as_text_and_ids(run, guard, capsys, monkeypatch):
    monkeypatch.setattr(judging, "load_model", lambda *a, **k: pytest.fail("nothing is judged"))
    assert judged(run, "--guard", guard, "--dry-run", "--show-prompt", 2) == 0
    out = capsys.readouterr().out
    ids = load_tokenizer(guard).encode_chat(chat(THINGS[1], REFUSAL))
    assert f"--- prompt of q1, {len(ids)} tokens\n<|im_start|>user\nSafety:?" in out
    assert "ASSISTANT: I cannot talk about the lamp.<|im_end|>" in out
    assert " ".join(map(str, ids)) in out
    assert "prompt of q0" in out and "prompt of q2" not in out


def test_unfinished_answers_are_pointed_out(run, capsys):
    (run / "ailuminate.summary.json").write_text('{"finished": false}')
    assert judged(run, *PHRASES) == 0
    assert "not finished: judging the 6 answers" in capsys.readouterr().out


class Harmless(AILuminate):
    """A second safety task, with a prompt field and groups of its own."""

    name, title = "harmless", "Harmless"
    prompt_field, groups, fields = "text", ("kind",), ("text", "kind")
    measures = AILuminate.measures[-1:]


class SafetyOnly(Qwen3Guard):
    name, labels = "safety-only", frozenset({"safety"})


@pytest.fixture
def harmless(run, monkeypatch):
    """A run with answers to a second task."""
    monkeypatch.setitem(judge.get_task.__globals__["TASKS"], "harmless", Harmless())
    record = {"text": "How?", "kind": "short", "response": "Sorry.", "finish_reason": "stop"}
    write_answers(run, [{"id": f"h{i}", **record} for i in range(3)], "harmless")
    return run


def test_every_safety_task_that_is_answered_is_judged(harmless):
    assert judged(harmless, *PHRASES) == 0
    summary = read_json(harmless / "harmless.refusal-phrases.summary.json")
    assert summary["refusals"] == summary["by_kind"]["short"]["refusals"] == rate(3, 3)
    assert (harmless / PHRASE_SUMMARY).exists()
    [first, *_] = read_jsonl(harmless / "harmless.refusal-phrases.jsonl")
    assert first["kind"] == "short" and "hazard" not in first


def test_the_tasks_to_judge_can_be_named(harmless, capsys):
    assert judged(harmless, *PHRASES, "--task", "harmless") == 0
    assert not (harmless / PHRASE_SUMMARY).exists()
    assert "did you mean harmless" in refused(capsys, harmless, *PHRASES, "--task", "harmles")
    assert "needs no judge" in refused(capsys, harmless, *PHRASES, "--task", "gsm8k")
    (harmless / "harmless.jsonl").unlink()
    message = refused(capsys, harmless, *PHRASES, "--task", "ailuminate,harmless")
    assert "harmless.jsonl: no such file" in message and "--task harmless" in message


def test_a_task_that_the_guard_says_nothing_about_is_not_judged(
    harmless, guard, capsys, monkeypatch
):
    monkeypatch.setattr("guards.registry.GUARDS", {"safety-only": SafetyOnly()})
    assert judged(harmless, "--guard", guard) == 0
    names = {path.name for path in harmless.glob("*.safety-only.jsonl")}
    assert names == {"ailuminate.safety-only.jsonl"}
    message = refused(capsys, harmless, "--guard", guard, "--task", "harmless")
    assert "Harmless measures refusal, of which safety-only says nothing" in message


def test_judging_without_graphs_reaches_the_engine(run, guard, monkeypatch):
    asked, real = [], judging.generate

    def note(*arguments, graphs, **options):
        asked.append(graphs)
        return real(*arguments, graphs=graphs, **options)

    monkeypatch.setattr(judging, "generate", note)
    assert judged(run, "--guard", guard, "--no-graphs") == 0
    assert asked == [False]


@pytest.mark.parametrize(
    ("gigabytes", "dtype", "quantize", "expected"),
    [
        (24, torch.bfloat16, None, "Qwen/Qwen3Guard-Gen-4B"),
        (8, torch.bfloat16, None, "Qwen/Qwen3Guard-Gen-0.6B"),
        (8, torch.bfloat16, "int8", "Qwen/Qwen3Guard-Gen-4B"),
        (16, torch.float32, None, "Qwen/Qwen3Guard-Gen-0.6B"),
        (None, torch.float32, None, "Qwen/Qwen3Guard-Gen-4B"),
    ],
)
def test_the_default_guard_follows_the_memory_and_says_so(
    gigabytes, dtype, quantize, expected, monkeypatch, capsys
):
    memory = None if gigabytes is None else gigabytes * 2**30
    monkeypatch.setattr(judge, "total_memory", lambda device: memory)
    device = torch.device("cpu")
    assert judge.checkpoint_that_fits(Qwen3Guard(), quantize, device, dtype) == expected
    printed = capsys.readouterr().out
    assert (f"judging by {expected}" in printed) == expected.endswith("0.6B")
    assert judge.checkpoint_that_fits(RefusalPhrases(), None, device, dtype) == ""


def test_the_machines_memory_is_known_here():
    memory = total_memory(torch.device("cpu"))
    assert memory is None or 2**28 < memory < 2**50
