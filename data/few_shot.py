"""The choice of shots: worked training problems shown before the question."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

from common.errors import UserError
from data.records import Record

SELECTIONS = ("fixed", "random", "similar")
NEAR_DUPLICATE = 0.8  # share of words, in order, that two questions have in common


class FewShotSampler:
    """Chooses `count` shots from `pool` for one record after another.

    A question is never its own shot, whatever its id, spaces and capital letters. `fixed` takes the
    first records of the pool. `random` draws anew for each record, from (seed, record id), so that
    a record's shots depend neither on the order of the records nor on which others there are.
    `similar` asks `nearest(record, count)` for indices into the pool, nearest first. UserError for
    an unknown selection and for more shots than the pool can give.
    """

    def __init__(
        self,
        pool: Sequence[Record],
        count: int,
        selection: str = "fixed",
        seed: int = 0,
        nearest: Callable[[Record, int], Sequence[int]] | None = None,
    ) -> None:
        if selection not in SELECTIONS:
            raise UserError(
                f"unknown shot selection {selection!r}: expected one of {', '.join(SELECTIONS)}"
            )
        if not 0 <= count <= len(pool):
            raise UserError(
                f"{count} shots asked for, but there are {len(pool)} training records to take "
                "them from"
            )
        self.pool, self.count, self.selection, self.seed = pool, count, selection, seed
        self.nearest = nearest
        self.questions: list[str] = []
        if count:
            self.questions = [normalise_question(record["question"]) for record in pool]
        self.copies = Counter(self.questions)

    def select(self, record: Record) -> list[Record]:
        """Return the shots for `record`, of which the fields `id` and `question` are used."""
        if self.count == 0:
            return []
        own = normalise_question(record["question"])
        # One to spare for each copy of the question itself.
        candidates = self.count + self.copies[own]
        if candidates > len(self.pool):
            raise UserError(
                f"{self.count} shots asked for, but without the question of {record['id']} itself "
                f"there are {len(self.pool) - self.copies[own]} training records to take them from"
            )
        ranking = self._ranking(record, candidates)
        others = [self.pool[i] for i in ranking if self.questions[i] != own]
        return others[: self.count]

    def _ranking(self, record: Record, candidates: int) -> Sequence[int]:
        """The indices of the best candidates in the pool, the best one first."""
        if self.selection == "random":
            generator = random.Random(f"{self.seed} {record['id']}")
            return generator.sample(range(len(self.pool)), candidates)
        if self.selection == "similar":
            assert self.nearest is not None
            return self.nearest(record, candidates)
        return range(candidates)


def find_near_duplicates(
    selector: FewShotSampler, records: Sequence[Record]
) -> list[dict[str, Any]]:
    """Find shots that nearly are the question: the same words in order but for at most a fifth.

    Such a shot gives the answer away up to its numbers. Returns {"id", "shot", "overlap"} for each,
    overlap in [0, 1].
    """
    pairs = []
    for record in records:
        words = record["question"].lower().split()
        for shot in selector.select(record):
            shot_words = shot["question"].lower().split()
            overlap = SequenceMatcher(None, words, shot_words, autojunk=False).ratio()
            if overlap >= NEAR_DUPLICATE:
                pairs.append({"id": record["id"], "shot": shot["id"], "overlap": round(overlap, 3)})
    return pairs


def normalise_question(question: str) -> str:
    """Return the same text for questions that differ in spaces and capital letters alone."""
    return " ".join(question.casefold().split())
