"""The engine behind `generate`: continuous batching over a key/value cache.

A finished sequence leaves at once and the next prompt takes its slot. Prompts are prefilled in
chunks beside the decoding sequences, without padding: a long prompt neither stalls the others nor
needs memory for more than one chunk. The prefix common to all prompts is cached once; a prompt that
begins like one in another slot copies what that slot holds.

Speculative decoding by prompt lookup: a greedy sequence whose text repeats verifies drafted tokens
in one pass. When few sequences are left every one drafts, because a step is then memory-bandwidth
bound. Where CUDA graphs run the plain steps none drafts.
"""

from collections import abc, deque

import numpy as np
import torch
from torch import Tensor

from llama import cuda_graphs, scheduler
from llama.cache import KVCache, bytes_per_token
from llama.cached_attention import PrefixAttention, PromptAttention, StepAttention
from llama.device_memory import free_bytes
from llama.errors import UserError
from llama.finite import NonFiniteLogits
from llama.generation_config import DecodingStats, GenerationConfig, OnFinish
from llama.model import Attend, Decoder
from llama.notices import tell_once
from llama.prompt_lookup import MAX_DRAFT_TOKENS
from llama.sampling import SeedIndex
from llama.scheduler import Scheduler, StepInput
from llama.sequence import LogitsRequest, Output, Sequence, common_prefix_length, shared_length
from llama.token_choice import choose_tokens

CACHE_SHARE = 0.8  # of a CUDA device's free memory; the rest is for what a step computes

SHARES_ADMITTED = 8  # with graphs, so large a part of the slots is filled at a time: an eighth

NewTokens = list[tuple[Sequence, list[int]]]


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
        verifiable = (
            generation_config.sampling.is_greedy and not generation_config.allowed_tokens_fn
        )
        # One draft would make a whole step eager, which takes longer than several graphs.
        self.scheduler = Scheduler(self.prefix, verifiable and not self.use_graphs, stats)
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
        for start in range(0, len(self.prefix), scheduler.PREFILL_CHUNK):
            token_ids = self.prefix[start : start + scheduler.PREFILL_CHUNK]
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

    def _try_to_step(self, running: list[Sequence | None]) -> NewTokens | None:
        """Run a step; None if memory does not suffice.

        The exception ends here: its traceback would keep the cache alive while a smaller one is
        allocated.
        """
        try:
            return self._step(running)
        except torch.OutOfMemoryError:
            return None

    def _admit(self, on_finish: OnFinish | None) -> list[Sequence | None]:
        """Fill free slots from the queue; once it is empty, close the gaps between sequences.

        Returns the running sequences by slot, None for a slot that stays free; nothing at the end.
        """
        if self._waits_for_free_slots():
            return self.slots
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
        return self.slots

    def _waits_for_free_slots(self) -> bool:
        """True while too few slots are free for a pass over prompts, not a graph's, to pay."""
        if self.graphs is None or not self.waiting:
            return False
        free = self.slots.count(None)
        return 0 < free < len(self.slots) // SHARES_ADMITTED

    def _extend(self, sequence: Sequence, token_ids: list[int], on_finish: OnFinish | None) -> None:
        """Append chosen tokens and those that are forced after them, up to the sequence's end."""
        config = self.generation_config
        while token_ids:
            for token in token_ids:
                sequence.append(token)
                self.stats.new_tokens += 1
                if config.on_token:
                    config.on_token(sequence.index, token)
                stopped = token in config.stop_ids
                if stopped or sequence.num_new_tokens == sequence.max_new_tokens:
                    self._finish(sequence, "stop" if stopped else "length", on_finish)
                    return
            token_ids = self._forced_tokens(sequence)

    def _finish(self, sequence: Sequence, reason: str, on_finish: OnFinish | None) -> None:
        output = Output(sequence.new_tokens, reason)
        self.outputs[sequence.index] = output
        self.slots[self.slots.index(sequence)] = None
        if on_finish:
            on_finish(sequence.index, output)

    def _forced_tokens(self, sequence: Sequence) -> list[int]:
        """The next token, if only one is allowed; else none."""
        if self.generation_config.allowed_tokens_fn is None:
            return []
        allowed = self.generation_config.allowed_tokens(sequence.new_tokens)
        return allowed if allowed is not None and len(allowed) == 1 else []

    def _preempt_half(self) -> None:
        """Out of memory: go on with half the slots.

        Every running sequence goes back to the head of the queue and is prefilled again; no token
        is lost.
        """
        self._free()
        self.scheduler.halve_prefill()
        if len(self.slots) == 1:
            raise torch.OutOfMemoryError("out of memory with a single sequence in flight")
        running = [sequence for sequence in self.slots if sequence]
        for sequence in running:
            sequence.num_cached_tokens = 0
        self.waiting.extendleft(reversed(running))
        self._allocate_at_most(len(self.slots) // 2)

    def _step(self, running: list[Sequence | None]) -> NewTokens:
        """Run one forward pass; return the new tokens of every sequence that has no other left."""
        prefill_apart = self.graphs is not None
        step = self.scheduler.schedule(running, self.stored, self.cache, prefill_apart)
        logits = self._logits_from_graph(step)
        if logits is not None:
            return self._accept(logits, step.requests)
        attention = self._attention(step)
        hidden = self._forward(step.token_ids, attention.positions, attention.attend)
        if not step.requests:
            return []
        return self._accept(self.model.logits(hidden[step.logits_positions]), step.requests)

    def _attention(self, step: StepInput) -> StepAttention:
        if PromptAttention.takes(self.cache, step.segments):
            return PromptAttention(self.cache, step.segments)
        return StepAttention(self.cache, step.segments)

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

    def _accept(self, logits: Tensor, requests: list[LogitsRequest]) -> NewTokens:
        """The new tokens of each sequence, from logits [positions, V] of all of them.

        One token, and before it as much of the draft as greedy decoding would have chosen. Raises
        NonFiniteLogits for the first sequence whose token cannot be told.
        """
        owners: list[Sequence] = []
        for request in requests:
            owners += [request.sequence] * (len(request.draft) + 1)
        chosen, finite = choose_tokens(logits, owners, self.generation_config)
        all_finite = all(finite)
        accepted: NewTokens = []
        begin = 0
        for sequence, draft in requests:
            own = chosen[begin : begin + len(draft) + 1]
            right = shared_length(draft, own, len(draft)) if draft else 0
            if not all_finite:
                self._check_finite(finite[begin : begin + right + 1], sequence, draft)
            # What is stored of a refused draft is overwritten by the next step.
            sequence.num_cached_tokens += right
            accepted.append((sequence, own[: right + 1]))
            begin += len(own)
        return accepted

    def _check_finite(self, finite: list[bool], sequence: Sequence, draft: list[int]) -> None:
        """NonFiniteLogits for the first False, which is of the logits behind as much of a draft."""
        if all(finite):
            return
        place = finite.index(False)
        token_ids = self.prefix + sequence.tokens + draft[:place]
        step = sequence.num_new_tokens + place + 1
        raise NonFiniteLogits(sequence.index, token_ids, step)

    def _forward(self, token_ids: list[int], positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, E] of a flat list of N tokens."""
        self.stats.forward_passes += 1
        input_ids = torch.tensor([token_ids], device=self.model.device)
        return self.model(input_ids, positions[None], attend)[0]
