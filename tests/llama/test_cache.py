"""The memory of the key/value cache."""

from pathlib import Path

import pytest

from llama.cache import KVCache
from llama.config import ModelConfig

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=8,
    hidden_size=64,
    intermediate_size=8,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=4096,
)
STATUS = Path("/proc/self/smaps_rollup")


def resident_bytes() -> int:
    """Anonymous memory of this process that is in use."""
    for line in STATUS.read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no line on anonymous memory")


@pytest.mark.skipif(not STATUS.exists(), reason="Linux counts memory there")
def test_slots_take_memory_only_as_far_as_they_are_written() -> None:
    cache = KVCache(CONFIG, slots=64, capacity=4096)
    whole = 2 * cache.keys.nbytes  # 0.5 GiB; a huge page would hold four heads of a slot
    before = resident_bytes()
    cache.keys[:, :, :, :32] = 1
    cache.values[:, :, :, :32] = 1
    assert 0 < resident_bytes() - before < whole // 16
    assert cache.keys.sum() == cache.keys[:, :, :, :32].numel()


def test_a_cache_beyond_all_memory_is_out_of_memory() -> None:
    with pytest.raises(MemoryError, match="key/value cache"):
        KVCache(CONFIG, slots=2**20, capacity=2**20)
