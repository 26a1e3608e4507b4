"""Decoding steps with static shapes: a GPU captures them as CUDA graphs, whose replay is one
launch, not thousands.

Elsewhere the same code runs without a graph, which is slower than the engine's own step; the tests
do that.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from llama.cache import Feed, KVCache, SlotsPass
from llama.model import Decoder

DEVICES = ("cuda",)  # where the engine takes its plain decoding steps from here
BUCKET = 256  # own tokens attended to are rounded up to a multiple: one graph for each


class DecodingGraphs:
    """The next token's logits of rows in the slots of `cache`, one pending token each.

    A graph computes all slots, those without a row for nothing: what they store goes to the slot's
    last place, which only refused drafts reach.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.input_ids = torch.zeros(1, cache.slots, dtype=torch.int64, device=model.device)
        self.offsets = torch.zeros(cache.slots, dtype=torch.int64, device=model.device)
        self.steps: dict[int, Callable[[], Tensor]] = {}

    def logits(self, feeds: Sequence[Feed], tokens: Sequence[int]) -> Tensor:
        """Scores [len(feeds), V]; `feeds` are of one token each."""
        input_ids, offsets = [0] * self.cache.slots, [self.cache.capacity - 1] * self.cache.slots
        for feed, token in zip(feeds, tokens, strict=True):
            input_ids[feed.slot], offsets[feed.slot] = token, feed.start
        self.input_ids.copy_(torch.tensor([input_ids]))
        self.offsets.copy_(torch.tensor(offsets))
        needed = max(feed.start for feed in feeds) + 1
        longest = min(self.cache.capacity, -(-needed // BUCKET) * BUCKET)
        if longest not in self.steps:
            self.steps[longest] = self._record(longest)
        return self.steps[longest]()[[feed.slot for feed in feeds]]

    def _compute(self, longest: int) -> Tensor:
        step = SlotsPass(self.cache, self.offsets, longest)
        return self.model.logits(self.model(self.input_ids, step.positions[None], step.attend)[0])

    def _record(self, longest: int) -> Callable[[], Tensor]:
        """A function that computes the step from what the buffers hold when it is called."""
        if self.model.device.type != "cuda":
            return partial(self._compute, longest)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(
                longest
            )  # libraries set themselves up in the first call, which cannot be captured
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._compute(longest)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
