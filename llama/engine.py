"""The scheduler behind `generate`: continuous batching over a key/value cache.

A finished sequence leaves at once and the next prompt takes its slot. Prompts are prefilled in
chunks beside the decoding sequences, without padding: a long prompt neither stalls the others nor
needs memory for more than one chunk. The prefix common to all prompts is cached once; a prompt that
begins like one in another slot copies what that slot holds.

Speculative decoding by prompt lookup: a greedy sequence whose text repeats verifies drafted tokens
in one pass. When few sequences are left every one drafts, because a step is then memory-bandwidth
bound.
"""

from collections import abc, deque
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llama import cuda_graphs
from llama.cache import KVCache, PrefixAttention, Segment, StepAttention, bytes_per_token
from llama.device_memory import free_bytes
from llama.errors import UserError
from llama.finite import NonFiniteLogits
from llama.generation_config import DecodingStats, GenerationConfig, OnFinish
from llama.model import Attend, Decoder
from llama.notices import tell_once
from llama.prompt_lookup import MAX_DRAFT_TOKENS, Drafter
from llama.sampling import SeedIndex
from llama.sequence import LogitsRequest, Output, Sequence, common_prefix_length, shared_length
from llama.token_choice import choose_tokens

PREFILL_CHUNK = 512  # prompt tokens computed in one forward pass
VERIFIED_TOKENS = 24  # a forward pass over so many tokens costs little more than over one
DRAFTED_TOKENS = 192  # in one forward pass: each needs the output head
CACHE_SHARE = 0.8  # of a CUDA device's free memory; the rest is for what a step computes
WORTH_COPYING = 16  # tokens a prompt must share with another slot before it waits for them

NewTokens = list[tuple[Sequence, list[int]]]


@dataclass
class StepInput:
    """The tokens of one forward pass, and the positions among them that need logits."""

    segments: list[Segment] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    requests: list[LogitsRequest] = field(default_factory=list)
    logits_positions: list[int] = field(default_factory=list)

    @property
    def is_plain_decoding(self) -> bool:
        """True if every sequence reads one token, drafts none and needs logits."""
        single = all(segment.length == 1 for segment in self.segments)
        return single and len(self.requests) == len(self.segments)


