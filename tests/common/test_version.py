"""Summaries, the page and the model card name the version, and in a checkout the commit."""

import shutil
import subprocess

import pytest
import torch

from common import __version__, runs, version
from common.version import checkout_commit, code_version, describe_version
from reporting.model_card import Source, model_card

NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def fresh():
    """Each test asks git anew."""
    code_version.cache_clear()
    yield
    code_version.cache_clear()


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit."""

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "v1", "-m", "a tag is no commit")
    return tmp_path, git("rev-parse", "HEAD")


@NEEDS_GIT
def test_the_commit_of_a_checkout_and_whether_it_was_changed(checkout, monkeypatch):
    folder, commit = checkout
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as within a git hook
    assert checkout_commit(folder) == commit[:12]
    (folder / "inner" / "file").write_text("two")
    assert checkout_commit(folder) == commit[:12] + "-dirty"


@NEEDS_GIT
def test_a_package_inside_a_repository_of_other_things_has_no_commit(checkout):
    folder, _ = checkout
    assert checkout_commit(folder / "inner") is None


@NEEDS_GIT
def test_summaries_and_the_card_name_version_and_commit(checkout, monkeypatch):
    folder, commit = checkout
    monkeypatch.setattr(version, "ROOT", folder)
    environment = runs.environment(torch.device("cpu"))
    assert environment["unforget"] == __version__ and environment["commit"] == commit[:12]
    card = model_card(Source("m", None, "f", None, 1.0, "float32", "checked"), "title")
    assert f"Made with Unforget {__version__} (commit {commit[:12]})." in card


def test_without_git_the_version_stands_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == {"unforget": __version__}
    assert describe_version() == f"Unforget {__version__}"
    assert "commit" not in runs.environment(torch.device("cpu"))
