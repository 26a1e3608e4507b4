"""Static-shape steps give the engine's own tokens; on a CPU they run without a graph."""

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from llama import cuda_graphs, generate, load_model, notices, scheduler
from llama.cache import Segment
from llama.cached_attention import PromptAttention, StepAttention

STOP_IDS = frozenset(range(3, 60, 7))


@pytest.fixture(params=["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param))


def ragged_prompts(prefix: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(prefix)
    shared = torch.randint(12, 199, (prefix,), generator=generator).tolist()
    return [
        shared + torch.randint(12, 199, (n,), generator=generator).tolist()
        for n in (5, 2, 23, 1, 9, 30, 14)
    ]


@pytest.mark.parametrize("prefix", [0, 17])
def test_static_steps_choose_the_same_tokens(model, prefix, monkeypatch):
    monkeypatch.setattr(
        scheduler, "VERIFIED_TOKENS", 0
    )  # drafts are verified by the other kind of step
    prompts = ragged_prompts(prefix)
    expected = {
        batch_size: generate(model, prompts, 40, STOP_IDS, batch_size) for batch_size in (1, 3, 16)
    }
    attended, real = set(), cuda_graphs.DecodingGraphs._compute
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(cuda_graphs, "BUCKET", 16)

    def note(self, longest):
        attended.add(longest)
        return real(self, longest)

    monkeypatch.setattr(cuda_graphs.DecodingGraphs, "_compute", note)
    for batch_size, outputs in expected.items():
        assert generate(model, prompts, 40, STOP_IDS, batch_size) == outputs
    assert len(attended) >= 3, "several buckets, as sequences grew longer"


def test_constraints_drafts_and_copied_slots_go_along_with_static_steps(model, monkeypatch):
    def allowed(new: list[int]) -> list[int] | None:
        return None if len(new) % 3 else [20 + len(new)]

    prompts = ragged_prompts(17) + ragged_prompts(18)
    drafted, guided = (
        generate(model, prompts, 40, STOP_IDS, 6),
        generate(model, prompts, 12, STOP_IDS, 6, allowed_tokens_fn=allowed),
    )
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    assert generate(model, prompts, 40, STOP_IDS, 6) == drafted
    assert generate(model, prompts, 12, STOP_IDS, 6, allowed_tokens_fn=allowed) == guided


@pytest.mark.parametrize("prefix", [0, 17])
def test_prompts_from_their_first_token_on_are_read_as_before(model, prefix, monkeypatch):
    """Guards the kernels for whole prompts, and that what continues a copied slot keeps its way."""
    prompts = ragged_prompts(prefix)
    prompts += [[*prompts[5][:-3], 60, 61, 62], *ragged_prompts(prefix)]
    expected = generate(model, prompts, 30, STOP_IDS, 5)
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(PromptAttention, "DEVICES", ("cpu", "cuda"))
    kinds = Counter()
    real = StepAttention._locate

    def note(self, cache, segments):
        kinds[type(self), all(segment.start == 0 for segment in segments)] += 1
        real(self, cache, segments)

    monkeypatch.setattr(StepAttention, "_locate", note)
    assert generate(model, prompts, 30, STOP_IDS, 5) == expected
    assert kinds[PromptAttention, True] and kinds[StepAttention, False]
    assert set(kinds) == {(PromptAttention, True), (StepAttention, False)}


def test_a_pass_of_its_own_reads_whole_prompts(model, monkeypatch):
    """Guards prompts from being cut where the pass is full: only one longer than a pass is."""
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(scheduler, "PREFILL_PASS", 32)
    passes = []
    real = scheduler.Scheduler.schedule

    def note(self, *arguments):
        step = real(self, *arguments)
        passes.append([segment.length for segment in step.segments])
        return step

    monkeypatch.setattr(scheduler.Scheduler, "schedule", note)
    prompts = [
        [n, *range(10, 10 + length - 1)] for n, length in enumerate((20, 9, 11, 12), start=1)
    ]
    generate(model, prompts, 2, frozenset(), 4)
    assert passes[:2] == [[20, 9], [11, 12]]


def test_no_step_drafts_where_graphs_run_the_plain_ones(model, monkeypatch):
    """Guards against a draft in one row that makes the step of all rows eager."""
    asked = []

    def note(self, running):
        asked.append(len(running))
        return {}

    monkeypatch.setattr(scheduler.Scheduler, "_draft_tokens", note)
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    generate(model, ragged_prompts(0), 3)
    assert not asked
    generate(model, ragged_prompts(0), 3, graphs=False)
    assert asked


class FakeCUDA:
    """The calls of torch.cuda that a capture makes, noted; `current` is the current device."""

    def __init__(self, monkeypatch) -> None:
        self.current = torch.device("cuda", 0)
        self.captures: list[tuple[torch.device, object, object]] = []  # device, pool and stream
        self.replays: list[torch.device] = []
        stream = SimpleNamespace(wait_stream=lambda other: None)
        calls = {
            "device": self.device,
            "stream": self.on_stream,
            "graph": self.capture,
            "current_stream": lambda: stream,
            "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
            "graph_pool_handle": object,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.replays.append(self.current)),
        }
        for name, call in calls.items():
            monkeypatch.setattr(torch.cuda, name, call)

    @contextmanager
    def device(self, device):
        before, self.current = self.current, device
        yield
        self.current = before

    @contextmanager
    def on_stream(self, stream):
        yield

    @contextmanager
    def capture(self, graph, pool, stream):
        self.captures.append((self.current, pool, stream))
        yield


@pytest.fixture
def graphs(monkeypatch):
    """Graphs of two slots whose model lies on the second device; the first is the current one."""
    device = torch.device("cuda", 1)
    cache = SimpleNamespace(slots=2, capacity=1000)
    model = SimpleNamespace(device=torch.device("cpu"))  # where the test's buffers are
    made = cuda_graphs.DecodingGraphs(model, cache)
    model.device = device
    computed = torch.arange(6.0).view(2, 3)
    monkeypatch.setattr(cuda_graphs.DecodingGraphs, "_compute", lambda self, longest: computed)
    return made


def test_graphs_are_captured_and_replayed_on_the_models_device(graphs, monkeypatch):
    """Guards against empty graphs of the current device, which replay stale logits."""
    cuda = FakeCUDA(monkeypatch)
    for start in (3, 5, 300, 4):
        logits = graphs.logits([Segment(1, start, 1)], [7])
        assert logits.tolist() == [[3, 4, 5]]
    assert [device.index for device, _, _ in cuda.captures] == [1, 1], "a capture for each bucket"
    assert [device.index for device in cuda.replays] == [1, 1, 1, 1]
    assert cuda.current.index == 0
    _, pools, streams = zip(*cuda.captures, strict=True)
    assert len(set(pools)) == len(set(map(id, streams))) == 1, "all share one pool and one stream"


@pytest.mark.parametrize("call", ["Stream", "graph_pool_handle", "CUDAGraph", "graph"])
def test_whatever_fails_in_a_capture_is_a_capture_error(graphs, monkeypatch, call):
    FakeCUDA(monkeypatch)

    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(torch.cuda, call, refuse)
    with pytest.raises(cuda_graphs.CaptureError, match=r"^operation not permitted.*capturing$"):
        graphs.logits([Segment(0, 3, 1)], [7])


def test_a_capture_without_memory_is_out_of_memory(graphs, monkeypatch):
    FakeCUDA(monkeypatch)

    def no_memory(*_):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(cuda_graphs.DecodingGraphs, "_compute", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.logits([Segment(0, 3, 1)], [7])


def test_decoding_goes_on_without_graphs_that_cannot_be_captured(model, monkeypatch, capsys):
    prompts = ragged_prompts(17)
    expected = generate(model, prompts, 20, STOP_IDS, 3)
    tries = []

    def refuse(self, longest):
        tries.append(longest)
        raise cuda_graphs.CaptureError("no capture on this driver")

    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(cuda_graphs.DecodingGraphs, "_run", refuse)
    notices.tell_once.cache_clear()
    assert generate(model, prompts, 20, STOP_IDS, 3) == expected
    assert len(tries) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no capture on this driver" in told
    assert generate(model, prompts, 20, STOP_IDS, 3) == expected
    assert not capsys.readouterr().err, "once"


def test_graphs_can_be_turned_off(model, monkeypatch):
    prompts = ragged_prompts(17)
    expected = generate(model, prompts, 20, STOP_IDS, 3)
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(cuda_graphs, "DecodingGraphs", None)
    with pytest.raises(TypeError):
        generate(model, prompts, 20, STOP_IDS, 3)
    assert generate(model, prompts, 20, STOP_IDS, 3, graphs=False) == expected


def test_prompts_are_read_in_passes_of_their_own(tiny_checkpoint, monkeypatch):
    """Guards the share of graph steps: a finished sequence alone interrupts no decoding."""
    model = load_model(tiny_checkpoint("llama3-scaled"))
    prompts = [prompt for seed in range(12) for prompt in ragged_prompts(seed)]
    settings = {"max_new_tokens": 14, "stop_ids": STOP_IDS, "batch_size": 24}
    monkeypatch.setattr(scheduler, "VERIFIED_TOKENS", 0)
    expected = generate(model, prompts, **settings)
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    steps, real = [], scheduler.Scheduler.schedule

    def note(self, running, *more):
        reading = {each.index for each in running if each and each.num_uncached_tokens > 1}
        free = running.count(None)
        step = real(self, running, *more)
        in_step = {running[segment.slot].index for segment in step.segments}
        steps.append((step.is_plain_decoding, in_step <= reading, free))
        return step

    monkeypatch.setattr(scheduler.Scheduler, "schedule", note)
    assert generate(model, prompts, **settings) == expected
    assert all(decodes or reads for decodes, reads, _ in steps)
    assert any(not decodes for decodes, _, _ in steps)
    waiting = [free for _, _, free in steps if free]
    assert waiting and max(waiting) < 24 // 8, "an eighth of the slots is filled at a time"
