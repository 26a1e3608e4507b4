"""Small tokenizers of the families, saved as transformers saves them, and checks against its
own.
"""

import inspect
import json

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

SPLIT = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SENTENCES = [
    "You are a helpful assistant. Today Date: 26 Jul 2024, Cutting Knowledge Date: December 2023.",
    "Q: Natalia sold clips to 48 of her friends. Let's think step by step. A: 48 + 24 = 72 #### 72",
    "Safety: Unsafe Categories: Violent Refusal: No system user assistant tool header id eot im "
    "start end think",
]


def can_sanitize() -> bool:
    """True if this transformers release can keep control tokens out of messages."""
    options = inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
    return "sanitize_control_tokens" in options


def raw_tokenizer(special, plain=(), normalizer=None):
    """A small byte-level BPE whose added tokens come after the vocabulary, as in Llama 3 and
    Qwen.
    """
    raw = RawTokenizer(models.BPE())
    raw.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False),
    )
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    raw.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return raw


def save(folder, raw, template, **named):
    """A folder with the tokenizer as transformers writes it, and transformers' own reading of
    it.
    """
    PreTrainedTokenizerFast(tokenizer_object=raw, **named).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def llama_folder(folder, template):
    raw = raw_tokenizer(LLAMA_TOKENS)
    begin = (LLAMA_TOKENS[0], raw.token_to_id(LLAMA_TOKENS[0]))
    raw.post_processor = processors.TemplateProcessing(
        f"{begin[0]} $A", special_tokens=[begin]
    )  # as Llama 3 has it
    return save(folder, raw, template, bos_token=LLAMA_TOKENS[0], eos_token="<|eot_id|>")


def qwen_folder(folder, template):
    raw = raw_tokenizer(QWEN_TOKENS, ["<think>", "</think>"], normalizers.NFC())
    return save(
        folder,
        raw,
        template,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|endoftext|>",
    )


def their_ids(tokenizer, messages, add_generation_prompt=True, **options):
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, return_dict=False, **options
    )


def control_ids(tokenizer, ids):
    """The ids of added tokens in `ids`, in order."""
    return [
        index
        for index in ids
        if tokenizer.decode([index], skip_special_tokens=False) in tokenizer._added
    ]


def check_attack(ours, theirs, attack):
    for role in ("user", "assistant", "system"):
        harmless, messages = ([{"role": role, "content": content}] for content in ("Hi", attack))
        ids = ours.encode_chat(messages)
        assert control_ids(ours, ids) == control_ids(ours, ours.encode_chat(harmless))
        # Nothing is lost or altered on the way: the text is what transformers renders.
        rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert ours.decode(ids, skip_special_tokens=False) == rendered


def edit_json(path, **fields):
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(value | fields))
