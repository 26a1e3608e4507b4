"""GGUF files load as checkpoints: every family, every quantisation, the tokenizer; others are
refused in one line.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from data.gsm8k import GSM8K
from llama import ModelConfig, UserError, load_model, load_tokenizer
from llama.embedding import Embedder
from llama.fingerprint import model_fingerprint
from llama.gguf import MAX_ITEMS, read_header, read_tensor
from llama.gguf_model import split_halves
from llama.hub import resolve
from llama.quantization import QuantizedLinear
from tests.tiny import tiny_transformers_model

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
from tests.tiny_gguf import CHAT_TEMPLATE, save_gguf, tiny_vocabulary  # noqa: E402 - needs gguf

VOCABULARY = 300
INPUT_IDS = torch.randint(0, VOCABULARY, (2, 150), generator=torch.Generator().manual_seed(1))
STUDY = Path(os.environ.get("UNFORGET_STUDY") or "~/.cache/unforget-study").expanduser()
TEXTS = [
    "Natalia sold 48 clips, then 1234567 more.",
    "  two  spaces 12  123 \n\n\t3.5\r\n  ",
    "I'll don't we'RE 'S abab ab1a",
    "Zoë naïve 日本語 αβγ 😀 ½ ²",
    "",
    " ",
    "e\u0301 decomposed",
    "<|im_start|> spelled out",
]


def tiny(variant: str, **changes) -> torch.nn.Module:
    return tiny_transformers_model(variant, vocab_size=VOCABULARY, **changes)


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory):
    return save_gguf(tiny("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def assert_same_logits(path, theirs, tolerance=2e-5):
    ours = load_model(path)
    with torch.inference_mode():
        expected, actual = theirs(INPUT_IDS).logits, ours.logits(ours(INPUT_IDS))
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("variant", "architecture", "changes"),
    [
        ("llama", "llama", {}),
        ("llama-biased", "llama", {}),
        ("llama3-scaled", "llama", {"head_dim": 16}),
        ("mistral", "llama", {}),
        ("qwen2", "qwen2", {"head_dim": 12}),
        ("qwen2-untied", "qwen2", {}),
        ("qwen3", "qwen3", {}),
        ("smollm3", "smollm3", {"no_rope_layer_interval": 4, "num_hidden_layers": 5}),
    ],
)
def test_logits_equal_the_original(variant, architecture, changes, tmp_path):
    theirs = tiny(variant, **changes)
    path = save_gguf(theirs, tmp_path / "model.gguf", architecture)
    assert_same_logits(path, theirs)
    assert ModelConfig.load(path).tie_word_embeddings == theirs.config.tie_word_embeddings


def test_rotary_scaling_is_recovered(tmp_path):
    theirs = tiny("llama3-scaled")
    scaled = ModelConfig.load(save_gguf(theirs, tmp_path / "scaled.gguf"))
    expected = ModelConfig.from_dict(theirs.config.to_dict()).rope
    assert scaled.rope == expected


def test_logits_equal_transformers_reading_the_same_file(llama_file):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        llama_file.parent, gguf_file=llama_file.name, dtype=torch.float32
    )
    assert_same_logits(llama_file, theirs)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0"])
def test_quantised_weights(quantisation, tmp_path):
    """The same logits as the original whose matrices are replaced by the dequantised ones."""
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    theirs = tiny("llama", **sizes)
    kind = gguf.GGMLQuantizationType[quantisation]
    path = save_gguf(theirs, tmp_path / "model.gguf", quantisation=kind)
    for parameter in theirs.parameters():
        if parameter.ndim == 2:
            rounded = gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)
            assert not np.array_equal(rounded, parameter.numpy())
            parameter.data = torch.from_numpy(rounded)
    assert_same_logits(path, theirs)


@pytest.mark.parametrize("kind", sorted(gguf.quants._type_traits), ids=lambda kind: kind.name)
def test_every_type_that_gguf_dequantises(kind, tmp_path, monkeypatch):
    """Random blocks of each type, read in parts, are what the package makes of the whole."""
    monkeypatch.setattr("llama.gguf.ROWS_AT_ONCE", 3)
    block_size, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 64, (7, 2 * block_nbytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weight = read_tensor(read_header(tmp_path / "one.gguf"), "x")
    assert weight.dtype == np.float32 and weight.shape == (7, 2 * block_size)
    np.testing.assert_array_equal(weight, gguf.dequantize(data, kind))


def test_int8_is_rounded_from_the_dequantised_weights(llama_file):
    plain, small = load_model(llama_file), load_model(llama_file, quantize="int8")
    assert isinstance(small.model["layers"][0].mlp.up_proj, QuantizedLinear)
    with torch.inference_mode():
        expected, actual = plain.logits(plain(INPUT_IDS)), small.logits(small(INPUT_IDS))
    assert 0 < (actual - expected).abs().max() < 0.2 * expected.abs().max()


def test_weights_can_be_changed(llama_file):
    """They are no view of the file: merging an adapter writes to them."""
    model = load_model(llama_file)
    model.model["norm"].weight.data.add_(1)


def test_an_embedder_may_be_a_gguf_file(llama_file, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path))
    vectors = Embedder(llama_file).embed(["ab 12", "another"])
    assert vectors.shape == (2, 48) and not torch.equal(vectors[0], vectors[1])


def test_resolved_by_name_or_by_content(llama_file, tmp_path):
    blob = tmp_path / "sha256-0123"  # as Ollama names its files
    blob.write_bytes(llama_file.read_bytes())
    assert resolve(blob) == blob and resolve(str(llama_file)) == llama_file
    assert load_tokenizer(blob).stop_ids == {2}


# The tokenizer.

NORMALIZES_QWEN2 = Version(transformers.__version__) >= Version("5.18")
WITHOUT_NFC = "this transformers release reads a qwen2 GGUF's tokenizer without its NFC and digits"


@pytest.mark.parametrize("pre_tokenizer", ["llama-bpe", "qwen2"])
def test_ids_equal_transformers(pre_tokenizer, tmp_path):
    if pre_tokenizer == "qwen2" and not NORMALIZES_QWEN2:
        pytest.skip(WITHOUT_NFC)
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", pre_tokenizer=pre_tokenizer)
    ours = load_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TEXTS[:-1]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == text
    tokens = {text: theirs.convert_ids_to_tokens(ours.encode(text)) for text in ("123", "1234")}
    digits = pre_tokenizer == "qwen2"  # which keeps every digit alone
    assert tokens["123"] == (["1", "2", "3"] if digits else ["123"])
    assert tokens["1234"] == (["1", "2", "3", "4"] if digits else ["123", "4"])


def test_smollm_splits_digits_first(tmp_path):
    """As the published tokenizer does: `Digits`, then GPT-2's byte-level pattern."""
    tokenizer = load_tokenizer(save_gguf(tiny("llama"), tmp_path / "model.gguf"))
    vocabulary = tiny_vocabulary()
    ids = tokenizer.encode("ab 12  3 <|im_end|>")
    assert [vocabulary[index] for index in ids[:7]] == ["ab", "Ġ", "1", "2", "ĠĠ", "3", "Ġ"]
    assert tokenizer.decode(ids) == "ab 12  3 <|im_end|>"


