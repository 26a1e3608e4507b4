"""judge.py end to end, on a tiny Qwen3 guard trained here to answer in Qwen3Guard-Gen's format."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import judge
import report
from common import judging
from data.ailuminate import AILuminate
from data.intervals import rate
from data.records import append_record, read_json, read_jsonl, rewrite_records, write_json
from guards.qwen3guard import Qwen3Guard
from guards.refusal_phrases import RefusalPhrases
from llama.tokenizer import load_tokenizer
from llama.weights import load_model, save_model
from tests.processes import torchrun
from tests.toy_guard import (
    CONTEXT,
    CONTROVERSIAL,
    EMPTY,
    KINDS,
    REFUSAL,
    SAFE,
    THINGS,
    UNREADABLE,
    UNSAFE,
    chat,
)

VERDICTS = "ailuminate.qwen3guard.jsonl"
SUMMARY = "ailuminate.qwen3guard.summary.json"
PHRASES = ("--guard", "refusal-phrases")
PHRASE_VERDICTS = "ailuminate.refusal-phrases.jsonl"
PHRASE_SUMMARY = "ailuminate.refusal-phrases.summary.json"

# kind of answer, hazard, persona
ANSWERS = [
    (SAFE, "vcr", "normal"),
    (REFUSAL, "vcr", "skilled"),
    (UNSAFE, "vcr", "skilled"),
    (CONTROVERSIAL, "prv", "normal"),
    (UNREADABLE, "prv", "normal"),
    (EMPTY, "prv", "normal"),
]


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_answers(folder, [answer(i, *ANSWERS[i]) for i in range(len(ANSWERS))])
    return folder


def answer(i, kind, hazard="vcr", persona="normal"):
    prompt, response = (message["content"] for message in chat(THINGS[i], kind))
    return {
        "id": f"q{i}",
        "prompt": prompt,
        "hazard": hazard,
        "persona": persona,
        "locale": "en_US",
        "response": response,
        "token_ids": [1],
        # q0 was cut off, as answers may be: it is judged all the same.
        "finish_reason": "stop" if i else "length",
    }


def write_answers(folder, answers, task="ailuminate"):
    with open(folder / f"{task}.jsonl", "w", encoding="utf-8") as file:
        for record in answers:
            append_record(file, record)


def judged(run, *options):
    return judge.main(["--run", str(run), *map(str, options)])


def verdicts(run, name=VERDICTS):
    return {verdict["id"]: verdict for verdict in read_jsonl(run / name)}


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


def test_a_model_that_is_no_guard_is_refused(run, chat_checkpoint, capsys):
    message = refused(capsys, run, "--guard", chat_checkpoint)
    assert "does not ask for a verdict" in message and "Qwen3Guard" in message
    assert not (run / VERDICTS).exists()


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


def test_verdicts_by_another_list_of_phrases_do_not_mix(run, capsys, monkeypatch):
    assert judged(run, *PHRASES, "--limit", 2) == 0
    monkeypatch.setattr(RefusalPhrases, "phrases", ("Nope",))
    assert "phrases_sha256 = " in refused(capsys, run, *PHRASES)


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


HOLD = """
import sys
from pathlib import Path
from common.run_folder import prepare_run
prepare_run(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_is_being_written_is_read_but_not_written(run, capsys, tmp_path):
    assert judged(run, *PHRASES, "--limit", 3) == 0
    command = [sys.executable, "-c", HOLD, str(run)]
    root = Path(judge.__file__).parent
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        message = refused(capsys, run, *PHRASES)
        assert f"{run} is in use by process {other.pid} on " in message
        assert f"--run {run}-2" in message
        assert report.main([str(run), "--output", str(tmp_path / "report")]) == 0
        other.kill()
    assert judged(run, *PHRASES) == 0


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


def test_another_model_under_the_same_path_is_noticed(run, guard, tmp_path, capsys):
    changing = tmp_path / "guard"
    shutil.copytree(guard, changing)
    assert judged(run, "--guard", changing, "--limit", 2) == 0
    model = load_model(changing)
    model.lm_head.weight.data += 0.01
    save_model(model, changing)
    message = refused(capsys, run, "--guard", changing)
    assert "model_fingerprint" in message and "--model" not in message


def test_the_prompt_is_shown_as_text_and_ids(run, guard, capsys, monkeypatch):
    monkeypatch.setattr(judging, "load_model", lambda *a, **k: pytest.fail("nothing is judged"))
    assert judged(run, "--guard", guard, "--dry-run", "--show-prompt", 2) == 0
    out = capsys.readouterr().out
    ids = load_tokenizer(guard).encode_chat(chat(THINGS[1], REFUSAL))
    assert f"--- prompt of q1, {len(ids)} tokens\n<|im_start|>user\nSafety:?" in out
    assert "ASSISTANT: I cannot talk about the lamp.<|im_end|>" in out
    assert " ".join(map(str, ids)) in out
    assert "prompt of q0" in out and "prompt of q2" not in out


@pytest.mark.parametrize(
    "option",
    [["--quantize", "int8"], ["--no-grammar"], ["--show-prompt", 1], ["--dtype", "float16"]],
)
def test_what_refusal_phrases_would_ignore_is_refused(run, capsys, option):
    message = refused(capsys, run, *PHRASES, *option)
    assert "does nothing with --guard refusal-phrases" in message


def test_nothing_in_the_answers_steers_the_terminal(run, capsys):
    answers = read_jsonl(run / "ailuminate.jsonl")
    answers[0]["hazard"] = "v\x1b[2Jcr\u202e"
    write_answers(run, answers)
    assert judged(run, *PHRASES) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and r"v\x1b[2Jcr\u202e" in out


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


def refused(capsys, run, *options):
    """The one line on stderr with which judge.py refuses."""
    assert judged(run, *options) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_other_settings_do_not_mix(run, guard, capsys):
    assert judged(run, "--guard", guard, "--limit", 1) == 0
    message = refused(capsys, run, "--guard", guard, "--no-grammar", "--max-new-tokens", 32)
    assert "--grammar = True, now it is False" in message
    assert "--max-new-tokens = 64, now it is 32" in message
    assert message.index(f"--run {run}-2") < message.index("--no-resume")
    message = refused(capsys, run, "--guard", guard, "--max-new-tokens", 32)
    assert "--grammar" not in message
    assert judged(run, "--guard", guard, "--batch-size", 1) == 0  # changes no verdict


@pytest.mark.parametrize("field", ["prompt", "response"])
def test_verdicts_on_other_answers_are_refused(run, capsys, field):
    assert judged(run, *PHRASES) == 0
    answers = read_jsonl(run / "ailuminate.jsonl")
    answers[3][field] += " Indeed."
    write_answers(run, answers)
    message = refused(capsys, run, *PHRASES)
    assert f"{PHRASE_VERDICTS}, line 4" in message and "'q3'" in message
    assert "--no-resume" in message and f"{PHRASE_VERDICTS}.1" in message
    assert judged(run, *PHRASES, "--no-resume") == 0


def test_a_verdict_on_an_answer_that_is_gone_is_refused(run, capsys):
    assert judged(run, *PHRASES) == 0
    write_answers(run, read_jsonl(run / "ailuminate.jsonl")[:5])
    assert "'q5'" in refused(capsys, run, *PHRASES)


def test_a_failing_guard_loses_no_verdicts(run, guard, capsys, tmp_path):
    assert judged(run, "--guard", guard) == 0
    before = (run / VERDICTS).read_bytes()
    broken = tmp_path / "broken"
    shutil.copytree(guard, broken)
    (broken / "model.safetensors").write_bytes(b"")
    refused(capsys, run, "--no-resume", "--guard", broken)
    assert (run / VERDICTS).read_bytes() == before


def test_an_answer_beyond_the_context_is_named(run, guard, capsys):
    answers = read_jsonl(run / "ailuminate.jsonl")
    answers[4]["response"] = "mumble " * CONTEXT
    write_answers(run, answers)
    message = refused(capsys, run, "--guard", guard)
    assert "q4" in message and str(CONTEXT) in message
    assert not (run / VERDICTS).exists()


BAD = {"id": "a", "prompt": "p", "hazard": "h", "persona": "n", "response": "r"}
BAD["finish_reason"] = "stop"


@pytest.mark.parametrize(
    "changes, problems",
    [
        ({"response": ...}, ["'response'", "missing"]),
        ({"finish_reason": ...}, ["'finish_reason'", "missing"]),
        ({"prompt": None}, ["'prompt'", "found None"]),
        ({"id": "q1"}, ["'q1'", "line 2"]),
    ],
)
def test_bad_answers(run, capsys, changes, problems):
    record = {key: value for key, value in (BAD | changes).items() if value is not ...}
    with open(run / "ailuminate.jsonl", "a", encoding="utf-8") as file:
        append_record(file, record)
    message = refused(capsys, run, *PHRASES)
    assert all(problem in message for problem in ["ailuminate.jsonl, line 7", *problems])
    assert not (run / PHRASE_VERDICTS).exists()


def test_a_broken_line_among_the_answers(run, capsys):
    with open(run / "ailuminate.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "a", \n')
    assert "line 7: not valid JSON" in refused(capsys, run, *PHRASES)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"safety": ...}, "field 'safety' must be text, which is missing"),
        ({"id": ["q0"]}, "field 'id' must be text, found ['q0']"),
        ({"categories": [1]}, "in 'categories': field '0' must be text, found 1"),
        ({"new_tokens": "3"}, "field 'new_tokens' must be a whole number"),
        ({"hazard": 3}, "field 'hazard' must be text"),
        ({"answer_cut_off": None}, "field 'answer_cut_off' must be true or false"),
    ],
)
def test_a_verdict_edited_by_hand(run, capsys, changes, problem):
    assert judged(run, *PHRASES, "--limit", "1") == 0
    [verdict] = read_jsonl(run / PHRASE_VERDICTS)
    edited = {key: value for key, value in (verdict | changes).items() if value is not ...}
    rewrite_records(run / PHRASE_VERDICTS, [edited])
    message = refused(capsys, run, *PHRASES)
    assert f"{PHRASE_VERDICTS}, line 1: {problem}" in message


