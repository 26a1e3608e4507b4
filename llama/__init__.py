"""A hand-written decoder for Llama, Mistral, Qwen2, Qwen3 and SmolLM3, and what it needs to run.

Names are imported when they are first used: `import llama.errors` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama.config import ModelConfig
    from llama.decoding import generate
    from llama.errors import UserError
    from llama.model import Decoder
    from llama.sequence import Output
    from llama.tokenizer import Tokenizer, load_tokenizer
    from llama.weights import load_model, save_model

_MODULES = {
    "Decoder": "model",
    "ModelConfig": "config",
    "Output": "sequence",
    "Tokenizer": "tokenizer",
    "UserError": "errors",
    "generate": "decoding",
    "load_model": "weights",
    "load_tokenizer": "tokenizer",
    "save_model": "weights",
}

__all__ = [
    "Decoder",
    "ModelConfig",
    "Output",
    "Tokenizer",
    "UserError",
    "generate",
    "load_model",
    "load_tokenizer",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
