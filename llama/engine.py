"""The scheduler behind `generate`: continuous batching over a KV cache whose common prefix exists
once.

A finished row leaves at once and the next prompt takes its slot. Prompts are read in chunks beside
the decoding rows, without padding, so a long prompt neither stalls the others nor needs memory for
more than one chunk. A prompt that begins like one in another slot copies what that slot holds. A
greedy row whose text repeats itself verifies a draft of it; so does every row when few are left,
since a step is then bound by reading the weights.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llama import cuda_graphs
from llama.cache import Feed, KVCache, PrefixPass, StepPass, bytes_per_token
from llama.errors import UserError
from llama.model import Decoder
from llama.prompt_lookup import LONGEST, Drafter
from llama.sampling import Sampling, sample

PREFILL_CHUNK = 512  # prompt tokens read in one forward pass
VERIFIED_TOKENS = 24  # a forward pass over so many tokens costs little more than over one
DRAFTED_TOKENS = 192  # in one forward pass: each needs the output head
WORTH_COPYING = 16  # tokens that a prompt must share with another slot before it waits for them

# The tokens allowed next, given a row's new tokens so far: None is any, a single one is forced and
# costs no step.
Guide = Callable[[list[int]], Collection[int] | None]


@dataclass(frozen=True)
class Output:
    """New tokens of one prompt; `finish_reason` is "stop" (they end with the stop id) or
    "length".
    """

    token_ids: list[int]
    finish_reason: str


@dataclass
class DecodingStats:
    """What `generate` did: tokens of all prompts, those really computed for them, new tokens,
    forward passes.
    """

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    new_tokens: int = 0
    forward_passes: int = 0


@dataclass(frozen=True)
class Options:
    """What the rows of one `generate` call have in common. `cache_bytes` bounds the key/value
    cache.
    """

    max_new_tokens: int
    stop_ids: Set[int]
    batch_size: int
    sampling: Sampling
    guide: Guide | None = None
    cache_bytes: int | None = None
    cache_dtype: torch.dtype | None = None


@dataclass(eq=False)
class Row:
    """One prompt in flight. `tokens`, behind the shared prefix: its own `prompt_length`, then the
    new ones.
    """

    index: int
    tokens: list[int]
    prompt_length: int
    limit: int
    random: np.random.Generator
    cached: int = 0  # of `tokens`, those whose keys and values are stored
    drafter: Drafter | None = None  # from the row's first step on, where drafts are verified at all

    @property
    def new(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def pending(self) -> int:
        """Tokens to read before the next can be chosen: 1 while decoding."""
        return len(self.tokens) - self.cached


@dataclass
class Turn:
    """A row's part in a forward pass that ends in logits: one more than `draft` has tokens."""

    row: Row
    draft: list[int]


