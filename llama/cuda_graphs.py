"""Decoding steps of static shapes, captured as CUDA graphs: one launch in place of thousands.

On other devices the same code runs without a graph, which is slower than the engine's own step;
the tests do that.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from llama.cache import KVCache, Segment, StaticStepAttention
from llama.model import Decoder

DEVICES = ("cuda",)  # device types whose plain decoding steps the engine takes from here
BUCKET = 256  # keys attended to are rounded up to a multiple of this: one graph for each


class DecodingGraphs:
    """Next-token logits of the sequences in the slots of `cache`, of which each adds one token.

    A graph computes all slots, empty ones for nothing: what those store goes to the slot's last
    place, which only refused drafts reach.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.input_ids = torch.zeros(1, cache.slots, dtype=torch.int64, device=model.device)
        self.offsets = torch.zeros(cache.slots, dtype=torch.int64, device=model.device)
        self.steps: dict[int, Callable[[], Tensor]] = {}

    def logits(self, segments: Sequence[Segment], token_ids: Sequence[int]) -> Tensor:
        """Logits [len(segments), V] of segments of one token each."""
        input_ids = [0] * self.cache.slots
        offsets = [self.cache.capacity - 1] * self.cache.slots
        for segment, token_id in zip(segments, token_ids, strict=True):
            input_ids[segment.slot], offsets[segment.slot] = token_id, segment.start
        self.input_ids.copy_(torch.tensor([input_ids]))
        self.offsets.copy_(torch.tensor(offsets))
        needed = max(segment.start for segment in segments) + 1
        rounded_up = -(-needed // BUCKET) * BUCKET
        longest = min(self.cache.capacity, rounded_up)
        if longest not in self.steps:
            self.steps[longest] = self._record(longest)
        return self.steps[longest]()[[segment.slot for segment in segments]]

    def _compute(self, longest: int) -> Tensor:
        attention = StaticStepAttention(self.cache, self.offsets, longest)
        hidden = self.model(self.input_ids, attention.positions[None], attention.attend)
        return self.model.logits(hidden[0])

    def _record(self, longest: int) -> Callable[[], Tensor]:
        """A function that computes the step from what the buffers hold when it is called."""
        if self.model.device.type != "cuda":
            return partial(self._compute, longest)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(longest)  # libraries set up in the first call, which no graph captures
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._compute(longest)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