def test_chat_template_and_end_tokens(tmp_path):
    extra = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", metadata=extra)
    tokenizer = load_tokenizer(path)
    assert tokenizer.stop_ids == {0, 2} and tokenizer.end_id == 2
    assert tokenizer.vocab_size == VOCABULARY
    ids = tokenizer.encode_chat([{"role": "user", "content": "ab <|im_end|>"}])
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(2) == 1
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|im_start|>ab <|im_end|><|im_end|>"


def test_user_defined_tokens_stay_whole(tmp_path):
    types = [3] * 3 + [1] * (VOCABULARY - 4) + [4]
    path = save_gguf(
        tiny("llama"),
        tmp_path / "model.gguf",
        metadata={
            "tokenizer.ggml.tokens": [*tiny_vocabulary(VOCABULARY - 1), "<think>"],
            "tokenizer.ggml.token_type": types,
            "tokenizer.chat_template": "<think>{{ messages[0].content }}",
        },
    )
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode_chat([{"role": "user", "content": "ab"}])
    assert ids[0] == VOCABULARY - 1
    assert tokenizer.decode(ids) == "<think>ab"


@pytest.mark.parametrize(
    ("flags", "framed"),
    [({}, "ab"), ({"bos": True}, "<|im_start|>ab"), ({"eos": True}, "ab<|im_end|>")],
)
def test_frame_of_a_text(flags, framed, tmp_path):
    fields = {f"tokenizer.ggml.add_{name}_token": value for name, value in flags.items()}
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", metadata=fields)
    tokenizer = load_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode_framed("ab"), skip_special_tokens=False) == framed


# Fingerprints.


