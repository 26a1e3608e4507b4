"""Several attempts at one question: records of their own under the ids ID#0, ID#1, ..."""

from collections.abc import Mapping, Sequence

from data.records import Record


def plan_attempts(records: Sequence[Record], samples: int) -> list[Record]:
    """Each record `samples` times, under the ids ID#0, ID#1, ..."""
    return [{**record, "id": f"{record['id']}#{i}"} for record in records for i in range(samples)]


def split_id(name: str) -> tuple[str, int]:
    """The question's id and the attempt's number: "t7#2" -> ("t7", 2)."""
    question, _, number = name.rpartition("#")
    return question, int(number)


def by_question(attempts: Mapping[str, Record]) -> dict[str, list[Record]]:
    """The attempts by the id of their question, in the order of their numbers."""
    numbered: dict[str, list[tuple[int, Record]]] = {}
    for name, attempt in attempts.items():
        question, number = split_id(name)
        numbered.setdefault(question, []).append((number, attempt))
    in_order = {}
    for question, pairs in numbered.items():
        in_order[question] = [a for _, a in sorted(pairs, key=lambda pair: pair[0])]
    return in_order
