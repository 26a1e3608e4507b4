"""Embeddings equal what transformers' hidden states give, are kept by content, and find what is
alike.
"""

import json

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from llama import embedding, load_model, load_tokenizer
from llama.embedding import (
    Embedder,
    embed_tokens,
    first_positions,
    instruct,
    left_padding_id,
)
from llama.errors import UserError
from tests.tiny import save_chat_checkpoint, save_transformers_model, tiny_transformers_model

TEXTS = [
    "Ann has 3 apples.",
    "Ann has 4 apples and eats 2.",
    "A much longer text about trains, " * 4,
    "x",
]


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path / "cache"))
    return save_chat_checkpoint(tmp_path / "embedder")


@pytest.mark.parametrize("variant", ["qwen3", "llama3-scaled", "qwen3-untied"])
@pytest.mark.parametrize("pooling", ["last", "first"])
def test_vectors_equal_transformers_hidden_states(variant, pooling, tmp_path):
    theirs = tiny_transformers_model(variant)
    ours = load_model(save_transformers_model(theirs, tmp_path))
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 199, (n,), generator=generator).tolist() for n in (5, 120, 1, 33, 60)]
    actual = embed_tokens(ours, rows, pooling)
    place = -1 if pooling == "last" else 0
    states = [theirs.model(torch.tensor([row])).last_hidden_state[0, place] for row in rows]
    assert (actual - F.normalize(torch.stack(states), dim=-1)).abs().max() <= 1e-5
    assert actual.norm(dim=-1) == pytest.approx(torch.ones(5), abs=1e-6)


def test_the_first_tokens_vector_needs_no_other_token(checkpoint, monkeypatch):
    read = []
    model = load_model(checkpoint)
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    embed_tokens(model, [[5, 6, 7, 8], [5, 9]], "first")
    assert read == [2]


def test_the_first_position_is_that_of_batches_padded_as_transformers_pads(checkpoint):
    texts = [f"{word} is what text {i} begins with" for i, word in enumerate("abcabcabcabc")]
    rows = [load_tokenizer(checkpoint).encode_framed(text) for text in texts]
    theirs = transformers.AutoModel.from_pretrained(checkpoint)
    states = []
    for start in range(0, len(rows), 8):
        batch = rows[start : start + 8]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        states.append(theirs(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])
    actual = Embedder(checkpoint, "first").embed(texts)
    assert (actual - F.normalize(torch.cat(states), dim=-1)).abs().max() <= 1e-5
    assert torch.equal(actual[0], actual[3]) and not torch.equal(actual[0], actual[1])