class Engine:
    """The state of one `generate` call; `indices` seed the prompts' samples."""

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        indices: Sequence[int],
        options: Options,
        stats: DecodingStats,
    ) -> None:
        self.model, self.options, self.stats = model, options, stats
        stats.prompt_tokens += sum(map(len, prompts))
        self.prefix = list(prompts[0][: common_prefix_length(prompts)])
        self.outputs: list[Output] = [None] * len(prompts)
        context = model.config.max_position_embeddings
        self.waiting = deque(
            Row(
                index=i,
                tokens=list(prompt[len(self.prefix) :]),
                prompt_length=len(prompt) - len(self.prefix),
                limit=min(options.max_new_tokens, context - len(prompt)),
                random=np.random.default_rng((options.sampling.seed, indices[i])),
            )
            for i, prompt in enumerate(prompts)
        )
        # A draft may reach past the last token that counts.
        self.capacity = max(row.prompt_length + row.limit for row in self.waiting) + LONGEST
        self._allocate(self._affordable_slots())

    def _affordable_slots(self) -> int:
        """How many rows fit into the cache's bound. UserError if not even one does."""
        options, wanted = self.options, min(self.options.batch_size, len(self.waiting))
        if options.cache_bytes is None:
            return wanted
        token = bytes_per_token(self.model.config, options.cache_dtype or self.model.dtype)
        slots = (options.cache_bytes - len(self.prefix) * token) // (self.capacity * token)
        if slots < 1:
            needed = (len(self.prefix) + self.capacity) * token
            raise UserError(
                f"the longest prompt and its answer need {needed / 2**30:.3f} GiB of key/value cache, but its memory "
                f"is bounded by {options.cache_bytes / 2**30:.3f} GiB: raise that (--memory), or allow fewer new tokens"
            )
        return min(slots, wanted)

    def _allocate(self, slots: int) -> None:
        self.slots: list[Row | None] = [None] * slots
        self.stored: list[Row | None] = [
            None
        ] * slots  # whose keys and values a slot holds, even after its end
        dtype = self.options.cache_dtype or self.model.dtype
        self.cache = KVCache(
            self.model.config, slots, self.capacity, len(self.prefix), dtype, self.model.device
        )
        captured = self.model.device.type in cuda_graphs.DEVICES
        self.graphs = cuda_graphs.DecodingGraphs(self.model, self.cache) if captured else None
        for start in range(0, len(self.prefix), PREFILL_CHUNK):
            tokens = self.prefix[start : start + PREFILL_CHUNK]
            step = PrefixPass(self.cache, start, len(tokens))
            self._forward(tokens, step.positions, step.attend)
            self.stats.prefill_tokens += len(tokens)

    def run(self, on_finish: Callable[[int, Output], None] | None = None) -> list[Output]:
        while self._admit(on_finish):
            try:
                chosen = self._step()
            except torch.OutOfMemoryError:
                self._halve()
                continue
            for row, tokens in chosen:
                self._extend(row, tokens, on_finish)
        return self.outputs

    def _extend(
        self, row: Row, tokens: list[int], on_finish: Callable[[int, Output], None] | None
    ) -> None:
        """Add chosen tokens, and those the guide then forces, up to the row's end; what follows it
        is dropped.
        """
        coming = deque(tokens)
        while coming:
            row.tokens.append(coming.popleft())
            self.stats.new_tokens += 1
            if row.drafter:
                row.drafter.append(row.tokens[-1])
            stopped = row.tokens[-1] in self.options.stop_ids
            if stopped or len(row.tokens) - row.prompt_length == row.limit:
                self.outputs[row.index] = Output(row.new, "stop" if stopped else "length")
                self.slots[self.slots.index(row)] = None
                if on_finish:
                    on_finish(row.index, self.outputs[row.index])
                return
            if not coming:
                coming.extend(self._forced(row))

    def _forced(self, row: Row) -> list[int]:
        """The next token, if the guide leaves no choice."""
        allowed = self.options.guide(row.new) if self.options.guide else None
        return list(allowed) if allowed is not None and len(allowed) == 1 else []

    def _admit(self, on_finish: Callable[[int, Output], None] | None) -> bool:
        """Fill free slots from the queue; once that is empty, close gaps between the rows. False at
        the end.
        """
        for slot in range(len(self.slots)):
            while self.slots[slot] is None and self.waiting:
                row = self.slots[slot] = self.waiting.popleft()
                self._extend(row, self._forced(row) if not row.new else [], on_finish)
        while None in self.slots:
            hole, last = self.slots.index(None), self.slots.pop()
            if last is not None:
                self.cache.copy(len(self.slots), hole, last.cached)
                self.slots[hole] = self.stored[hole] = last
            self.stored.pop()
        return bool(self.slots)

    def _halve(self) -> None:
        """Out of memory: go on with half the rows. The others wait; every row's text is read again,
        none is lost.
        """
        if len(self.slots) == 1:
            raise torch.OutOfMemoryError("out of memory with a single row in flight")
        rows = [row for row in self.slots if row]
        for row in rows:
            row.cached = 0
        self.waiting.extendleft(reversed(rows))
        slots, self.cache, self.graphs = (
            len(self.slots) // 2,
            None,
            None,
        )  # gone before the new ones come
        torch.cuda.empty_cache()
        self._allocate(slots)

    def _step(self) -> list[tuple[Row, list[int]]]:
        """One forward pass: the new tokens of every row that has read all of its text."""
        drafts, budget = self._drafts(), PREFILL_CHUNK
        unread = [
            self._unread(slot) for slot in range(len(self.slots))
        ]  # before any of this step counts as stored
        feeds, turns, tokens, wanted = (
            [],
            [],
            [],
            [],
        )  # wanted: whose hidden states meet the output head
        for slot, row in enumerate(self.slots):
            length, draft = unread[slot], drafts.get(row, [])
            if length > 1:
                length = min(length, budget)
                budget -= length
            if not length:
                continue
            self.stats.prefill_tokens += max(0, min(row.prompt_length - row.cached, length))
            self.stored[slot] = row
            feeds.append(Feed(slot, row.cached, length + len(draft)))
            tokens += row.tokens[row.cached : row.cached + length] + draft
            row.cached += length
            if not row.pending:
                turns.append(Turn(row, draft))
                wanted += range(len(tokens) - len(draft) - 1, len(tokens))
        if self.graphs and all(feed.length == 1 for feed in feeds) and len(turns) == len(feeds):
            self.stats.forward_passes += 1
            return self._accept(self.graphs.logits(feeds, tokens), turns)
        step = StepPass(self.cache, feeds)
        hidden = self._forward(tokens, step.positions, step.attend)
        return self._accept(self.model.logits(hidden[wanted]), turns) if turns else []

    def _unread(self, slot: int) -> int:
        """Tokens the slot's row has to read, after copying what another slot holds; 0 while it
        waits for another.
        """
        row = self.slots[slot]
        if row.pending == 1:
            return 1
        donor, length = slot, row.cached + WORTH_COPYING - 1
        for other, stored in enumerate(self.stored):
            if stored not in (None, row):
                common = shared_length(
                    row.tokens, stored.tokens, min(stored.cached, len(row.tokens) - 1)
                )
                donor, length = max((donor, length), (other, common), key=lambda pair: pair[1])
        readers = [
            reader for reader in self.slots if reader.pending > 1 and reader.index < row.index
        ]
        if any(
            shared_length(row.tokens, reader.tokens, len(row.tokens) - 1) > length
            for reader in readers
        ):
            return 0
        if length >= row.cached + WORTH_COPYING:
            if donor != slot:
                self.cache.copy(donor, slot, length)
            row.cached, self.stored[slot] = length, row
        return row.pending

    def _drafts(self) -> dict[Row, list[int]]:
        """What decoding rows are to verify: those with a streak of right guesses always, the others
        if they are few.
        """
        if self.options.sampling.temperature > 0 or self.options.guide:
            return {}
        rows = [row for row in self.slots if row.pending == 1]
        free = VERIFIED_TOKENS // len(rows) - 1 if rows else 0
        drafts, room = {}, DRAFTED_TOKENS
        for row in rows:
            row.drafter = row.drafter or Drafter(self.prefix + row.tokens)
            left = row.prompt_length + row.limit - len(row.tokens) - 1
            length = min(row.drafter.trusted_length or free, left, room)
            if length > 0 and (draft := row.drafter.draft(length)):
                drafts[row] = draft
                room -= len(draft)
        return drafts

    def _accept(self, logits: Tensor, turns: list[Turn]) -> list[tuple[Row, list[int]]]:
        """New tokens of each row from its logits: one, and as much of a draft as greedy decoding
        would have chosen.
        """
        chosen = iter(
            self._choose(logits, [turn.row for turn in turns for _ in range(1 + len(turn.draft))])
        )
        accepted = []
        for turn in turns:
            greedy = [next(chosen) for _ in range(1 + len(turn.draft))]
            right = next(
                (i for i, token in enumerate(turn.draft) if token != greedy[i]), len(turn.draft)
            )
            turn.row.cached += (
                right  # of a refused draft, what is stored is overwritten by the next step
            )
            accepted.append((turn.row, greedy[: right + 1]))
        return accepted

    def _forward(self, tokens: list[int], positions: Tensor, attend: Callable) -> Tensor:
        """Hidden states [N, E] of a flat list of tokens."""
        self.stats.forward_passes += 1
        input_ids = torch.tensor([tokens], device=self.model.device)
        return self.model(input_ids, positions[None], attend)[0]

    def _choose(self, logits: Tensor, rows: list[Row]) -> list[int]:
        """The next token of each row from logits [rows, V]."""
        for place, row in enumerate(rows if self.options.guide else ()):
            if (allowed := self.options.guide(row.new)) is not None:
                allowed = list(allowed)
                scores = logits[place, allowed]
                logits[place] = float("-inf")
                logits[place, allowed] = scores
        sampling = self.options.sampling
        if sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        uniform = torch.tensor([row.random.random() for row in rows], device=logits.device)
        return sample(logits, uniform, sampling.temperature, sampling.top_p).tolist()


def shared_length(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """How many leading tokens, at most `limit`, two sequences have in common."""
    limit = min(limit, len(a), len(b))
    return next((i for i in range(limit) if a[i] != b[i]), limit)


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, leaving each at least one of its own; 0 for a
    single prompt.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)  # what the extremes of the sorted order share, all share
    return shared_length(low, high, min(map(len, prompts)) - 1)
