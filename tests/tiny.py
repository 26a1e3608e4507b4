"""Tiny random models that tests compare with, saved the way transformers saves them."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers

from data.gsm8k import GSM8K
from llama import Decoder, ModelConfig, save_model
from lora import LoRAConfig, inject_lora, lora_parameters

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VARIANTS = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama3-scaled": (
        "Llama",
        {"tie_word_embeddings": True, "rope_scaling": LLAMA3_SCALING, "rope_theta": 500.0},
    ),
    "llama-biased": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "qwen3": ("Qwen3", {"head_dim": 20, "tie_word_embeddings": True, "rope_theta": 1000.0}),
    "qwen3-untied": (
        "Qwen3",
        {"head_dim": 12, "tie_word_embeddings": False, "attention_bias": True},
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1000.0}),
    "qwen2-untied": ("Qwen2", {"head_dim": 16, "tie_word_embeddings": False}),
    "mistral": (
        "Mistral",
        {"head_dim": 16, "sliding_window": None, "tie_word_embeddings": False},
    ),
    # Layers 0 and 2 rotate their heads, layer 1 does not.
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "rope_theta": 500.0}),
}


def tiny_transformers_model(variant: str, seed: int = 0, **changes) -> torch.nn.Module:
    """A random float32 transformers model whose norms, biases and heads are all far from
    trivial.
    """
    family, settings = VARIANTS[variant]
    settings = {**SIZES, **settings, **changes}
    rope = settings.pop("rope_scaling", None) or {"rope_type": "default"}
    settings["rope_parameters"] = {**rope, "rope_theta": settings.pop("rope_theta", 10000.0)}
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    return model.requires_grad_(False)


def tiny_decoder(variant: str) -> Decoder:
    """Our decoder with the weights of `tiny_transformers_model(variant)`; trainable."""
    theirs = tiny_transformers_model(variant)
    model = Decoder(ModelConfig.from_dict(theirs.config.to_dict()))
    model.load_state_dict(theirs.state_dict(), strict=False)
    return model


def with_random_lora(model: Decoder, config: LoRAConfig, seed: int = 0) -> Decoder:
    """Inject LoRA whose update is not zero, as a trained one's."""
    torch.manual_seed(seed)
    inject_lora(model, config)
    for parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def save_transformers_model(
    model: torch.nn.Module, folder: Path, spelling: int = 5, shards: bool = False
) -> Path:
    """Save as a checkpoint folder whose config spells its rotary settings as transformers 4 or 5
    does.
    """
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    model.save_pretrained(folder, max_shard_size=size // 3 if shards else size * 2)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert "rope_parameters" in config, "transformers changed its spelling: adapt this helper"
    if spelling == 4:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    path.write_text(json.dumps(config))
    return folder


CHAT_TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def save_chat_checkpoint(folder: Path, context: int = 2048) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template: enough to run the
    scripts on.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = GSM8K().load("demo", "train")[:50]
    tokenizer.train_from_iterator(
        [f"{r['question']} {r['answer']}" for r in records] + [CHAT_TEMPLATE], trainer
    )
    config = ModelConfig.from_dict(
        {
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": context,
            "tie_word_embeddings": True,
        }
    )
    torch.manual_seed(0)
    model = Decoder(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder
