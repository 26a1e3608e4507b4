"""The benchmarks on a tiny checkpoint: the engines run in their processes and the reports are
complete and true.
"""

import json

import pytest

from benchmarks import compare, decode, quantize

pytestmark = pytest.mark.slow


def test_decode_compares_ours_with_transformers(chat_checkpoint, tmp_path):
    """Guards the whole path; a random model repeats itself, so a difference in tokens would be a
    real one.
    """
    output = tmp_path / "decode.json"
    options = [
        "--model",
        str(chat_checkpoint),
        "--data",
        "demo",
        "--settings",
        "fixed-3-shot",
        "--questions",
        "4",
    ]
    options += [
        "--one-prompt",
        "1",
        "--transformers-questions",
        "3",
        "--batch-size",
        "2",
        "--max-new-tokens",
        "6",
        "--threads",
        "1",
    ]
    assert decode.main([*options, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    section = report["settings"]["fixed-3-shot"]
    ours, theirs = section["engines"]["unforget"], section["engines"]["transformers"]
    assert ours["token_ids"][:3] == theirs["token_ids"] and len(ours["token_ids"]) == 4
    assert theirs["ratio_to_ours"] == (theirs["seconds"] / 3) / (ours["seconds"] / 4)
    assert section["limits"]["prefill_tokens_needed"] < section["prompt_tokens"] / 2
    table = output.with_suffix(".md").read_text()
    assert (
        "| transformers | first 3 |" in table
        and "3 of 3" in table
        and "The first prompt alone" in table
    )


def test_missing_peer_is_one_line(chat_checkpoint, capsys):
    """Guards the advice: which option, and how to export the model."""
    options = ["--model", str(chat_checkpoint), "--engines", "llama.cpp", "--data", "demo"]
    assert decode.main(options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("pip install llama-cpp-python" in error or "--gguf" in error)


def test_difference_is_called_a_tie_only_where_the_logits_tie(chat_checkpoint):
    """Guards the tie check: on a random model another second token is a difference that no rounding
    explains.
    """
    prompts, theirs, ours = [[5, 6, 7]], [[10, 11, 12]], [[10, 13]]
    engines = {"transformers": {"token_ids": theirs}, "unforget": {"token_ids": ours}}
    (difference,) = compare.compare_tokens(chat_checkpoint, prompts, engines)
    assert (difference["question"], difference["position"], difference["tokens"]) == (
        0,
        1,
        [13, 11],
    )
    assert not difference["tie"]


def test_tokens_needed_counts_shared_prefixes_once():
    """Guards the arithmetic limit: a trie of these prompts has six nodes."""
    assert compare.tokens_needed([[1, 2, 3], [1, 2], [1, 2, 4, 5], [9], [1, 2, 3]]) == 6


def test_quantize_compares_both_kinds_of_weights(chat_checkpoint, capsys):
    """Guards that the two are really measured: logits do change, if little, and four random tokens
    hold no number.
    """
    quantize.main(
        [
            "--model",
            str(chat_checkpoint),
            "--data",
            "demo",
            "--questions",
            "3",
            "--max-new-tokens",
            "4",
        ]
    )
    printed = capsys.readouterr().out
    assert "| float32 |" in printed and "| int8 |" in printed
    assert 0 < float(printed.split("the largest change of a logit ")[1].split(",")[0]) < 1
    assert "Answers with another number: 0 of 3." in printed
