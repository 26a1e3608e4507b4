"""The official data sets, pinned by SHA-256: from a local mirror, else the cache, else downloaded
once.
"""

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

_OTHER_WAY = "set UNFORGET_DATA to a folder that holds the data (gsm8k/train.jsonl, ...)"


@dataclass(frozen=True)
class OfficialFile:
    """A file as published: `name` is its path in a local mirror, `sha256` that of its content."""

    name: str
    url: str
    sha256: str


def dataset_file(official: OfficialFile) -> Path:
    """Return a verified local copy of an official file.

    If UNFORGET_DATA is set, the file must lie in that folder. Otherwise it is taken from the cache
    (UNFORGET_CACHE, or ~/.cache/unforget), where it is downloaded to first if need be. UserError if
    it is missing from the mirror, cannot be downloaded, or differs from the published file.
    """
    name, url, digest = official.name, official.url, official.sha256
    mirror = os.environ.get("UNFORGET_DATA")
    if mirror:
        path = Path(mirror).expanduser() / name
        remedy = f"put {url} there, or unset UNFORGET_DATA to download it"
        if not path.is_file():
            raise UserError(f"{path}: no such file; {remedy}")
        _verify(path.read_bytes(), digest, str(path), remedy)
        return path
    path = Path(os.environ.get("UNFORGET_CACHE") or "~/.cache/unforget").expanduser() / name
    if path.is_file():
        _verify(
            path.read_bytes(), digest, str(path), f"delete it to download it again, or {_OTHER_WAY}"
        )
    else:
        content = _download(url, name)
        _verify(content, digest, url, _OTHER_WAY)
        _replace(path, content)
    return path


def is_official(path: str | Path, official: OfficialFile) -> bool:
    """Tell if `path` is a copy of the official file."""
    path = Path(path)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == official.sha256


def _verify(content: bytes, digest: str, name: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UserError(f"{name}: SHA-256 is {found}, the published file has {digest}; {remedy}")


def _download(url: str, name: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise UserError(f"{name}: cannot download {url} ({error}); {_OTHER_WAY}") from None


def _replace(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that neither a crash nor a second process leaves a part of
    it there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