@pytest.mark.parametrize("where", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_pads_on_the_left_puts_padding_first(checkpoint, where):
    """The longest of each eight keeps its first token; every other text is padding."""
    assert left_padding_id(checkpoint) is None
    path = checkpoint / where
    raw = json.loads(path.read_text())
    if where == "tokenizer.json":
        raw["padding"] = {"direction": "Left", "pad_id": 0, "strategy": "BatchLongest"}
    else:
        raw |= {"padding_side": "left", "pad_token": {"content": "<|endoftext|>"}}
    path.write_text(json.dumps(raw))
    assert left_padding_id(checkpoint) == 0
    rows = [[5, 6], [7], [8], [5, 9], [1], [2], [3], [4], [6], [7, 8, 9]]
    expected = [[5], [0], [0], [5], [0], [0], [0], [0], [0], [7]]
    assert first_positions(rows, 0) == expected
    assert first_positions(rows) == [row[:1] for row in rows]
    vectors = Embedder(checkpoint, "first").embed(["a b c d", "x", "y"])
    assert torch.equal(vectors[1], vectors[2]) and not torch.equal(vectors[0], vectors[1])


def test_a_vector_that_is_not_finite_is_refused_and_not_kept(checkpoint):
    def damage(tensors):
        tensors["model.norm.weight"][3] = float("nan")
        return tensors

    change_tensors(checkpoint, damage)
    for _ in range(2):
        with pytest.raises(UserError, match=r"text .*: the embedding is not finite: the weights"):
            Embedder(checkpoint).embed(TEXTS)
    assert not Embedder(checkpoint).path.exists()


def test_an_embedding_checkpoint_without_prefix_and_head_is_read(tmp_path):
    """Qwen3-Embedding's files: names without "model.", and no lm_head, also where the config says
    it is untied.
    """
    theirs = tiny_transformers_model("qwen3-untied")
    folder = save_transformers_model(theirs, tmp_path)
    rows = [[5, 6, 7]]
    expected = embed_tokens(load_model(folder), rows)
    change_tensors(
        folder,
        lambda t: {k.removeprefix("model."): v for k, v in t.items() if k != "lm_head.weight"},
    )
    assert torch.equal(embed_tokens(load_model(folder, head=False), rows), expected)
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        load_model(folder)


def test_a_query_carries_its_instruction():
    assert instruct("How many?").startswith("Instruct: ") and instruct("How many?").endswith(
        "\nQuery:How many?"
    )


def test_texts_end_as_the_tokenizer_ends_them(checkpoint):
    bare = load_tokenizer(checkpoint).encode_framed("Hi")
    assert bare == load_tokenizer(checkpoint).encode("Hi")
    raw = json.loads((checkpoint / "tokenizer.json").read_text())
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    tokens = {
        name: {"id": name, "ids": [i], "tokens": [name]}
        for i, name in enumerate(("<|endoftext|>", "<|im_start|>"))
    }
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": tokens,
    }
    (checkpoint / "tokenizer.json").write_text(json.dumps(raw))
    reference = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    framed = load_tokenizer(checkpoint).encode_framed("Hi")
    assert framed == [1, *bare, 0] == reference.encode("Hi").ids


def test_what_is_cached_needs_no_model(checkpoint, monkeypatch):
    first = Embedder(checkpoint).embed(TEXTS)
    loaded = []
    monkeypatch.setattr(
        embedding, "load_model", lambda *a, **k: loaded.append(a) or load_model(*a, **k)
    )
    again = Embedder(checkpoint).embed(TEXTS[::-1])
    assert torch.equal(again, first.flip(0)) and not loaded
    more = Embedder(checkpoint).embed([*TEXTS, "new"])
    assert torch.equal(more[:-1], first) and len(loaded) == 1
    alone = Embedder(checkpoint).embed(["new"])
    assert torch.equal(alone[0], more[-1]) and len(loaded) == 1


def test_other_poolings_dtypes_and_weights_have_their_own_cache(checkpoint):
    keys = {Embedder(checkpoint, "last").key, Embedder(checkpoint, "first").key}
    keys.add(Embedder(checkpoint, "last", torch.bfloat16).key)
    change_tensors(checkpoint, lambda t: {k: v * 1.5 for k, v in t.items()})
    keys.add(Embedder(checkpoint, "last").key)
    assert len(keys) == 4


def test_a_cache_of_another_model_is_refused(checkpoint):
    last, first = Embedder(checkpoint, "last"), Embedder(checkpoint, "first")
    last.embed(TEXTS)
    last.path.rename(first.path)
    with pytest.raises(
        ValueError, match=f"holds embeddings of {last.key}, not of {first.key}.*delete the file"
    ):
        first.embed(TEXTS)
    first.path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="not a readable embedding cache"):
        first.embed(TEXTS)


def test_work_is_kept_on_the_way(checkpoint, monkeypatch):
    monkeypatch.setattr(embedding, "SECONDS_BETWEEN_SAVES", -1)
    monkeypatch.setattr(embedding, "PASS_TOKENS", 1)
    real, calls = embedding.embed_tokens, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(embedding, "embed_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Embedder(checkpoint).embed(TEXTS)
    assert len(Embedder(checkpoint)._read()) == 2


def test_a_text_beyond_the_context_is_named(checkpoint):
    with pytest.raises(ValueError, match=r"to embed: .* tokens leave no room"):
        Embedder(checkpoint).embed(["long " * 3000])


def test_unknown_pooling(checkpoint):
    with pytest.raises(ValueError, match="unknown pooling 'mean': expected one of last, first"):
        embed_tokens(load_model(checkpoint), [[1]], "mean")
