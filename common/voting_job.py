"""The job of sampling several answers to each question of a task, and of counting their votes."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.answering_job import AnsweringJob
from data.attempts import plan_attempts, split_id
from data.records import Record
from data.task import Task
from data.voting import describe_votes, samples_stem, summarise_votes
from llama.sampling import SeedIndex


class VotingJob(AnsweringJob):
    """Samples in RUN/TASK-samples.jsonl, beside the single answers in RUN/TASK.jsonl.

    A sample is a record as a single answer is, under the id ID#k. It is seeded by the question's
    place and k, so it depends neither on K nor on the others, and sample 0 is the single answer
    with the same settings.
    """

    def stem_of(self, task: Task) -> str:
        return samples_stem(task)

    def plan_records(self, records: Sequence[Record]) -> Sequence[Record]:
        return plan_attempts(records, self.asking.samples)

    def seed_index(self, record: Record) -> SeedIndex:
        question, number = split_id(record["id"])
        return self.places[question], number

    def facts(self, record: Record) -> Record:
        facts = super().facts(record)
        return facts | {name: record[name] for name in (self.task.voted_field, "gold")}

    def result(self, done: list[Record]) -> Record:
        finished = [record["id"] for record in self.planned if record["id"] in self.finished]
        answers = dict(zip(finished, done, strict=True))
        votes = summarise_votes(self.task, answers, self.asking.samples)
        adapter = self.answerer.adapter
        return {**votes, "adapter_path": str(adapter) if adapter else None}

    def describe(self, summary: Mapping[str, Any]) -> str:
        line = describe_votes(summary, self.task)
        return f"{self.stem}: {line}, {summary['seconds']:.0f} s"
