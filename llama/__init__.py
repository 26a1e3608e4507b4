"""A hand-written decoder for Llama and Qwen3 checkpoints, and what it needs to run."""

from llama.config import ModelConfig
from llama.decoding import Output, generate
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model, save_model

__all__ = [
    "Decoder",
    "ModelConfig",
    "Output",
    "Tokenizer",
    "generate",
    "load_model",
    "load_tokenizer",
    "save_model",
]
