"""Batched decoding: continuous batching over a KV cache whose common prefix is computed and stored once.

A finished row leaves at once and the next prompt takes its slot. Prompts are read in chunks beside the decoding rows,
without padding, so a long prompt neither stalls the others nor needs memory for more than one chunk. When few rows are
left, a step is bound by reading the weights, so each greedy row also verifies a draft of its own text (prompt lookup).
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llama.cache import Chunk, KVCache, PrefixPass, StepPass
from llama.config import ModelConfig
from llama.model import Decoder

PREFILL_CHUNK = 512  # prompt tokens read in one forward pass
VERIFIED_TOKENS = 16  # a forward pass over so many tokens costs little more than over one
Guide = Callable[[list[int]], Collection[int] | None]  # new tokens of a row -> those allowed next, None for any


@dataclass(frozen=True)
class Output:
    """New tokens of one prompt; `finish_reason` is "stop" (they end with the stop id) or "length"."""

    token_ids: list[int]
    finish_reason: str


@dataclass
class DecodingStats:
    """What `generate` did: tokens of all prompts, those really computed for them, new tokens, forward passes."""

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    new_tokens: int = 0
    forward_passes: int = 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; else nucleus sampling (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ValueError(f"temperature = {self.temperature}, top_p = {self.top_p}: expected >= 0 and in (0, 1]")


@dataclass(eq=False)
class Row:
    """One prompt in flight. `own` are its tokens behind the shared prefix; `cached` of them and of `new` are stored."""

    index: int
    own: list[int]
    limit: int
    random: np.random.Generator
    cached: int = 0
    new: list[int] = field(default_factory=list)
    allowed: Collection[int] | None = None  # what the guide lets follow `new`

    @property
    def unread(self) -> list[int]:
        """Tokens that are not in the cache yet."""
        return (self.own + self.new)[self.cached :]


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> None:
    """ValueError, naming the prompt, unless each fits the context with room for one token and names known tokens."""
    for index, prompt in enumerate(prompts):
        name = names[index] if names else f"prompt {index}"
        if not prompt:
            raise ValueError(f"{name}: the prompt is empty")
        if len(prompt) >= config.max_position_embeddings:
            raise ValueError(
                f"{name}: {len(prompt)} tokens leave no room in the model's context of "
                f"{config.max_position_embeddings}; use fewer shots or a shorter text"
            )
        if max(prompt) >= config.vocab_size or min(prompt) < 0:
            raise ValueError(f"{name}: token id {max(prompt)} is outside the vocabulary of {config.vocab_size}")


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    stop_ids: Set[int] = frozenset(),
    batch_size: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    on_finish: Callable[[int, Output], None] | None = None,
    stats: DecodingStats | None = None,
    guide: Guide | None = None,
) -> list[Output]:
    """Continue every prompt (token ids) until a stop id, `max_new_tokens`, or the end of the context.

    Outputs are in input order; `on_finish(i, output)` is called as soon as prompt `i` is done. At most `batch_size`
    prompts are in flight. Sampling draws from one generator a prompt, seeded by (seed, indices[i]), with indices
    0, 1, ... by default, so no sample depends on its neighbours. `stats` is added to. `guide` gets the new tokens of a
    row so far and returns those allowed next: None is any, several are chosen from, a single one is forced. Forced
    tokens need no forward pass of their own, and a forced stop id ends the row at once.

    Raises ValueError for an empty prompt, one that fills the context, or an option out of range.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}, batch_size = {batch_size}: expected at least 1")
    check_prompts(model.config, prompts)
    if not prompts:
        return []
    sampling = Sampling(temperature, top_p, seed)
    engine = Engine(model, prompts, max_new_tokens, stop_ids, batch_size, sampling, indices, guide)
    engine.stats = stats or engine.stats
    engine.stats.prompt_tokens += sum(map(len, prompts))
    engine.run(on_finish)
    return engine.outputs


