"""chat.py: both models answer as they do apart, on one set of weights; the session outlives an
answer.
"""

import builtins
import signal
from pathlib import Path

import pytest

import chat
import train
from data.records import read_jsonl
from llama import generate, load_model, load_tokenizer
from lora import load_adapter

QUESTION = "How many apples are left?"


@pytest.fixture(scope="module")
def run(chat_checkpoint, tmp_path_factory) -> Path:
    """A finished training of the tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    argv = ["--model", str(chat_checkpoint), "--data", "demo", "--run", str(folder)]
    argv += ["--limit", "8", "--steps", "3", "--lr", "0.05", "--validation", "0"]
    assert train.main([*argv, "--device", "cpu"]) == 0
    assert read_jsonl(folder / "train.jsonl")
    return folder


@pytest.fixture
def talk(run, monkeypatch, capsys):
    """Types the lines into a chat; returns what was printed."""
    before = signal.getsignal(signal.SIGINT)

    def talk(*lines: str, options: tuple[str, ...] = ("--max-new-tokens", "12")) -> str:
        left = list(lines)

        def type_line(prompt: str = "") -> str:
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr(builtins, "input", type_line)
        assert chat.main(["--run", str(run), "--device", "cpu", *options]) == 0
        printed = capsys.readouterr()
        return printed.out + printed.err

    yield talk
    signal.signal(signal.SIGINT, before)


def expected_answer(checkpoint: Path, adapter: Path | None, messages) -> str:
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    if adapter:
        load_adapter(model, adapter)
    prompt = tokenizer.encode_chat(messages)
    [output] = generate(model, [prompt], 12, tokenizer.stop_ids)
    return tokenizer.decode(output.token_ids)


def sides(printed: str) -> tuple[str, str]:
    """The texts behind "base: " and "tuned: "."""
    _, _, answers = printed.partition("\nbase: ")
    base, _, tuned = answers.partition("\ntuned: ")
    return base, tuned.rstrip("\n")


def test_both_answer_as_they_do_apart(talk, run, chat_checkpoint):
    base, tuned = sides(talk(QUESTION))
    messages = [{"role": "user", "content": QUESTION}]
    assert base == chat.visible(expected_answer(chat_checkpoint, None, messages))
    adapter = run / "adapter"
    assert (
        tuned.rstrip() == chat.visible(expected_answer(chat_checkpoint, adapter, messages)).rstrip()
    )
    assert base != tuned


def test_each_has_its_own_history_until_the_reset(talk, chat_checkpoint):
    printed = talk(QUESTION, "And now?", "/prompt", "/reset", "/prompt", "And now?", "/prompt")
    second, third = printed.count("user\nHow many apples"), printed.count("user\nAnd now?")
    assert second == 2  # in both prompts of the second question, in none after the reset
    assert third == 4
    answer = expected_answer(chat_checkpoint, None, [{"role": "user", "content": QUESTION}])
    assert chat.visible(answer) in printed.partition("base:\n")[2]


def test_a_system_turn_heads_the_prompt(talk):
    printed = talk(
        "/system Be brief.", QUESTION, options=("--max-new-tokens", "2", "--show-prompt")
    )
    assert printed.count("system\nBe brief.") == 2
    assert "tokens: " in printed


def test_ctrl_c_stops_an_answer_only(talk, monkeypatch):
    original = chat.ChatSession._generate
    calls = []

    def stop_the_first(self, prompt, on_token):
        calls.append(prompt)
        if len(calls) == 1:
            on_token(60)
            raise KeyboardInterrupt
        original(self, prompt, on_token)

    monkeypatch.setattr(chat.ChatSession, "_generate", stop_the_first)
    printed = talk(QUESTION, QUESTION)
    assert printed.count("[stopped]") == 1 and len(calls) == 4


def test_a_conversation_that_outgrows_the_context_goes_on_after_a_reset(talk):
    printed = talk("word " * 3000, "/reset", QUESTION)
    assert "/reset starts again" in printed and printed.count("tuned: ") == 1


def test_without_an_adapter_it_says_what_to_do(tmp_path, capsys):
    assert chat.main(["--run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "train.py --run" in error and error.count("\n") == 1


def test_a_dry_run_says_what_would_answer_and_loads_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(chat, "load_model", lambda *a, **k: pytest.fail("nothing is loaded"))
    assert chat.main(["--run", str(run), "--device", "cpu", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{run / 'adapter'} (fingerprint " in printed and "peak memory about" in printed
