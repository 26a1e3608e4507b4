"""The tokens of each forward pass: prompts in chunks, decoding sequences, drafts to verify.

Lists are short and loops plain on purpose: with hundreds of sequences in flight a GPU's step takes
few milliseconds, and Python must take less.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from llama.cache import KVCache, Segment
from llama.generation_config import DecodingStats
from llama.prompt_lookup import Drafter
from llama.sequence import LogitsRequest, Sequence, shared_length

PREFILL_CHUNK = 512  # prompt tokens computed in one forward pass, beside decoding sequences
PREFILL_PASS = 8192  # in a pass of their own
VERIFIED_TOKENS = 24  # a forward pass over so many tokens costs little more than over one
DRAFTED_TOKENS = 192  # in one forward pass: each needs the output head
WORTH_COPYING = 16  # tokens a prompt must share with another slot before it waits for them

NO_DRAFT: list[int] = []
Head = tuple[int, ...]


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
        return len(self.token_ids) == len(self.segments) == len(self.requests)


class Scheduler:
    """Chooses the tokens of forward passes for sequences behind the common `prefix`.

    `drafting` allows tokens that are only guessed, which greedy decoding alone can verify.
    """

    def __init__(self, prefix: list[int], drafting: bool, stats: DecodingStats) -> None:
        self.prefix, self.drafting, self.stats = prefix, drafting, stats
        self.prefix_drafter: Drafter | None = None
        self.prefill_pass = PREFILL_PASS

    def halve_prefill(self) -> None:
        """Read fewer prompt tokens in a pass of their own: memory did not suffice."""
        self.prefill_pass = max(self.prefill_pass // 2, PREFILL_CHUNK)

    def schedule(
        self,
        running: list[Sequence | None],
        stored: list[Sequence | None],
        cache: KVCache,
        prefill_apart: bool = False,
    ) -> StepInput:
        """Choose the tokens of the next pass, at most PREFILL_CHUNK prompt tokens of it.

        `running` are the sequences by slot, None for a free one. `stored` are those whose keys and
        values the slots of `cache` hold. Both they and the cache then count as holding what the
        pass computes. With `prefill_apart`, a pass decodes or reads prompts, up to PREFILL_PASS
        tokens of them and each as a whole if it is no longer than that.
        """
        drafts = self._draft_tokens(running) if self.drafting else {}
        lengths = self._lengths(running, stored, cache)
        longest = max(lengths)
        if longest == 1 and not drafts:
            return self._plain_step(running, stored)
        budget, step = PREFILL_CHUNK, StepInput()
        if prefill_apart and longest > 1:
            lengths = [length if length > 1 else 0 for length in lengths]
            budget = self.prefill_pass
        for slot, sequence in enumerate(running):
            length = lengths[slot]
            if sequence is None:
                continue
            if length > 1:
                if prefill_apart and not _goes_along(step, sequence, length, budget):
                    continue
                length = min(length, budget)
                budget -= length
            if length:
                self._add_segment(step, slot, sequence, length, drafts.get(sequence.index, []))
                stored[slot] = sequence
        return step

    def _plain_step(
        self, running: list[Sequence | None], stored: list[Sequence | None]
    ) -> StepInput:
        """One token of every sequence: the usual step, at a third of `_add_segment`'s time."""
        step = StepInput()
        for slot, sequence in enumerate(running):
            if sequence is None:
                continue
            stored[slot] = sequence
            start = sequence.num_cached_tokens
            sequence.num_cached_tokens = start + 1
            if start < sequence.prompt_length:
                self.stats.prefill_tokens += 1
            step.segments.append(Segment(slot, start, 1))
            step.token_ids.append(sequence.tokens[start])
            step.requests.append(LogitsRequest(sequence, NO_DRAFT))
        step.logits_positions = list(range(len(step.requests)))
        return step

    def _add_segment(
        self, step: StepInput, slot: int, sequence: Sequence, length: int, draft: list[int]
    ) -> None:
        """Add the next `length` tokens of a sequence, and a draft of those to come, to the step."""
        start = sequence.num_cached_tokens
        end = sequence.num_cached_tokens = start + length
        if start < sequence.prompt_length:
            self.stats.prefill_tokens += min(sequence.prompt_length - start, length)
        step.segments.append(Segment(slot, start, length + len(draft)))
        step.token_ids += sequence.tokens[start:end]
        step.token_ids += draft
        if end == len(sequence.tokens):
            place = len(step.token_ids)
            step.logits_positions += range(place - len(draft) - 1, place)
            step.requests.append(LogitsRequest(sequence, draft))

    def _lengths(
        self, running: list[Sequence | None], stored: list[Sequence | None], cache: KVCache
    ) -> list[int]:
        """The number of tokens that each sequence has to compute; see `_prefill_length`.

        Determined before any token of the step counts as cached.
        """
        lengths = [sequence.num_uncached_tokens if sequence else 0 for sequence in running]
        if max(lengths) == 1:
            return lengths
        alike = SharedHeads(running, stored)
        for slot, sequence in enumerate(running):
            if sequence and lengths[slot] > 1:
                lengths[slot] = self._prefill_length(slot, sequence, stored, cache, alike)
        return lengths

    def _prefill_length(
        self,
        slot: int,
        sequence: Sequence,
        stored: list[Sequence | None],
        cache: KVCache,
        alike: "SharedHeads",
    ) -> int:
        """The number of tokens a sequence has to compute, after copying what another slot holds.

        0 while it waits for a sequence before it that shares more of its tokens than any slot does.
        """
        tokens, most = sequence.tokens, len(sequence.tokens) - 1
        worthwhile = sequence.num_cached_tokens + WORTH_COPYING
        donor, copied = slot, worthwhile - 1
        for other in alike.slots(sequence):
            holder = stored[other]
            if holder is None or holder is sequence:
                continue
            common = shared_length(tokens, holder.tokens, min(holder.num_cached_tokens, most))
            if common > copied:
                donor, copied = other, common
        for earlier in alike.running(sequence):
            is_prefilled = earlier.num_uncached_tokens > 1 and earlier.index < sequence.index
            if is_prefilled and shared_length(tokens, earlier.tokens, most) > copied:
                return 0
        if copied >= worthwhile:
            if donor != slot:
                cache.copy(donor, slot, copied)
            sequence.num_cached_tokens, stored[slot] = copied, sequence
            alike.add_slot(slot, sequence)
        return sequence.num_uncached_tokens

    def _draft_tokens(self, running: list[Sequence | None]) -> dict[int, list[int]]:
        """Tokens that decoding sequences are to verify, by the sequence's index.

        Those with a streak of right drafts always draft; the others do if they are few.
        """
        decoding = [each for each in running if each and each.num_uncached_tokens == 1]
        if not decoding:
            return {}
        free = VERIFIED_TOKENS // len(decoding) - 1  # tokens that verifying costs little
        drafts: dict[int, list[int]] = {}
        budget = DRAFTED_TOKENS
        for sequence in decoding:
            drafter = sequence.drafter or self._make_drafter(sequence)
            wanted = drafter.trusted_length or free
            if wanted < 1:
                continue
            room = sequence.max_new_tokens - sequence.num_new_tokens - 1
            length = min(wanted, room, budget)
            draft = drafter.draft(length) if length > 0 else []
            if draft:
                drafts[sequence.index] = draft
                budget -= len(draft)
        return drafts

    def _make_drafter(self, sequence: Sequence) -> Drafter:
        """Index a sequence's text behind that of the common prefix, which is indexed once."""
        if self.prefix_drafter is None:
            self.prefix_drafter = Drafter(self.prefix)
        sequence.drafter = self.prefix_drafter.copy()
        sequence.drafter.read(sequence.tokens)
        return sequence.drafter