class Engine:
    """The state of one `generate` call. `indices` seed the prompts' random generators."""

    def __init__(
        self,
        model: Decoder,
        prompts: abc.Sequence[abc.Sequence[int]],
        indices: abc.Sequence[SeedIndex],
        generation_config: GenerationConfig,
        stats: DecodingStats,
    ) -> None:
        self.model, self.generation_config, self.stats = model, generation_config, stats
        self.stats.prompt_tokens += sum(map(len, prompts))
        token_lists = [list(prompt) for prompt in prompts]
        self.prefix = token_lists[0][: common_prefix_length(token_lists)]
        self.outputs: dict[int, Output] = {}
        self.waiting: deque[Sequence] = deque()
        for index, prompt in enumerate(token_lists):
            self.waiting.append(self._make_sequence(index, prompt, indices[index]))
        longest = max(seq.prompt_length + seq.max_new_tokens for seq in self.waiting)
        self.capacity = longest + MAX_DRAFT_TOKENS  # a draft may go beyond the last new token
        self._cache: KVCache | None = None
        self.graphs: cuda_graphs.DecodingGraphs | None = None
        self.use_graphs = generation_config.graphs and model.device.type in cuda_graphs.DEVICES
        self._allocate_at_most(self._affordable_slots())

    def _make_sequence(self, index: int, prompt: list[int], seed_index: SeedIndex) -> Sequence:
        own = prompt[len(self.prefix) :]
        seed_words = (seed_index,) if isinstance(seed_index, int) else seed_index
        room = self.model.config.max_position_embeddings - len(prompt)
        return Sequence(
            index=index,
            tokens=own,
            prompt_length=len(own),
            max_new_tokens=min(self.generation_config.max_new_tokens, room),
            random=np.random.default_rng((self.generation_config.sampling.seed, *seed_words)),
        )

    def _affordable_slots(self) -> int:
        """The number of sequences that fit into `cache_bytes`, and into what memory is free.

        UserError if not even one fits into `cache_bytes`.
        """
        cache_bytes = self.generation_config.cache_bytes
        slots = min(self.generation_config.batch_size, len(self.waiting))
        token_bytes = bytes_per_token(self.model.config, self.cache_dtype)
        slot_bytes = self.capacity * token_bytes
        prefix_bytes = len(self.prefix) * token_bytes
        free = free_bytes(self.model.device)
        if free is not None:
            fitting = (int(free * CACHE_SHARE) - prefix_bytes) // slot_bytes
            slots = max(1, min(slots, fitting))
        if cache_bytes is None:
            return slots
        affordable = (cache_bytes - prefix_bytes) // slot_bytes
        if affordable < 1:
            needed = (prefix_bytes + slot_bytes) / 2**30
            raise UserError(
                f"the longest prompt and its answer need {needed:.3f} GiB of key/value cache, but "
                f"its memory is bounded by {cache_bytes / 2**30:.3f} GiB: raise that (--memory), "
                "or allow fewer new tokens"
            )
        return min(affordable, slots)

    @property
    def cache_dtype(self) -> torch.dtype:
        return self.generation_config.cache_dtype or self.model.dtype

    @property
    def cache(self) -> KVCache:
        assert self._cache is not None
        return self._cache

    def _allocate_at_most(self, num_slots: int) -> None:
        """Make a cache of `num_slots` slots, or of half as many until memory holds it.

        Raises torch.OutOfMemoryError if it does not hold even one.
        """
        while not self._try_to_allocate(num_slots):
            self._free()
            if num_slots == 1:
                raise torch.OutOfMemoryError("out of memory with a single sequence in flight")
            num_slots //= 2

    def _try_to_allocate(self, num_slots: int) -> bool:
        try:
            self._allocate(num_slots)
        except torch.OutOfMemoryError:
            return False
        return True

    def _free(self) -> None:
        """Let go of the cache, also for other users of the device's memory."""
        self._cache, self.graphs = None, None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _allocate(self, num_slots: int) -> None:
        """Make a cache of `num_slots` slots and compute the shared prefix into it."""
        self.slots: list[Sequence | None] = [None] * num_slots
        # The sequence whose keys and values a slot holds, even after it has finished.
        self.stored: list[Sequence | None] = [None] * num_slots
        self._cache = KVCache(
            self.model.config,
            num_slots,
            self.capacity,
            len(self.prefix),
            self.cache_dtype,
            self.model.device,
        )
        if self.use_graphs:
            self.graphs = cuda_graphs.DecodingGraphs(self.model, self.cache)
        for start in range(0, len(self.prefix), PREFILL_CHUNK):
            token_ids = self.prefix[start : start + PREFILL_CHUNK]
            attention = PrefixAttention(self.cache, start, len(token_ids))
            self._forward(token_ids, attention.positions, attention.attend)
            self.stats.prefill_tokens += len(token_ids)

    def run(self, on_finish: OnFinish | None = None) -> list[Output]:
        """Decode every prompt. Outputs are in input order."""
        while running := self._admit(on_finish):
            chosen = self._try_to_step(running)
            if chosen is None:
                self._preempt_half()
                continue
            for sequence, token_ids in chosen:
                self._extend(sequence, token_ids, on_finish)
        return [self.outputs[index] for index in range(len(self.outputs))]

    def _try_to_step(self, running: list[Sequence]) -> NewTokens | None:
        """Run a step; None if memory does not suffice.

        The exception ends here: its traceback would keep the cache alive while a smaller one is
        allocated.
        """
        try:
            return self._step(running)
        except torch.OutOfMemoryError:
            return None

    def _admit(self, on_finish: OnFinish | None) -> list[Sequence]:
        """Fill free slots from the queue; once it is empty, close the gaps between sequences.

        Returns the running sequences in the order of their slots; none at the end.
        """
        for slot in range(len(self.slots)):
            while self.slots[slot] is None and self.waiting:
                sequence = self.waiting.popleft()
                self.slots[slot] = sequence
                if not sequence.num_new_tokens:
                    self._extend(sequence, self._forced_tokens(sequence), on_finish)
        while None in self.slots:
            gap, last = self.slots.index(None), self.slots.pop()
            if last is not None:
                self.cache.copy(len(self.slots), gap, last.num_cached_tokens)
                self.slots[gap] = self.stored[gap] = last
            self.stored.pop()
        return [sequence for sequence in self.slots if sequence is not None]

    def _extend(self, sequence: Sequence, token_ids: list[int], on_finish: OnFinish | None) -> None:
        """Append chosen tokens and those that are forced after them, up to the sequence's end."""
        coming = deque(token_ids)
        while coming:
            token = coming.popleft()
            sequence.append(token)
            self.stats.new_tokens += 1
            if self.generation_config.on_token:
                self.generation_config.on_token(sequence.index, token)
            stopped = token in self.generation_config.stop_ids
            if stopped or sequence.num_new_tokens == sequence.max_new_tokens:
                self._finish(sequence, "stop" if stopped else "length", on_finish)
                return
            if not coming:
                coming.extend(self._forced_tokens(sequence))

    def _finish(self, sequence: Sequence, reason: str, on_finish: OnFinish | None) -> None:
        output = Output(sequence.new_tokens, reason)
        self.outputs[sequence.index] = output
        self.slots[self.slots.index(sequence)] = None
        if on_finish:
            on_finish(sequence.index, output)

    def _forced_tokens(self, sequence: Sequence) -> list[int]:
        """The next token, if only one is allowed; else none."""
        allowed = self.generation_config.allowed_tokens(sequence.new_tokens)
        return allowed if allowed is not None and len(allowed) == 1 else []

    def _preempt_half(self) -> None:
        """Out of memory: go on with half the slots.

        Every running sequence goes back to the head of the queue and is prefilled again; no token
        is lost.
        """
        self._free()
        if len(self.slots) == 1:
            raise torch.OutOfMemoryError("out of memory with a single sequence in flight")
        running = [sequence for sequence in self.slots if sequence]
        for sequence in running:
            sequence.num_cached_tokens = 0
        self.waiting.extendleft(reversed(running))
        self._allocate_at_most(len(self.slots) // 2)

    def _step(self, running: list[Sequence]) -> NewTokens:
        """Run one forward pass; return the new tokens of every sequence that has no other left."""
        step = self._schedule(running)
        logits = self._logits_from_graph(step)
        if logits is not None:
            return self._accept(logits, step.requests)
        attention = StepAttention(self.cache, step.segments)
        hidden = self._forward(step.token_ids, attention.positions, attention.attend)
        if not step.requests:
            return []
        return self._accept(self.model.logits(hidden[step.logits_positions]), step.requests)

    def _logits_from_graph(self, step: StepInput) -> Tensor | None:
        """The logits of a plain decoding step, where CUDA graphs compute it; else None."""
        if self.graphs is None or not step.is_plain_decoding:
            return None
        try:
            logits = self.graphs.logits(step.segments, step.token_ids)
        except cuda_graphs.CaptureError as error:
            tell_once(f"CUDA graphs do not work here ({error}): decoding goes on without them")
            self.graphs, self.use_graphs = None, False
            return None
        self.stats.forward_passes += 1
        return logits

    def _schedule(self, running: list[Sequence]) -> StepInput:
        """Choose the tokens of the next forward pass, at most PREFILL_CHUNK prompt tokens of it."""
        drafts, budget, step = self._draft_tokens(running), PREFILL_CHUNK, StepInput()
        # All lengths before any token of this step counts as cached.
        lengths = [self._schedule_prefill(slot, running) for slot in range(len(running))]
        for slot, sequence in enumerate(running):
            length = lengths[slot]
            if length > 1:
                length = min(length, budget)
                budget -= length
            if length:
                self._add_segment(step, slot, sequence, length, drafts.get(sequence.index, []))
        return step

    def _add_segment(
        self, step: StepInput, slot: int, sequence: Sequence, length: int, draft: list[int]
    ) -> None:
        """Add the next `length` tokens of a sequence, and a draft of those to come, to the step."""
        start = sequence.num_cached_tokens
        prompt_tokens = min(sequence.prompt_length - start, length)
        self.stats.prefill_tokens += max(0, prompt_tokens)
        step.segments.append(Segment(slot, start, length + len(draft)))
        step.token_ids += sequence.tokens[start : start + length] + draft
        sequence.num_cached_tokens += length
        self.stored[slot] = sequence
        if sequence.num_uncached_tokens == 0:
            end = len(step.token_ids)
            step.logits_positions += range(end - len(draft) - 1, end)
            step.requests.append(LogitsRequest(sequence, draft))

    def _schedule_prefill(self, slot: int, running: list[Sequence]) -> int:
        """The number of tokens a sequence has to compute, after copying what another slot holds.

        0 while it waits for a sequence before it that shares more of its tokens than any slot does.
        """
        sequence = running[slot]
        if sequence.num_uncached_tokens == 1:
            return 1
        tokens, most = sequence.tokens, len(sequence.tokens) - 1
        worthwhile = sequence.num_cached_tokens + WORTH_COPYING
        donor, copied = slot, worthwhile - 1
        for other, stored in enumerate(self.stored):
            if stored is None or stored is sequence:
                continue
            limit = min(stored.num_cached_tokens, most)
            common = shared_length(tokens, stored.tokens, limit)
            if common > copied:
                donor, copied = other, common
        for earlier in running:
            is_prefilled = earlier.num_uncached_tokens > 1 and earlier.index < sequence.index
            if is_prefilled and shared_length(tokens, earlier.tokens, most) > copied:
                return 0
        if copied >= worthwhile:
            if donor != slot:
                self.cache.copy(donor, slot, copied)
            sequence.num_cached_tokens, self.stored[slot] = copied, sequence
        return sequence.num_uncached_tokens

    def _draft_tokens(self, running: list[Sequence]) -> dict[int, list[int]]:
        """Tokens that decoding sequences are to verify, by the sequence's index.

        Those with a streak of right drafts always draft; the others do if they are few.
        """
        sampling = self.generation_config.sampling
        if not sampling.is_greedy or self.generation_config.allowed_tokens_fn:
            return {}
        decoding = [sequence for sequence in running if sequence.num_uncached_tokens == 1]
        if not decoding:
            return {}
        free = VERIFIED_TOKENS // len(decoding) - 1  # tokens that verifying costs little
        drafts, budget = {}, DRAFTED_TOKENS
        for sequence in decoding:
            if sequence.drafter is None:
                sequence.drafter = Drafter(self.prefix + sequence.tokens)
            room = sequence.max_new_tokens - sequence.num_new_tokens - 1
            length = min(sequence.drafter.trusted_length or free, room, budget)
            draft = sequence.drafter.draft(length) if length > 0 else []
            if draft:
                drafts[sequence.index] = draft
                budget -= len(draft)
        return drafts

    def _accept(self, logits: Tensor, requests: list[LogitsRequest]) -> NewTokens:
        """The new tokens of each sequence, from logits [positions, V] of all of them.

        One token, and before it as much of the draft as greedy decoding would have chosen. Raises
        NonFiniteLogits for the first sequence whose token cannot be told.
        """
        owners: list[Sequence] = []
        for request in requests:
            owners += [request.sequence] * request.num_positions
        chosen = choose_tokens(logits, owners, self.generation_config)
        accepted, begin = [], 0
        for request in requests:
            own = chosen[begin : begin + request.num_positions]
            greedy = [choice.token_id for choice in own]
            right = shared_length(request.draft, greedy, len(request.draft))
            for place, choice in enumerate(own[: right + 1]):
                if not choice.finite:
                    raise self._non_finite(request, place)
            # What is stored of a refused draft is overwritten by the next step.
            request.sequence.num_cached_tokens += right
            accepted.append((request.sequence, greedy[: right + 1]))
            begin += request.num_positions
        return accepted

    def _non_finite(self, request: LogitsRequest, place: int) -> NonFiniteLogits:
        """The error for the logits behind the first `place` tokens of a request's draft."""
        sequence = request.sequence
        token_ids = self.prefix + sequence.tokens + request.draft[:place]
        step = sequence.num_new_tokens + place + 1
        return NonFiniteLogits(sequence.index, token_ids, step)

    def _forward(self, token_ids: list[int], positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, E] of a flat list of N tokens."""
        self.stats.forward_passes += 1
        input_ids = torch.tensor([token_ids], device=self.model.device)
        return self.model(input_ids, positions[None], attend)[0]
