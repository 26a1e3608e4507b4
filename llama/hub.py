"""Turn what a user writes after `--model` (local folder, Hub id or alias) into a local checkpoint
folder.
"""

import os
import re
from pathlib import Path

from llama.errors import UserError
from llama.smollm2 import make_checkpoint

ALIAS = "smollm2"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TOKENIZER_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
]
WEIGHT_FILES = [
    "model*.safetensors",
    "model.safetensors.index.json",
]  # no pickles, not Llama's second copy in original/
LOGIN = "log in (`hf auth login`, before huggingface_hub 0.34 `huggingface-cli login`) or put a token into HF_TOKEN"
MIRROR = "a copy from a mirror such as ModelScope works too: download it and give the folder's path"


def resolve(ref: str | Path, allow_weights: bool = True) -> Path:
    """The checkpoint folder `ref` names: an existing folder, the alias `smollm2`, or a Hub id
    (`owner/name`).

    What is missing is downloaded once, without weights if `allow_weights` is false; what is cached
    needs no network. Raises UserError in one line if there is no such folder or repository, access
    to it is gated, or no network.
    """
    name = str(ref)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if name and folder.exists():
        raise UserError(
            f"{name}: no such folder, this is a file; give the checkpoint folder it lies in"
        )
    if name == ALIAS:
        return smollm2_folder()
    if isinstance(ref, str) and HUB_ID.fullmatch(name):
        return download(name, TOKENIZER_FILES + WEIGHT_FILES if allow_weights else TOKENIZER_FILES)
    raise UserError(
        f"{name!r}: no such folder, and neither a Hub id (owner/name) nor the alias {ALIAS}"
    )


def cache_folder() -> Path:
    """Where this project keeps what it made or downloaded: `$UNFORGET_CACHE`, else
    `~/.cache/unforget`.
    """
    return Path(os.environ.get("UNFORGET_CACHE") or "~/.cache/unforget").expanduser()


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as an ordinary checkpoint folder, made by the first call."""
    folder = cache_folder() / "smollm2-135m-instruct"
    if not folder.is_dir():
        make_checkpoint(folder)
    return folder


def download(repo_id: str, patterns: list[str]) -> Path:
    """The Hub repository's files that match `patterns`, in huggingface_hub's cache. Raises
    UserError in one line.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(
            f"{repo_id}: gated on the Hub; ask for access at https://huggingface.co/{repo_id}, then {LOGIN}; {MIRROR}"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{repo_id}: no such folder and no such repository on the Hub; if it is private, {LOGIN}; {MIRROR}"
        ) from None
    except (
        Exception
    ) as error:  # the transport's own errors, which are requests', httpx's or httpx2's by release
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{repo_id}: no such folder, and the Hub cannot be reached for it ({reason}); {MIRROR}"
        ) from error
