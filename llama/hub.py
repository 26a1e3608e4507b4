"""Resolve the model reference a user gives (folder, GGUF file, Hub id or alias) to a local path."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from llama.errors import UserError
from llama.gguf import is_gguf
from llama.smollm2 import make_checkpoint

ALIAS = "smollm2"
ALIAS_PUBLISHED_AS = "HuggingFaceTB/SmolLM2-135M-Instruct"
KNOWN_MODELS = (
    ALIAS,
    ALIAS_PUBLISHED_AS,
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-Guard-3-1B",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3Guard-Gen-0.6B",
    "Qwen/Qwen3-Embedding-0.6B",
)
OLLAMA_NAME = re.compile(r"([\w.-]+/)*[\w.-]+:[\w.-]+")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TOKENIZER_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]
# No pickles, and not the second copy of the weights that Llama's repositories hold in original/.
WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]
LOGIN = (
    "log in (`hf auth login`, before huggingface_hub 0.34 `huggingface-cli login`) or put a token "
    "into HF_TOKEN"
)
MIRROR = "a copy from a mirror such as ModelScope works too: download it and give the folder's path"


def resolve(ref: str | Path, allow_weights: bool = True) -> Path:
    """Return the checkpoint folder or GGUF file of `ref`: an existing path, the alias `smollm2` or
    a Hub id (`owner/name`).

    Missing files are downloaded once, weights only if `allow_weights`; cached files need no
    network. Raises UserError if there is no such path or repository, access to it is gated, or the
    network fails.
    """
    name = str(ref)
    path = Path(name).expanduser()
    if name and (path.is_dir() or is_gguf(path)):
        return path
    if name and path.exists():
        raise UserError(
            f"{name}: no such folder, this is a file; give the checkpoint folder it lies in, or a "
            "GGUF file"
        )
    if name == ALIAS:
        return smollm2_folder()
    _refuse_other_names(name)
    if isinstance(ref, str) and HUB_ID.fullmatch(name):
        return download(name, TOKENIZER_FILES + WEIGHT_FILES if allow_weights else TOKENIZER_FILES)
    raise UserError(
        f"{name!r}: no such folder, and neither a Hub id (owner/name) nor the alias {ALIAS}"
        + _did_you_mean(name)
    )


def _refuse_other_names(name: str) -> None:
    """Say what to give instead of a missing GGUF file, a Hub repository of GGUF files, or a name
    of Ollama's.
    """
    if name.lower().endswith(".gguf"):
        raise UserError(
            f"{name}: no such GGUF file; one from the Hub is downloaded with "
            "`hf download owner/name file.gguf --local-dir .`"
        )
    if HUB_ID.fullmatch(name) and name.lower().endswith("-gguf"):
        raise UserError(
            f"{name}: a Hub repository of GGUF files; download one with "
            f"`hf download {name} FILE.gguf --local-dir .` and give its path"
        )
    if OLLAMA_NAME.fullmatch(name):
        raise UserError(
            f"{name!r}: no such folder; if this is a name of Ollama's, "
            f"`ollama show --modelfile {name}` prints after FROM the path of its GGUF file: give "
            f"that, or a Hub id (owner/name){_did_you_mean(name.split(':')[0])}"
        )


def _did_you_mean(name: str) -> str:
    """Return a hint at the known model whose name, without its owner, is the nearest."""
    known = {model_id.split("/")[-1].lower(): model_id for model_id in KNOWN_MODELS}
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {known[close[0]]}?" if close else ""


def name_for_others(ref: str | Path) -> str:
    """Return how other tools find the model `ref`: the Hub id, also of the alias, else the path.

    The alias's weights are dequantised ones of 4 bits, so they differ a little from the published
    ones.
    """
    name = str(ref)
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    return ALIAS_PUBLISHED_AS if name == ALIAS else name


def cache_folder() -> Path:
    """Return this project's cache folder: `$UNFORGET_CACHE`, else `~/.cache/unforget`."""
    return Path(os.environ.get("UNFORGET_CACHE") or "~/.cache/unforget").expanduser()


def smollm2_folder() -> Path:
    """Return the checkpoint folder of SmolLM2-135M-Instruct; the first call makes it."""
    folder = cache_folder() / "smollm2-135m-instruct"
    if not folder.is_dir():
        make_checkpoint(folder)
    return folder


def download(repo_id: str, patterns: list[str]) -> Path:
    """Download the files of a Hub repository that match `patterns` into huggingface_hub's cache.

    Returns the folder. Raises UserError for a gated or unknown repository and for every failure
    of the network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(
            f"{repo_id}: gated on the Hub; ask for access at https://huggingface.co/{repo_id}, "
            f"then {LOGIN}; {MIRROR}"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{repo_id}: no such folder and no such repository on the Hub; if it is private, "
            f"{LOGIN}; {MIRROR}"
        ) from None
    # The transport's own errors are those of requests, httpx or httpx2, depending on the release.
    except Exception as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines and lines[0] else type(error).__name__
        raise UserError(
            f"{repo_id}: no such folder, and the Hub cannot be reached for it ({reason}); {MIRROR}"
        ) from error
