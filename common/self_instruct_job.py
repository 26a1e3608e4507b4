"""The job of self-instruct: attempts at the training questions, and the training file of them."""

from dataclasses import asdict, replace
from pathlib import Path

from common.answering_job import Answerer, AnsweringJob
from common.distributed import rank_zero_first
from common.ranks import rank
from common.self_instruct_file import write_training_file
from data.attempts import split_id
from data.intervals import rate
from data.records import Record, read_json
from data.self_instruct import (
    RewriteUnsolved,
    SelfInstruct,
    assemble,
    count_right,
    training_file,
    unsolved,
)
from llama.model import Decoder
from llama.sampling import SeedIndex


class SelfInstructJob(AnsweringJob):
    """Attempts at the training questions, and the training file made of them.

    With the fallback "rewrite" the unsolved questions are a job of their own, which begins when all
    attempts are there: RUN/self-instruct-rewrite.jsonl.
    """

    task: SelfInstruct

    def __init__(
        self, task: SelfInstruct, source: str, answerer: Answerer, identity: Record
    ) -> None:
        self.training: Record = {}  # what the summary says of the training file
        self.source, self.identity = source, identity
        self.rewriting: AnsweringJob | None = None
        super().__init__(task, source, answerer, identity)
        if self.finished:
            self.training = read_json(self.summary_path).get("training") or {}

    def seed_index(self, record: Record) -> SeedIndex:
        place, number = self.places[record["id"]], split_id(record["id"])[1]
        return place // self.task.samples, number

    def outputs(self) -> list[Path]:
        rewrites = self.asking.run / f"{RewriteUnsolved.name}.jsonl"
        return [*super().outputs(), rewrites, training_file(self.asking.run)]

    def needs_model(self) -> bool:
        return bool(self.to_do) or not self._has_training_file()

    def _has_training_file(self) -> bool:
        """Tell if the file holds what is asked for now, of as many questions."""
        training = {
            "keep": "first",
            "per_question": None,
            "reading": "number",
            **self.training,
        }  # of before these were
        answered = training.get("questions", training.get("records", 0))
        questions = answered + training.get("dropped", 0)
        same_size = questions * self.task.samples == len(self.planned)
        selection = asdict(self.asking.selection())
        same_selection = all(training.get(name) == value for name, value in selection.items())
        return same_size and same_selection and training_file(self.asking.run).is_file()

    def follow_up(self, model: Decoder) -> None:
        """Have the unsolved questions rewritten, if that is their fallback."""
        if self.asking.fallback != "rewrite" or self._has_training_file():
            return
        with rank_zero_first():  # which has joined the answers of all
            self.rewriting = self._rewriting_job()
        if self.rewriting.to_do:
            self.rewriting.prepare()
            self.rewriting.answer(model)
        if rank() == 0 and self.rewriting.planned:
            self.rewriting.write_summary(finished=True)

    def _rewriting_job(self) -> AnsweringJob:
        attempts = {record["id"]: record for record in self.answers()}
        questions = self.task.questions(self.planned)
        prefix = self.asking.wording().answer_prefix
        names = unsolved(questions, attempts, self.asking.selection(), prefix)
        settings = replace(
            self.asking, mode="rewrite", samples=1, keep="first", per_question=None, fallback="drop"
        )
        answerer = replace(self.answerer, settings=settings)
        return AnsweringJob(RewriteUnsolved(names), self.source, answerer, self.identity)

    def finish(self, model: Decoder | None) -> None:
        if model is None or self._has_training_file():
            return
        questions = self.task.questions(self.planned)
        selection, wording = self.asking.selection(), self.asking.wording()
        attempts = self.answers()
        rewrites = self.rewriting.answers() if self.rewriting else []
        chosen = assemble(
            questions,
            {record["id"]: record for record in attempts},
            self.task.mode,
            selection,
            wording.answer_prefix,
            {record["id"]: record for record in rewrites},
        )
        self.training = write_training_file(
            training_file(self.asking.run),
            questions,
            chosen,
            selection,
            wording,
            model,
            self.answerer.tokenizer,
        )
        if selection.reading == "flexible":  # else it is among the summary's measures
            count = count_right(attempts, selection, wording.answer_prefix)
            self.training["right"] = rate(count, len(self.planned))

    def result(self, done: list[Record]) -> Record:
        training = {"training": self.training} if self.training else {}
        return {**super().result(done), **training}
