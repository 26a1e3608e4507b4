"""Build the tokenizer files of a Hugging Face checkpoint from a GGUF file's metadata.

Byte-level BPE alone is supported. The pre-tokenizer, which splits text before merges apply, is
named in the file; its pattern is part of this code, as it is of llama.cpp's.
"""

from typing import Any

from llama.errors import UserError
from llama.gguf import GGUFFile

# GGUF's token types: 1 is an ordinary token.
CONTROL, USER_DEFINED = 3, 4
SPECIAL_TOKENS = {  # tokenizer_config.json's name -> GGUF's
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"  # up to three digits together
QWEN2_PATTERN = rf"{_WORDS}|\p{{N}}|{_REST}"  # digits one by one


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama-bpe": _split(LLAMA3_PATTERN),
    "qwen2": _split(QWEN2_PATTERN),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            _byte_level(use_regex=True),
        ],
    },
}


def tokenizer_json(file: GGUFFile) -> dict[str, Any]:
    """Return the `tokenizer.json` of the file's vocabulary and merges. UserError names a tokenizer
    of another kind, and what is missing or damaged.
    """
    pre_tokenizer = _find_pre_tokenizer(file)
    tokens = _strings(file, "tokenizer.ggml.tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise UserError("tokenizer.ggml.tokens names a token twice")
    merges = []
    for merge in _strings(file, "tokenizer.ggml.merges"):
        pair = merge.split(" ")
        if len(pair) != 2:
            raise UserError(f"tokenizer.ggml.merges: {merge!r} is no pair of tokens")
        merges.append(pair)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        # Llama 3 takes a word that is a token whole, whether or not merges lead to it.
        "ignore_merges": file.metadata["tokenizer.ggml.pre"] == "llama-bpe",
        "vocab": vocabulary,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(file, tokens),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _post_processor(file, tokens),
        "decoder": _byte_level(use_regex=True),
        "model": model,
    }


def tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    """Return the `tokenizer_config.json`: special tokens by name, and templates other than the
    default one.
    """
    tokens = _strings(file, "tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        # Not the family's own class: in transformers it would bring its own pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.hyperparameter("context_length"),
        "clean_up_tokenization_spaces": False,
    }
    for name, key in SPECIAL_TOKENS.items():
        index = _token_id(file, key, tokens)
        if index is not None:
            config[name] = tokens[index]
    return config


def generation_config(file: GGUFFile) -> dict[str, Any]:
    """Return the `generation_config.json`: the ids that begin, end and pad a text."""
    tokens = _strings(file, "tokenizer.ggml.tokens")
    end_ids: list[int] = []
    for key in END_TOKENS:
        index = _token_id(file, key, tokens)
        if index is not None and index not in end_ids:
            end_ids.append(index)
    config: dict[str, Any] = {"eos_token_id": end_ids[0] if len(end_ids) == 1 else end_ids}
    for name, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        config[name] = _token_id(file, key, tokens)
    return config


def chat_template(file: GGUFFile) -> str | None:
    """Return the source of the default chat template, if the file has one."""
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError(f"tokenizer.chat_template must be text, found {type(template).__name__}")
    return template


def _find_pre_tokenizer(file: GGUFFile) -> dict[str, Any]:
    model = file.metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        kind = "SentencePiece" if model == "llama" else "unknown"
        raise UserError(
            f"tokenizer.ggml.model = {model!r}, a vocabulary of {kind} kind, is not supported, "
            "only 'gpt2' (byte-level BPE); the model's folder from the Hub may work"
        )
    name = file.metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise UserError(
            f"tokenizer.ggml.pre = {name!r} is not supported, only {', '.join(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[name]


def _added_tokens(file: GGUFFile, tokens: list[str]) -> list[dict[str, Any]]:
    """Control tokens, and tokens that are taken whole wherever a text has them."""
    types = file.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(
            f"tokenizer.ggml.token_type has {len(types) if isinstance(types, list) else 'no'} "
            f"entries for {len(tokens)} tokens"
        )
    added = []
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (CONTROL, USER_DEFINED) or not token:
            continue
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": index, "content": token, **flags, "special": kind == CONTROL})
    return added


def _post_processor(file: GGUFFile, tokens: list[str]) -> dict[str, Any] | None:
    """The frame of a text that is no chat: tokens put before and behind it, if there are any."""
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {}
    for key, flag, place in (
        ("bos_token_id", "add_bos_token", 0),
        ("eos_token_id", "add_eos_token", 1),
    ):
        index = _token_id(file, key, tokens)
        if index is None or not file.metadata.get(f"tokenizer.ggml.{flag}"):
            continue
        token = tokens[index]
        special[token] = {"id": token, "ids": [index], "tokens": [token]}
        single.insert(place * len(single), {"SpecialToken": {"id": token, "type_id": 0}})
    if not special:
        return None
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _token_id(file: GGUFFile, key: str, tokens: list[str]) -> int | None:
    index = file.metadata.get(f"tokenizer.ggml.{key}")
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(tokens):
        raise UserError(
            f"tokenizer.ggml.{key} = {index!r} is not in the vocabulary of {len(tokens)} tokens"
        )
    return index


def _strings(file: GGUFFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise UserError(f"{key} is missing or no list of strings")
    return value
