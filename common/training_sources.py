"""The files that train.py's --data names, and the records that are taken from each."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.training_settings import TrainingSettings
from data.chats import is_chat_file, load_chats, opening_question
from data.gsm8k import GSM8K
from data.mixture import Part, mix, parse_mixture
from data.records import Record


@dataclass(frozen=True)
class Source:
    """One file of the training data: conversations, or questions with worked answers."""

    part: Part
    is_chats: bool
    available: list[Record]
    taken: list[Record]

    def opening(self, record: Record) -> str:
        """The question by which a record is told from others."""
        return opening_question(record["messages"]) if self.is_chats else record["question"]


def read_sources(settings: TrainingSettings) -> list[Source]:
    """The files of --data with the records that are taken from each; --limit is the first one's."""
    parts = parse_mixture(settings.data)
    available: list[list[Record]] = []
    are_chats = []
    for part in parts:
        is_chats = is_chat_file(part.name)
        records = load_chats(part.name) if is_chats else GSM8K().load(part.name, "train")
        if available:  # the ids of two files may be the same
            records = [{**record, "id": f"{part.name} {record['id']}"} for record in records]
        are_chats.append(is_chats)
        available.append([dict(record) for record in records])
    first = available[0]
    first = first[: settings.limit] if are_chats[0] else of_first_questions(first, settings.limit)
    taken = mix([first, *available[1:]], [part.weight for part in parts], settings.seed)
    return [Source(*values) for values in zip(parts, are_chats, available, taken, strict=True)]


def of_first_questions(records: Sequence[Record], limit: int | None) -> list[Record]:
    """The records of the first `limit` questions: self-instruct writes several a question, one
    behind the other.
    """
    kept: list[Record] = []
    questions = 0
    for record in records:
        questions += not kept or record["question"] != kept[-1]["question"]
        if limit is not None and questions > limit:
            break
        kept.append(record)
    return kept


def mixture_counts(sources: Sequence[Source]) -> list[Record]:
    """The mixture as the summary has it; empty for a single file."""
    counts = []
    for source in sources:
        part = source.part
        taken, available = len(source.taken), len(source.available)
        counts.append(
            {"data": part.name, "weight": part.weight, "records": available, "taken": taken}
        )
    return counts if len(counts) > 1 else []
