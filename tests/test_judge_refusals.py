"""What judge.py refuses, in one line and before it writes anything."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import judge
import report
from data.records import append_record, read_jsonl, rewrite_records, write_json
from guards.refusal_phrases import RefusalPhrases
from llama.weights import load_model, save_model
from tests.judged_run import (
    PHRASE_VERDICTS,
    PHRASES,
    VERDICTS,
    judged,
    make_run,
    refused,
    write_answers,
)
from tests.toy_guard import (
    CONTEXT,
)


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


def test_a_model_that_is_no_guard_is_refused(run, chat_checkpoint, capsys):
    message = refused(capsys, run, "--guard", chat_checkpoint)
    assert "does not ask for a verdict" in message and "Qwen3Guard" in message
    assert not (run / VERDICTS).exists()


def test_verdicts_by_another_list_of_phrases_do_not_mix(run, capsys, monkeypatch):
    assert judged(run, *PHRASES, "--limit", 2) == 0
    monkeypatch.setattr(RefusalPhrases, "phrases", ("Nope",))
    assert "phrases_sha256 = " in refused(capsys, run, *PHRASES)


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


def test_another_model_under_the_same_path_is_noticed(run, guard, tmp_path, capsys):
    changing = tmp_path / "guard"
    shutil.copytree(guard, changing)
    assert judged(run, "--guard", changing, "--limit", 2) == 0
    model = load_model(changing)
    model.lm_head.weight.data += 0.01
    save_model(model, changing)
    message = refused(capsys, run, "--guard", changing)
    assert "model_fingerprint" in message and "--model" not in message


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
