import hashlib
import os
from pathlib import Path

import pytest

from data import sources
from data.registry import TASKS
from data.sources import OfficialFile, dataset_file

NAME = "gsm8k/test.jsonl"
CONTENT = b'{"question": "1+1?", "answer": "#### 2"}\n'
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The published file, behind a file:// URL; the cache is an empty folder and there is no
    mirror.
    """
    path = tmp_path / "published.jsonl"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNFORGET_DATA", raising=False)
    return OfficialFile(NAME, path.as_uri(), DIGEST)


def local(official):
    return Path(official.url.removeprefix("file://"))


def put(folder, content):
    path = folder / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_copy_of_a_published_file_is_known_under_any_name(published, tmp_path):
    path = local(published)
    assert sources.is_official(path, published)
    assert not sources.is_official(tmp_path / "nowhere", published)
    path.write_bytes(CONTENT + b"\n")
    assert not sources.is_official(path, published)


def test_downloads_once_into_the_cache(published, tmp_path):
    path = dataset_file(published)
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    local(published).unlink()
    assert dataset_file(published) == path


def test_the_mirror_comes_first(published, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_DATA", str(tmp_path / "mirror"))
    path = put(tmp_path / "mirror", CONTENT)
    put(tmp_path / "cache", b"never read")
    assert dataset_file(published) == path


def test_an_empty_mirror_variable_is_no_mirror(published, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_DATA", "")
    assert dataset_file(published) == tmp_path / "cache" / NAME


def test_a_file_missing_from_the_mirror_is_not_downloaded(published, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_DATA", str(tmp_path / "mirror"))
    with pytest.raises(ValueError, match=r"mirror.*no such file.*UNFORGET_DATA"):
        dataset_file(published)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["mirror", "cache"])
def test_a_changed_file_is_refused_with_both_hashes(published, tmp_path, monkeypatch, place):
    path = put(tmp_path / place, b"changed")
    if place == "mirror":
        monkeypatch.setenv("UNFORGET_DATA", str(tmp_path / place))
    with pytest.raises(ValueError) as error:
        dataset_file(published)
    for part in (str(path), DIGEST, hashlib.sha256(b"changed").hexdigest(), "UNFORGET_DATA"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_download_is_not_kept(published, tmp_path):
    local(published).write_bytes(b"changed")
    with pytest.raises(
        ValueError, match=rf"{published.url}: SHA-256 is .* has {DIGEST}.*UNFORGET_DATA"
    ):
        dataset_file(published)
    assert not list((tmp_path / "cache").rglob("*.jsonl*"))


def test_no_network_is_one_line_that_says_what_to_do(published, tmp_path):
    local(published).unlink()
    with pytest.raises(ValueError, match=rf"^{NAME}: cannot download file:.*UNFORGET_DATA[^\n]*$"):
        dataset_file(published)


def test_a_crash_while_writing_leaves_nothing(published, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(sources.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        dataset_file(published)
    assert list((tmp_path / "cache" / "gsm8k").iterdir()) == []


@pytest.mark.skipif(
    not os.environ.get("UNFORGET_DATA"), reason="UNFORGET_DATA does not name the official data"
)
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_pins_are_those_of_the_official_files(task):
    for official in task.official.values():
        assert dataset_file(official).is_file()