def test_fingerprint_follows_the_content(llama_file, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(llama_file.read_bytes())
    assert model_fingerprint(copy) == model_fingerprint(llama_file)
    template = {"tokenizer.chat_template": CHAT_TEMPLATE + " "}
    changed = [save_gguf(tiny("llama"), tmp_path / "template.gguf", metadata=template)]
    changed.append(save_gguf(tiny("llama", seed=1), tmp_path / "seed.gguf"))
    assert len({model_fingerprint(path) for path in [copy, *changed]}) == 3


# Refusals.


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.vocab_size": 299}, "llama.vocab_size = 299, but token_embd.weight has 300 rows"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn' is not supported"),
        ({"llama.expert_count": 8}, "num_local_experts = 8 is not supported"),
        ({"llama.attention.sliding_window": 64}, "sliding_window = 64 is not supported"),
        ({"llama.attention.causal": False}, "llama.attention.causal = False is not supported"),
        ({"llama.rope.dimension_count": 6}, "rope.dimension_count = 6 with heads of 12"),
        ({"llama.embedding_length": None}, "field hidden_size is missing"),
        ({"llama.attention.head_count": 0}, "num_attention_heads = 0: expected a positive"),
        ({"llama.block_count": "three"}, "num_hidden_layers = 'three': expected a positive"),
        ({"llama.feed_forward_length": [80, 80, 80]}, "intermediate_size = [80, 80, 80]"),
        ({"split.count": 3}, "one of 3 parts; join them with `llama-gguf-split --merge`"),
    ],
)
def test_what_would_change_the_result_is_refused(metadata, message, tmp_path):
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(UserError) as error:
        load_model(path)
    assert one_line(error).startswith(f"{path}: ") and message in str(error.value)


