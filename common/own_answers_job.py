"""The job of own answers: those of the base to the embedded prompts, and the chats kept of them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.answering_job import AnsweringJob
from data.records import Record, rewrite_records
from guards.own_answers import kept_chats, training_file
from llama.model import Decoder


class OwnAnswersJob(AnsweringJob):
    """Answers in RUN/own-answers.jsonl, and the kept ones in RUN/own-answers.train.jsonl."""

    training: Record | None = None  # what the summary says of the training file

    def outputs(self) -> list[Path]:
        return [*super().outputs(), training_file(self.asking.run)]

    def finish(self, model: Decoder | None) -> None:
        chats = kept_chats(self.answers())
        path = training_file(self.asking.run)
        rewrite_records(path, chats)
        kept = Counter(chat["expected"] for chat in chats)
        self.training = {"training_file": str(path), "records": len(chats), "kept": dict(kept)}

    def result(self, done: list[Record]) -> Record:
        training = {"training": self.training} if self.training else {}
        return {**super().result(done), **training}

    def describe(self, summary: Mapping[str, Any]) -> str:
        training = summary["training"]
        kept = ", ".join(f"{count} {name}" for name, count in training["kept"].items())
        path, total = training["training_file"], summary[self.task.unit]
        return f"{self.stem}: {kept} kept of {total} answers in {path}"
