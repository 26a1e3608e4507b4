"""The version of Unforget that runs: its number and, in a checkout, the git commit.

Loads no torch.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

from common import __version__

ROOT = Path(__file__).resolve().parents[1]
GIT_SECONDS = 10  # on a slow network file system; locally it takes milliseconds


@cache
def code_version() -> dict[str, str]:
    """The version for summaries: `unforget`, and `commit` where the code is a checkout.

    The commit ends in "-dirty" if files have been changed since. Without git, and for a package
    that was installed by pip, the number stands alone.
    """
    commit = checkout_commit(ROOT)
    return {"unforget": __version__, **({"commit": commit} if commit else {})}


def describe_version() -> str:
    """The version in words: "Unforget 0.2.0 (commit 0123456789ab)"."""
    version = code_version()
    commit = version.get("commit")
    number = f"Unforget {version['unforget']}"
    return f"{number} (commit {commit})" if commit else number


def checkout_commit(folder: Path) -> str | None:
    """The commit of the git checkout whose root is `folder`; None if it is not the root of one.

    An installed package may lie inside a repository of other things, whose commit says nothing.
    """
    if _git(folder, "rev-parse", "--show-prefix") != "":
        return None
    return _git(folder, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")


def _git(folder: Path, *words: str) -> str | None:
    """The output of a git command; None if it fails, or there is no git."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # looking at a checkout must not write to it
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
