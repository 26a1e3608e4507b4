"""The scheduler copies and waits as comparing every pair would, and needs few calls a row."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llama import cuda_graphs, engine, generate, load_model, scheduler
from llama.generation_config import DecodingStats
from llama.scheduler import WORTH_COPYING, Scheduler
from llama.sequence import Sequence, shared_length


def make_sequence(index: int, tokens: list[int], cached: int = 0) -> Sequence:
    made = Sequence(index, tokens, len(tokens), 9, np.random.default_rng(0))
    made.num_cached_tokens = cached
    return made


def plain_length(slot, running, stored, copies) -> int:
    """The rule by comparing a prompt with all slots and all others in flight."""
    sequence = running[slot]
    if sequence.num_uncached_tokens == 1:
        return 1
    tokens, most = sequence.tokens, len(sequence.tokens) - 1
    best, donor = sequence.num_cached_tokens + WORTH_COPYING - 1, None
    for other, holder in enumerate(stored):
        if holder is not None and holder is not sequence:
            common = shared_length(tokens, holder.tokens, min(holder.num_cached_tokens, most))
            if common > best:
                best, donor = common, other
    for earlier in running:
        is_prefilled = earlier.num_uncached_tokens > 1 and earlier.index < sequence.index
        if is_prefilled and shared_length(tokens, earlier.tokens, most) > best:
            return 0
    if donor is not None:
        if donor != slot:
            copies.append((donor, slot, best))
        sequence.num_cached_tokens, stored[slot] = best, sequence
    return sequence.num_uncached_tokens


def random_state(seed: int) -> tuple[list[Sequence], list[Sequence | None]]:
    """Sequences that share beginnings of many lengths, some done in part, over what slots hold."""
    numbers = random.Random(seed)
    texts = [[numbers.randrange(3) for _ in range(80)] for _ in range(3)]

    def tokens() -> list[int]:
        shared = numbers.choice(texts)[: numbers.randrange(80)]
        return [*shared, *(numbers.randrange(3) for _ in range(numbers.randrange(1, 30)))]

    running, stored = [], []
    for slot in range(numbers.randrange(1, 14)):
        own = tokens()
        sequence = make_sequence(numbers.randrange(100) * 20 + slot, own)
        holder = None
        kind = numbers.randrange(3)
        if kind == 1:  # another sequence was here before
            holder = make_sequence(-1, tokens())
            holder.num_cached_tokens = numbers.randrange(len(holder.tokens))
        elif kind == 2:
            holder, sequence.num_cached_tokens = sequence, numbers.randrange(len(own))
        running.append(sequence)
        stored.append(holder)
    return running, stored


def test_prompts_copy_and_wait_as_comparing_all_of_them_would():
    copied = waited = 0
    for seed in range(300):
        running, stored = random_state(seed)
        expected_copies = []
        expected = [plain_length(i, running, stored, expected_copies) for i in range(len(running))]
        owners = [holder and holder.index for holder in stored]

        running, stored = random_state(seed)
        copies = []
        cache = SimpleNamespace(copy=lambda *about, copies=copies: copies.append(about))
        made = Scheduler([], False, DecodingStats())
        assert made._lengths(running, stored, cache) == expected
        assert copies == expected_copies
        assert [holder and holder.index for holder in stored] == owners
        copied += len(copies)
        waited += expected.count(0)
    assert copied > 100 and waited > 100, "both happened"


@pytest.mark.parametrize("drafting", [False, True])
def test_the_usual_step_is_what_the_general_one_would_be(drafting, monkeypatch):
    def steps(sequences):
        stats = DecodingStats()
        made = Scheduler([1, 2, 3], drafting, stats)
        stored = [None] * 9
        cache = SimpleNamespace(copy=lambda *_: None)
        return made.schedule(sequences, stored, cache), stored[:8], stats

    def sequences():
        own = [[5, i, 7] for i in range(8)]
        return [make_sequence(i, tokens, len(tokens) - 1) for i, tokens in enumerate(own)]

    usual, stored, stats = steps(sequences())
    general = scheduler.StepInput()
    expected_stats = DecodingStats()
    made = Scheduler([1, 2, 3], drafting, expected_stats)
    for slot, sequence in enumerate(sequences()):
        made._add_segment(general, slot, sequence, 1, [])
    assert usual.segments == general.segments and usual.token_ids == general.token_ids
    assert usual.logits_positions == general.logits_positions == list(range(8))
    assert [request.sequence.index for request in usual.requests] == list(range(8))
    assert [request.draft for request in usual.requests] == [[]] * 8
    assert stats == expected_stats and stats.prefill_tokens == 8
    assert [sequence.num_uncached_tokens for sequence in stored] == [0] * 8
    assert usual.is_plain_decoding


def count_calls(model, rows: int, monkeypatch) -> float:
    """Calls of functions, Python's and C's, of a decoding step with `rows` sequences; a median."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, model.config.vocab_size, generator=generator)
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(cuda_graphs.DecodingGraphs, "_run", lambda self, longest: logits)
    calls, counts = [0], []

    def count(frame, event, argument):
        calls[0] += event in ("call", "c_call")

    real = engine.Engine._admit

    def admit(self, on_finish):  # a round of the engine's loop begins
        counts.append(calls[0])
        calls[0] = 0
        return real(self, on_finish)

    monkeypatch.setattr(engine.Engine, "_admit", admit)
    prompts = [[7] * 40 + [20 + i % 100, i % 150] for i in range(rows)]
    sys.setprofile(count)
    try:
        generate(model, prompts, 12, batch_size=rows)
    finally:
        sys.setprofile(None)
    return sorted(counts)[len(counts) // 2]


def test_a_decoding_step_takes_few_calls_for_each_row(tiny_checkpoint, monkeypatch):
    """Guards the Python time of a step (1 ms at 256 rows): no pairs of rows, little for each."""
    model = load_model(tiny_checkpoint("llama"))
    few, many = (count_calls(model, rows, monkeypatch) for rows in (64, 256))
    assert (many - few) / 192 < 32


def test_passes_over_prompts_shrink_where_memory_does_not_suffice():
    made = Scheduler([], False, DecodingStats())
    sizes = []
    for _ in range(6):
        sequences = [make_sequence(0, list(range(9000)))]
        step = made.schedule(sequences, [None], SimpleNamespace(), prefill_apart=True)
        sizes.append(len(step.token_ids))
        made.halve_prefill()
    assert sizes == [8192, 4096, 2048, 1024, 512, 512]
