"""The official data sets, pinned by SHA-256: from a local mirror, else the cache, else downloaded
once.
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from common.errors import UserError

AILUMINATE = "ailuminate/airr_official_1.0_demo_en_us_prompt_set_release.csv"

_GSM8K_URL = (
    "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
)
_AILUMINATE_URL = "https://raw.githubusercontent.com/mlcommons/ailuminate/main"
_OTHER_WAY = "set UNFORGET_DATA to a folder that holds the data (gsm8k/train.jsonl, ...)"

# name -> (URL, SHA-256 of the file as published)
OFFICIAL_FILES = {
    "gsm8k/train.jsonl": (
        f"{_GSM8K_URL}/train.jsonl",
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    ),
    "gsm8k/test.jsonl": (
        f"{_GSM8K_URL}/test.jsonl",
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    ),
    AILUMINATE: (
        f"{_AILUMINATE_URL}/{AILUMINATE.partition('/')[2]}",
        "63e2b654325c5405096fabf28ef5f057b0ad674904b1839fd1f52b523e324d02",
    ),
}


def dataset_file(name: str) -> Path:
    """Return a verified local copy of the official file `name`, a key of OFFICIAL_FILES.

    If UNFORGET_DATA is set, the file must lie in that folder. Otherwise it is taken from the cache
    (UNFORGET_CACHE, or ~/.cache/unforget), where it is downloaded to first if need be. UserError if
    it is missing from the mirror, cannot be downloaded, or differs from the published file.
    """
    url, digest = OFFICIAL_FILES[name]
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


def is_official(path: str | Path, name: str) -> bool:
    """Whether `path` is a copy of the official file `name`."""
    path = Path(path)
    return (
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == OFFICIAL_FILES[name][1]
    )


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