def _goes_along(step: StepInput, sequence: Sequence, length: int, budget: int) -> bool:
    """True if a prompt can join those of a pass: whole, and from its first token on if they are.

    One kernel reads such prompts; a prompt that continues what its slot holds needs another way.
    """
    if not step.segments:
        return True
    is_fresh = sequence.num_cached_tokens == 0
    return length <= budget and is_fresh == (step.segments[0].start == 0)


class SharedHeads:
    """Slots and sequences by their first WORTH_COPYING tokens: others have less in common.

    So a prompt is compared with the few that begin like it, not with all in flight.
    """

    def __init__(self, running: list[Sequence | None], stored: list[Sequence | None]) -> None:
        self._slots: defaultdict[Head, set[int]] = defaultdict(set)
        self._running: defaultdict[Head, list[Sequence]] = defaultdict(list)
        for slot, sequence in enumerate(stored):
            if sequence is not None:
                self.add_slot(slot, sequence)
        for sequence in running:
            if sequence and sequence.num_uncached_tokens > 1:
                self._running[_head(sequence)].append(sequence)

    def add_slot(self, slot: int, sequence: Sequence) -> None:
        """Note that `slot` holds tokens of `sequence` from now on."""
        self._slots[_head(sequence)].add(slot)

    def slots(self, sequence: Sequence) -> list[int]:
        """The slots that may hold a worthwhile part of the sequence's tokens, in order."""
        return sorted(self._slots[_head(sequence)])

    def running(self, sequence: Sequence) -> list[Sequence]:
        """The sequences to be prefilled that may share as much with this one."""
        return self._running[_head(sequence)]


def _head(sequence: Sequence) -> Head:
    return tuple(sequence.tokens[:WORTH_COPYING])