class Engine:
    """The state of one `generate` call."""

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Set[int],
        batch_size: int,
        sampling: Sampling,
        indices: Sequence[int] | None,
        guide: Guide | None,
    ) -> None:
        self.model, self.stop_ids, self.sampling, self.guide = model, stop_ids, sampling, guide
        self.prefix = list(prompts[0][: common_prefix_length(prompts)])
        self.outputs: list[Output] = [None] * len(prompts)
        self.stats = DecodingStats()
        context = model.config.max_position_embeddings
        self.waiting = deque(
            Row(
                index=i,
                own=list(prompts[i][len(self.prefix) :]),
                limit=min(max_new_tokens, context - len(prompts[i])),
                random=np.random.default_rng((sampling.seed, indices[i] if indices else i)),
            )
            for i in range(len(prompts))
        )
        self.slots: list[Row | None] = [None] * min(batch_size, len(prompts))
        capacity = max(len(row.own) + row.limit for row in self.waiting)
        self.cache = KVCache(model.config, len(self.slots), capacity, len(self.prefix), model.dtype, model.device)

    def run(self, on_finish: Callable[[int, Output], None] | None = None) -> None:
        self._read_prefix()
        for row in list(self.waiting):  # what the guide forces at the beginning is read with the prompt
            if reason := self._extend(row, []):
                self.waiting.remove(row)
                self._finish(row, reason, on_finish)
        while self.waiting or any(self.slots):
            self._admit()
            for row, tokens in self._step():
                if reason := self._extend(row, tokens):
                    self.slots[self.slots.index(row)] = None
                    self._finish(row, reason, on_finish)

    def _finish(self, row: Row, reason: str, on_finish: Callable[[int, Output], None] | None) -> None:
        self.outputs[row.index] = Output(row.new, reason)
        if on_finish:
            on_finish(row.index, self.outputs[row.index])

    def _extend(self, row: Row, tokens: list[int]) -> str | None:
        """Add new tokens, and those the guide forces behind them, up to the row's end; return why it ended, or None."""
        tokens = deque(tokens)
        while True:
            if not tokens and self.guide:
                row.allowed = self.guide(row.new)
                if row.allowed is not None and len(row.allowed) == 1:
                    tokens.extend(row.allowed)
            if not tokens:
                return None
            row.new.append(tokens.popleft())
            self.stats.new_tokens += 1
            if row.new[-1] in self.stop_ids:
                return "stop"
            if len(row.new) == row.limit:
                return "length"

    def _read_prefix(self) -> None:
        for start in range(0, len(self.prefix), PREFILL_CHUNK):
            tokens = self.prefix[start : start + PREFILL_CHUNK]
            positions = torch.arange(start, start + len(tokens), device=self.model.device)
            self._forward(tokens, positions, PrefixPass(self.cache, start, len(tokens)).attend)
            self.stats.prefill_tokens += len(tokens)

    def _admit(self) -> None:
        """Fill free slots from the queue; with the queue empty, close gaps so that attention covers fewer slots."""
        for slot, row in enumerate(self.slots):
            if row is None and self.waiting:
                self.slots[slot] = self.waiting.popleft()
        while None in self.slots:
            hole, last = self.slots.index(None), self.slots.pop()
            if hole < len(self.slots) and last is not None:
                self.cache.move(len(self.slots), hole, last.cached)
                self.slots[hole] = last

    def _step(self) -> list[tuple[Row, list[int]]]:
        """One forward pass: new tokens of every row whose prompt is read, and a chunk of the prompts still waiting."""
        plain, drafted = self._plan_decoding()
        decoding = [self.slots.index(row) for row in plain]
        tokens, lengths = [row.new[-1] for row in plain], [row.cached for row in plain]
        chunks, wanted = [], list(range(len(plain)))  # whose hidden states meet the output head
        for row, draft in drafted:
            chunks.append(Chunk(self.slots.index(row), row.cached, 1 + len(draft)))
            wanted += range(len(tokens), len(tokens) + 1 + len(draft))
            tokens += [row.new[-1], *draft]
        ready, budget = [], PREFILL_CHUNK
        for slot, row in enumerate(self.slots):
            if row in plain or any(row is other for other, _ in drafted) or budget == 0:
                continue
            unread = row.unread[:budget]
            chunks.append(Chunk(slot, row.cached, len(unread)))
            tokens += unread
            self.stats.prefill_tokens += max(min(len(row.own) - row.cached, len(unread)), 0)
            row.cached += len(unread)
            budget -= len(unread)
            if not row.unread:
                ready.append(row)
                wanted.append(len(tokens) - 1)  # only the last position
        step = StepPass(self.cache, decoding, lengths, chunks)
        hidden = self._forward(tokens, step.positions, step.attend)
        if not wanted:
            return []
        return self._accept(self.model.logits(hidden[wanted]), plain, drafted, ready)

    def _plan_decoding(self) -> tuple[list[Row], list[tuple[Row, list[int]]]]:
        """The rows that take one token in this step, and those that also verify a draft."""
        rows = [row for row in self.slots if row.new and len(row.unread) == 1]
        speculate = rows and self.sampling.temperature == 0 and not self.guide
        share = VERIFIED_TOKENS // len(rows) - 1 if speculate else 0
        plain, drafted = [], []
        for row in rows:
            length = min(share, row.limit - len(row.new) - 1)
            draft = look_up_draft(self.prefix + row.own + row.new, length) if length > 0 else []
            if draft:
                drafted.append((row, draft))
            else:
                plain.append(row)
        return plain, drafted

    def _accept(
        self, logits: Tensor, plain: list[Row], drafted: list[tuple[Row, list[int]]], ready: list[Row]
    ) -> list[tuple[Row, list[int]]]:
        """New tokens of each row from its logits: one, or as much of a draft as greedy decoding would have chosen."""
        chosen = iter(
            self._choose(logits, [*plain, *(row for row, draft in drafted for _ in range(1 + len(draft))), *ready])
        )
        accepted = [(row, [next(chosen)]) for row in plain]
        for row, draft in drafted:
            greedy = [next(chosen) for _ in range(1 + len(draft))]
            right = next((i for i, token in enumerate(draft) if token != greedy[i]), len(draft))
            accepted.append((row, greedy[: right + 1]))
        for row, tokens in accepted:
            row.cached += len(tokens)  # of a refused draft, what is stored is overwritten by the next step
        return accepted + [(row, [next(chosen)]) for row in ready]

    def _forward(self, tokens: list[int], positions: Tensor, attend: Callable) -> Tensor:
        """Hidden states [N, E] of a flat list of tokens."""
        self.stats.forward_passes += 1
        input_ids = torch.tensor([tokens], device=self.model.device)
        return self.model(input_ids, positions[None], attend)[0]

    def _choose(self, logits: Tensor, rows: list[Row]) -> list[int]:
        """The next token of each row from logits [rows, V]."""
        for i, row in enumerate(rows):
            if row.allowed is not None:
                allowed = torch.tensor(sorted(row.allowed), device=logits.device)
                logits[i] = torch.full_like(logits[i], float("-inf")).scatter(0, allowed, logits[i, allowed])
        if self.sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        uniform = torch.tensor([row.random.random() for row in rows], device=logits.device)
        return sample(logits, uniform, self.sampling.temperature, self.sampling.top_p).tolist()


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, leaving each at least one of its own; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)  # what the extremes of the sorted order share, all share
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def look_up_draft(tokens: list[int], length: int) -> list[int]:
    """Guess the next `length` tokens (Saxena 2023): what followed the latest earlier occurrence of the last three.

    Text that ends in a loop is continued around the loop. Empty if the last two tokens never occurred before.
    """
    for size in (3, 2):
        tail = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start] == tail[0] and tokens[start : start + size] == tail:
                following = tokens[start + size : start + size + length]
                return (following * length)[:length]
    return []


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Nucleus sampling by inverting the cumulative distribution: [N, V] logits, [N] draws in [0, 1) -> [N] int64."""
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(descending=True, dim=-1)
    cumulative = probabilities.double().cumsum(-1)
    # The nucleus is the smallest set of tokens that reaches top_p: a token stays if those before it fall short.
    nucleus = cumulative - probabilities < top_p
    mass = torch.where(nucleus, cumulative, 0).amax(-1, keepdim=True)
    chosen = (cumulative <= uniform[:, None] * mass).sum(-1, keepdim=True)
    chosen = torch.minimum(chosen, nucleus.sum(-1, keepdim=True) - 1)
    return order.gather(-1, chosen).squeeze(-1)
