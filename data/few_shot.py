"""The choice of shots: worked training problems shown before the question."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

from common.errors import UserError

SELECTIONS = ("fixed", "random", "similar")
NEAR_DUPLICATE = 0.8  # share of words, in order, that two questions have in common


class FewShotSampler:
    """Chooses `count` shots from `pool` for one record after another; a question is never its own
    shot.

    `fixed` takes the first records of the pool, `random` draws anew for each record from (seed,
    record id), so that a record's shots depend neither on the order of the records nor on which
    others there are; `similar` asks `nearest(record, wanted)` for indices into the pool, nearest
    first. UserError for an unknown selection and for more shots than the pool can give.
    """

    def __init__(
        self,
        pool: Sequence[dict[str, Any]],
        count: int,
        selection: str = "fixed",
        seed: int = 0,
        nearest: Callable[[dict[str, Any], int], Sequence[int]] | None = None,
    ) -> None:
        if selection not in SELECTIONS:
            raise UserError(
                f"unknown shot selection {selection!r}: expected one of {', '.join(SELECTIONS)}"
            )
        if not 0 <= count <= len(pool):
            raise UserError(
                f"{count} shots asked for, but there are {len(pool)} training records to take them from"
            )
        self.pool = pool
        self.count = count
        self.selection = selection
        self.seed = seed
        self.nearest = nearest
        self.questions = [_normalise(record["question"]) for record in pool] if count else []
        self.copies = Counter(self.questions)

    def select(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the shots for `record`, of which the fields `id` and `question` are used."""
        if self.count == 0:
            return []
        own = _normalise(record["question"])
        wanted = self.count + self.copies[own]  # one to spare for each copy of the question itself
        if wanted > len(self.pool):
            raise UserError(
                f"{self.count} shots asked for, but without the question of {record['id']} itself "
                f"there are {len(self.pool) - self.copies[own]} training records to take them from"
            )
        ranking = self._ranking(record, wanted)
        return [self.pool[i] for i in ranking if self.questions[i] != own][: self.count]

    def _ranking(self, record: dict[str, Any], wanted: int) -> Sequence[int]:
        """The indices of the `wanted` best candidates in the pool, the best one first."""
        if self.selection == "random":
            return random.Random(f"{self.seed} {record['id']}").sample(
                range(len(self.pool)), wanted
            )
        return self.nearest(record, wanted) if self.selection == "similar" else range(wanted)


def find_near_duplicates(
    selector: FewShotSampler, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Shots that nearly are the question: the same words in the same order, but for at most a fifth
    of them.

    Such a shot gives the answer away up to its numbers. Returns {"id", "shot", "overlap"} for each,
    overlap in [0, 1].
    """
    found = []
    for record in records:
        words = record["question"].lower().split()
        for shot in selector.select(record):
            overlap = SequenceMatcher(
                None, words, shot["question"].lower().split(), autojunk=False
            ).ratio()
            if overlap >= NEAR_DUPLICATE:
                found.append({"id": record["id"], "shot": shot["id"], "overlap": round(overlap, 3)})
    return found


def _normalise(question: str) -> str:
    return " ".join(question.split())
