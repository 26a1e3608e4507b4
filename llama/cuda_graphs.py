"""Decoding steps of static shapes, captured as CUDA graphs: one launch in place of thousands.

All graphs of a cache share one stream and one memory pool, which is safe because each step's logits
are read before the next step begins. On other devices the same code runs without a graph, which is
slower than the engine's own step; the tests do that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama.cache import KVCache, Segment
from llama.cached_attention import StaticStepAttention
from llama.model import Decoder

DEVICES = ("cuda",)  # device types whose plain decoding steps the engine takes from here
BUCKET = 256  # keys attended to are rounded up to a multiple of this: one graph for each


class CaptureError(RuntimeError):
    """This device or driver does not capture the decoding step as a graph."""


@dataclass(frozen=True)
class CapturedStep:
    """A captured step and the buffer its logits are written to, [slots, V]."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor


class DecodingGraphs:
    """Next-token logits of the sequences in the slots of `cache`, of which each adds one token.

    A graph computes all slots, empty ones for nothing: what those store goes to the slot's last
    place, which only refused drafts reach.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        # Each slot's token, and the place in the slot where it belongs.
        self.inputs = torch.zeros(2, cache.slots, dtype=torch.int64, device=model.device)
        self.captured: dict[int, CapturedStep] = {}  # by the number of keys attended to
        self.stream: torch.cuda.Stream | None = None  # both made at the first capture
        self.pool: Any = None

    def logits(self, segments: Sequence[Segment], token_ids: Sequence[int]) -> Tensor:
        """Logits [len(segments), V] of segments of one token each. CaptureError if unsupported."""
        input_ids = [0] * self.cache.slots
        offsets = [self.cache.capacity - 1] * self.cache.slots
        for segment, token_id in zip(segments, token_ids, strict=True):
            input_ids[segment.slot], offsets[segment.slot] = token_id, segment.start
        slots = [segment.slot for segment in segments]
        self.inputs.copy_(torch.tensor([input_ids, offsets]))
        needed = max(offsets[slot] for slot in slots) + 1
        rounded_up = -(-needed // BUCKET) * BUCKET
        longest = min(self.cache.capacity, rounded_up)
        logits = self._run(longest)
        if slots == list(range(len(slots))):  # a view needs no copy of the slots' numbers
            return logits[: len(slots)]
        return logits[slots]

    def _run(self, longest: int) -> Tensor:
        """Logits [slots, V] of what the buffers hold, of steps that attend to `longest` keys."""
        if self.model.device.type != "cuda":
            return self._compute(longest)
        with torch.cuda.device(self.model.device):
            if longest not in self.captured:
                self.captured[longest] = self._capture_or_refuse(longest)
            step = self.captured[longest]
            step.graph.replay()
        return step.logits

    def _compute(self, longest: int) -> Tensor:
        input_ids, offsets = self.inputs
        attention = StaticStepAttention(self.cache, offsets, longest)
        hidden = self.model(input_ids[None], attention.positions[None], attention.attend)
        return self.model.logits(hidden[0])

    def _capture_or_refuse(self, longest: int) -> CapturedStep:
        """`_capture`, whose failure is a CaptureError unless memory is what it lacks."""
        try:
            return self._capture(longest)
        except torch.OutOfMemoryError:
            raise  # fewer sequences may fit
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        raise CaptureError(reason)

    def _capture(self, longest: int) -> CapturedStep:
        """Capture the step on the current device, which must be the model's."""
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self._compute(longest)  # libraries set up in the first call: no graph captures that
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            logits = self._compute(longest)
        return CapturedStep(graph, logits)