def test_no_answers(run, capsys, tmp_path):
    (run / "ailuminate.jsonl").write_text("")
    assert "no answers" in refused(capsys, run, *PHRASES)
    message = refused(capsys, tmp_path / "missing", *PHRASES)
    assert "no answers to a safety task" in message
    assert "generate.py --task ailuminate" in message
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("name", judge.OLD_FILES)
def test_verdicts_of_an_earlier_version_are_refused(run, capsys, name):
    write_json(run / name, {})
    message = refused(capsys, run, *PHRASES)
    assert str(run / name) in message and "move them away" in message


def test_the_model_is_named_with_guard(run, guard, capsys):
    message = refused(capsys, run, "--model", guard)
    assert f"--guard {guard}" in message


@pytest.mark.parametrize(
    "name, hint",
    [("qwen3gard", "did you mean qwen3guard?"), ("xyz", "neither a guard (qwen3guard, ")],
)
def test_a_guard_that_there_is_not(run, capsys, name, hint):
    assert hint in refused(capsys, run, "--guard", name)


@pytest.mark.parametrize(
    "options", [["--batch-size", "0"], ["--max-new-tokens", "-1"], ["--method", "guard"]]
)
def test_bad_options(run, options):
    with pytest.raises(SystemExit) as exit:
        judged(run, *options)
    assert exit.value.code == 2


@pytest.mark.slow
def test_as_a_script(tmp_path):
    script = Path(judge.__file__)
    command = [sys.executable, script.name, "--run", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
