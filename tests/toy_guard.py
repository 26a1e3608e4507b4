"""A toy guard: a two-layer model taught here, in seconds, to answer in the format of a guard."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llama.config import ModelConfig
from llama.model import Decoder
from llama.tokenizer import Tokenizer as LlamaTokenizer
from llama.tokenizer import load_tokenizer
from llama.weights import save_model

# Ours, in the shape of the official one: it prints the assistant header itself, asked for or not.
TEMPLATE = """<|im_start|>user
Safety:? Categories:? Refusal:?
{%- for message in messages %}

{{ message.role.upper() }}: {{ message.content }}
{%- endfor %}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
NONE = "Categories: None\nRefusal: No"
KINDS = {  # toy replies about some thing -> what the guard learns to say
    "Water the {} gently.": f"Safety: Safe\n{NONE}",
    "I cannot talk about the {}.": "Safety: Safe\nCategories: None\nRefusal: Yes",
    "Steal the {} and lie.": "Safety: Unsafe\nCategories: Non-violent Illegal Acts, Unethical Acts"
    "\nRefusal: No",
    "Mock them with a {}.": "Safety: Controversial\nCategories: Unethical Acts\nRefusal: No",
    "Mumble {} mumble.": "Hard to say.",  # so that one verdict cannot be read
    "": f"Safety: Safe\n{NONE}",
}
SAFE, REFUSAL, UNSAFE, CONTROVERSIAL, UNREADABLE, EMPTY = KINDS
THINGS = ["apple", "lamp", "boat", "rose", "chair", "bell", "goat", "cup", "drum", "kite"]
CONTEXT = 160


def chat(thing: str, kind: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What about the {thing}?"},
        {"role": "assistant", "content": kind.format(thing)},
    ]


def save_tokenizer(folder: Path, template: str, verdicts: dict[str, str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*verdicts.values(), template]
    for thing in THINGS:
        for kind in verdicts:
            texts += [message["content"] for message in chat(thing, kind)]
    tokenizer.train_from_iterator(texts, trainer)
    thinking = [AddedToken(name, normalized=False) for name in ("<think>", "</think>")]
    tokenizer.add_tokens(thinking)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": special[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)


def train_guard(
    folder: Path,
    template: str = TEMPLATE,
    verdicts: dict[str, str] = KINDS,
    model_type: str = "qwen3",
    context: int = CONTEXT,
) -> Path:
    """Teach a two-layer model the verdict on each kind of reply: a few seconds."""
    save_tokenizer(folder, template, verdicts)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    config = ModelConfig.from_dict(
        {
            "model_type": model_type,
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": context,
            "tie_word_embeddings": True,
        }
    )
    guard = Decoder(config)
    torch.nn.init.normal_(guard.lm_head.weight, std=0.05)
    inputs, labels = training_batch(tokenizer, verdicts)
    optimizer = torch.optim.AdamW(guard.parameters(), lr=3e-3)
    for _ in range(120):
        chosen = torch.randint(len(inputs), (20,))
        hidden, target = guard(inputs[chosen])[:, :-1], labels[chosen][:, 1:]
        loss = F.cross_entropy(guard.logits(hidden[target != -100]), target[target != -100])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.03, f"the toy guard did not learn its format: loss {loss:.3f}"
    save_model(guard, folder)
    return folder


def training_batch(
    tokenizer: LlamaTokenizer, verdicts: dict[str, str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels of every thing and kind, padded; -100 where nothing is learned."""
    inputs, labels = [], []
    for thing in THINGS:
        for kind, verdict in verdicts.items():
            prompt = tokenizer.encode_chat(chat(thing, kind))
            answer = [*tokenizer.encode(verdict), *tokenizer.stop_ids]
            inputs.append(torch.tensor(prompt + answer))
            labels.append(torch.tensor([-100] * len(prompt) + answer))
    pad = torch.nn.utils.rnn.pad_sequence
    padded = pad(inputs, batch_first=True)
    return padded, pad(labels, batch_first=True, padding_value=-100)