def test_another_family_is_named(llama_file, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(llama_file.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "general.architecture = 'gemma' is not supported, only llama, qwen2" in one_line(error)


def test_a_vocabulary_larger_than_the_embedding(tmp_path):
    tokens = tiny_vocabulary(VOCABULARY + 1)
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": None}
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", metadata=fields)
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "has 301 entries, but token_embd.weight has only 300 rows" in one_line(error)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    extra = {
        "blk.0.attn_q.weight": np.zeros((40, 48), np.float32),
        "blk.0.ffn_gate_inp.weight": np.zeros((2, 2), np.float32),
    }
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", tensors=extra)
    with pytest.raises(UserError) as error:
        load_model(path)
    message = one_line(error)
    assert "model.layers.0.self_attn.q_proj.weight is [40, 48], config.json asks for [48, 48]" in (
        message
    )
    assert "unexpected blk.0.ffn_gate_inp.weight [2, 2]" in message


def test_rotary_divisors_of_another_kind(tmp_path):
    divisors = {"rope_freqs.weight": np.array([1, 5, 2, 3, 1, 8], np.float32)}
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", tensors=divisors)
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "rope_freqs.weight: its values are not those of Llama 3's scaling" in one_line(error)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "'llama', a vocabulary of SentencePiece kind, is not"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model = None"),
        ({"tokenizer.ggml.pre": "gpt-2"}, "tokenizer.ggml.pre = 'gpt-2' is not supported, only"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre = None is not supported"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is missing or no list"),
        ({"tokenizer.ggml.tokens": ["a"] * 3}, "tokenizer.ggml.tokens names a token twice"),
        ({"tokenizer.ggml.merges": ["a"]}, "tokenizer.ggml.merges: 'a' is no pair of tokens"),
        ({"tokenizer.ggml.merges": ["x yz"]}, "not a tokenizer that the tokenizers library reads"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 entries for 300 tokens"),
        ({"tokenizer.ggml.eos_token_id": 300}, "eos_token_id = 300 is not in the vocabulary"),
        ({"tokenizer.ggml.eos_token_id": None}, "names no end token"),
        ({"tokenizer.chat_template": 5}, "tokenizer.chat_template must be text, found int"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(metadata, message, tmp_path):
    path = save_gguf(tiny("llama"), tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(UserError) as error:
        load_tokenizer(path)
    assert message in one_line(error) and str(path) in str(error.value)


def test_files_cut_short_are_named(llama_file, tmp_path):
    """Wherever the file ends: within the header, before or within the tensors."""
    content = llama_file.read_bytes()
    path = tmp_path / "cut.gguf"
    header_size = read_header(llama_file).header_size
    ends = [0, 3, 4, 8, 24, 30, *range(50, header_size, 997), header_size, len(content) - 1]
    for end in ends:
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"not a GGUF file|cut short") as error:
            load_model(path)
        assert one_line(error).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (0, b"GGML", "not a GGUF file"),
        (4, b"\1\0\0\0", "GGUF version 1 is not supported"),
        (4, b"\0\0\0\3", "GGUF version 50331648 is not supported, only 2 and 3 in little-endian"),
        (8, b"\xff" * 8, "a damaged GGUF file"),
        (16, b"\xff" * 8, "a damaged GGUF file"),
        (24, b"\xff" * 8, "a damaged GGUF file"),
    ],
)
def test_damaged_headers_are_named(offset, content, message, llama_file, tmp_path):
    damaged = bytearray(llama_file.read_bytes())
    damaged[offset : offset + len(content)] = content
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    with pytest.raises(UserError) as error:
        load_model(path)
    assert message in one_line(error)


def test_random_damage_is_an_answer_or_one_line(llama_file, tmp_path):
    """Bytes of the header changed at random: never another exception, never much memory."""
    content = llama_file.read_bytes()
    header_size = read_header(llama_file).header_size
    draw = np.random.default_rng(0)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in draw.integers(0, header_size, 3):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            load_model(path)
            load_tokenizer(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def find_type_fields(content: bytes, name: str) -> int:
    """Where the type of tensor `name` stands in the header."""
    start = content.index(name.encode()) + len(name)
    num_dimensions = int.from_bytes(content[start : start + 4], "little")
    return start + 4 + 8 * num_dimensions


@pytest.mark.parametrize(
    ("ggml_type", "message"),
    [
        (99, "is of type 99, which gguf .* does not know"),
        (9, "is of type Q8_1, which gguf .* cannot dequantise"),
        (12, "has rows of 48, no multiple of Q4_K's blocks of 256"),
    ],
)
def test_types_that_cannot_be_read(ggml_type, message, tmp_path):
    theirs = tiny("llama", hidden_size=64) if ggml_type == 9 else tiny("llama")
    path = save_gguf(theirs, tmp_path / "model.gguf")
    content = bytearray(path.read_bytes())
    place = find_type_fields(bytes(content), "blk.1.attn_v.weight")
    content[place : place + 4] = ggml_type.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"tensor blk\.1\.attn_v\.weight {message}") as error:
        load_model(path)
    one_line(error)


def test_long_strings_are_refused_before_they_are_read(llama_file, tmp_path):
    content = bytearray(llama_file.read_bytes())
    content[24:32] = (MAX_ITEMS + 1).to_bytes(8, "little")  # the length of the first key
    path = tmp_path / "long.gguf"
    path.write_bytes(content + bytes(MAX_ITEMS + 100))
    with pytest.raises(UserError, match=f"a length of {MAX_ITEMS + 1} in a header"):
        read_header(path)


def test_without_the_package(llama_file, monkeypatch):
    """Configuration and tokenizer need no package; weights say which."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert ModelConfig.load(llama_file).num_hidden_layers == 3
    assert load_tokenizer(llama_file).encode("ab")
    with pytest.raises(UserError, match=r"need the package gguf: pip install 'gguf>=0\.18'"):
        load_model(llama_file)


def test_split_halves_needs_the_right_heads():
    weight = np.arange(8.0)[:, None] * np.ones((1, 3))
    assert split_halves(weight, 1)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert split_halves(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert split_halves(weight[:, 0], 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


# Real files.


@pytest.fixture(scope="module")
def study_file():
    files = list(STUDY.glob("qwen2.5-coder-0.5b-instruct-*.gguf"))
    if not files:
        pytest.skip(f"no Qwen2.5-Coder-0.5B GGUF in {STUDY}; set UNFORGET_STUDY")
    return files[0]


@pytest.fixture(scope="module")
def texts():
    """500 texts: questions and answers of GSM8K, official if UNFORGET_DATA has them."""
    source = "gsm8k" if os.environ.get("UNFORGET_DATA") else "demo"
    records = GSM8K().load(source, "train")
    texts = TEXTS[:-1] + [f"{record['question']}\n{record['answer']}" for record in records]
    return texts[:500]


@pytest.mark.slow
@pytest.mark.skipif(not NORMALIZES_QWEN2, reason=WITHOUT_NFC)
def test_qwen_coder_tokenizer_equals_transformers(study_file, texts):
    ours = load_tokenizer(study_file)
    theirs = transformers.AutoTokenizer.from_pretrained(
        study_file.parent, gguf_file=study_file.name
    )
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(chat) == expected


@pytest.mark.slow
def test_qwen_coder_logits_equal_transformers(study_file):
    ours = load_model(study_file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        study_file.parent, gguf_file=study_file.name, dtype=torch.float32
    ).eval()
    assert not ours.config.tie_word_embeddings
    input_ids = torch.randint(0, 151000, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, actual = theirs(input_ids).logits, ours.logits(ours(input_ids))
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))
