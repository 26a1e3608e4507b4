"""The ways to attend on a CPU: each computes what plain products do."""

import pytest
import torch

from llama import cached_attention
from llama.attention import attention_with_log_sum, gathered_attention
from llama.cache import KVCache, Segment
from llama.cached_attention import StepAttention
from llama.config import ModelConfig
from llama.onednn_attention import has_product_attention, product_attention

LAYER = 1
CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=8,
    hidden_size=48,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_products_in_blocks_equal_one_softmax(monkeypatch):
    monkeypatch.setattr("llama.onednn_attention.SCORES_IN_CACHE", 100)  # 2 of 33 queries
    torch.manual_seed(0)
    queries = torch.randn(1, 2, 33, 8) * 20  # scores whose exponentials would overflow
    keys, values = torch.randn(2, 1, 2, 60, 8)[:, :, :, :47].unbind()
    expected = attention_with_log_sum(queries, keys, values)
    assert has_product_attention()
    torch.testing.assert_close(product_attention(queries, keys, values), expected)


@pytest.mark.parametrize("width", [1, 2])
def test_values_read_by_their_places_equal_products(width, monkeypatch):
    """Slots of different lengths, among them an unused one whose numbers must not be seen."""
    cache = KVCache(CONFIG, slots=5, capacity=20, prefix_length=3)
    torch.manual_seed(0)
    for tensor in (cache.keys, cache.values, cache.prefix_keys, cache.prefix_values):
        tensor.normal_()
    starts = {0: 4, 1: 11, 2: 0, 4: 7}
    segments = [Segment(slot, start, width) for slot, start in starts.items()]
    num_tokens = len(segments) * width
    inputs = [torch.randn(1, num_tokens, heads, 8) for heads in (6, 2, 2)]
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return gathered_attention(*arguments)

    monkeypatch.setattr(cached_attention, "gathered_attention", counted)
    found = StepAttention(cache, segments).attend(LAYER, *inputs)
    assert len(calls) == 2, "slots 0 to 2, and slot 4"
    monkeypatch.setattr(cached_attention, "FEW_QUERIES", 0)
    expected = StepAttention(cache, segments).attend(LAYER, *inputs)
    assert len(calls) == 2
    torch.testing.assert_close(found, expected)
