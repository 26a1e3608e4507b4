"""Running out of memory halves the sequences in flight, after the old cache is gone."""

import gc
import weakref

import pytest
import torch

from llama import cache, cached_attention, device_memory, engine, generate, load_model
from llama.cache import bytes_per_token
from llama.engine import DecodingStats

PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12, 13], [5, 7], [5, 9, 10, 3, 50]]
LENGTH = 12


@pytest.fixture
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint("qwen3"))


@pytest.fixture
def caches(monkeypatch) -> list[tuple[int, int]]:
    """Of each cache that is made: its slots, and how many caches were alive until then."""
    made: list[tuple[int, int]] = []
    living: list[weakref.ref] = []

    class Watched(cache.KVCache):
        def __init__(self, config, slots, *more):
            made.append((slots, sum(ref() is not None for ref in living)))
            living.append(weakref.ref(self))
            super().__init__(config, slots, *more)

    monkeypatch.setattr(engine, "KVCache", Watched)
    gc.collect()
    gc.disable()  # a cache that only the collector frees is one too many on a full device
    yield made
    gc.enable()


def fail_at(monkeypatch, module, name: str, *failing: int) -> None:
    """Let the function `name` run out of memory in these of its calls."""
    calls, real = [], getattr(module, name)

    def function(*inputs):
        calls.append(1)
        if len(calls) in failing:
            raise torch.OutOfMemoryError("no memory left")
        return real(*inputs)

    monkeypatch.setattr(module, name, function)


def test_the_old_cache_is_gone_before_a_smaller_one_is_made(model, caches, monkeypatch):
    """Guards against a traceback that keeps the frames, and so the cache, of the failed step."""
    expected = generate(model, PROMPTS, LENGTH)
    fail_at(monkeypatch, cached_attention, "gathered_attention", 20, 40)
    stats = DecodingStats()
    assert generate(model, PROMPTS, LENGTH, stats=stats) == expected
    assert caches == [(5, 0), (5, 0), (2, 0), (1, 0)]
    assert stats.new_tokens == sum(len(output.token_ids) for output in expected)


def test_the_first_cache_is_halved_until_it_fits(model, caches, monkeypatch):
    expected = generate(model, PROMPTS, LENGTH)
    caches.clear()
    fail_at(monkeypatch, cache, "_zeros", 1, 3)  # keys of the first, values of the second
    assert generate(model, PROMPTS, LENGTH) == expected
    assert caches == [(5, 0), (2, 0), (1, 0)]


def test_running_out_in_the_common_beginning_is_handled_as_well(model, caches, monkeypatch):
    expected = generate(model, PROMPTS, LENGTH)
    caches.clear()
    fail_at(monkeypatch, engine, "PrefixAttention", 1)
    assert generate(model, PROMPTS, LENGTH) == expected
    assert caches == [(5, 0), (2, 0)]


@pytest.mark.parametrize("name", ["KVCache", "PrefixAttention", "StepAttention"])
def test_a_single_sequence_that_does_not_fit_is_an_error(model, monkeypatch, name):
    fail_at(monkeypatch, engine, name, *range(1, 99))
    with pytest.raises(torch.OutOfMemoryError, match="a single sequence"):
        generate(model, PROMPTS, LENGTH)


def test_the_cache_takes_a_share_of_what_memory_is_free(model, caches, monkeypatch):
    expected = generate(model, PROMPTS, LENGTH)
    longest = max(map(len, PROMPTS)) - 1 + LENGTH + engine.MAX_DRAFT_TOKENS  # one is in common
    slot = longest * bytes_per_token(model.config, torch.float32)
    token = bytes_per_token(model.config, torch.float32)
    for free, slots in ((10 * slot, 5), ((2.2 * slot + token) / 0.8, 2), (0, 1)):
        monkeypatch.setattr(engine, "free_bytes", lambda device, free=free: int(free))
        caches.clear()
        assert generate(model, PROMPTS, LENGTH) == expected
        assert caches == [(slots, 0)]
    monkeypatch.setattr(engine, "free_bytes", lambda device: 10 * slot)
    caches.clear()
    assert generate(model, PROMPTS, LENGTH, cache_bytes=2 * slot) == expected
    assert caches == [(1, 0)], "the bound that was asked for holds too"


def test_free_memory_is_what_the_device_and_the_allocator_have_left(monkeypatch):
    device = torch.device("cuda", 1)
    assert device_memory.free_bytes(torch.device("cpu")) is None
    figures = {"mem_get_info": (500, 16_000), "memory_reserved": 90, "memory_allocated": 60}
    for name, figure in figures.items():
        answers = {device: figure}
        monkeypatch.setattr(torch.cuda, name, answers.__getitem__)
    assert device_memory.free_bytes(device) == 530
