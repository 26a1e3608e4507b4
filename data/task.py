"""The interface of a task: a set of prompts, the score of an answer, and what a report shows of it.

A subclass in a file of its own and a line in `data/registry.py` make a task; `generate.py`,
`judge.py`, reports and recipes know tasks through this interface alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.errors import UserError
from common.run_folder import other_run
from data.checked import checked_field
from data.intervals import rate
from data.prompts import DEFAULT_WORDING, Message, Wording
from data.records import Record, numbered_jsonl
from data.sources import OfficialFile, dataset_file

DEMO_FOLDER = Path(__file__).with_name("demo")
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
ANSWER_FIELDS: dict[str, type] = {  # of every answer, whatever the task
    "id": str,
    "response": str,
    "token_ids": list,
    "finish_reason": str,
    "prompt_tokens": int,
}
AGAIN = "start again with --no-resume"


@dataclass(frozen=True)
class Measure:
    """A share of a task's records: how many of those that it applies to count.

    `counts(record)` is True, False, or None for a record that the measure says nothing of. Records
    are answers, or verdicts on them where `needs` names the label of the verdict that is read.
    """

    path: tuple[str, ...]  # where the summary holds the rate: ("accuracy", "number")
    title: str  # as a report's column: "GSM8K accuracy"
    counted: str  # what an answer that counts is called: "right", "refused"
    other: str  # and one that does not: "wrong", "answered"
    counts: Callable[[Mapping[str, Any]], bool | None]
    needs: Literal["answer", "safety", "refusal"] = "answer"
    lower_is_better: bool = False

    def rate(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The share with its Wilson interval, as `data.intervals.rate` gives it."""
        values = [value for value in map(self.counts, records) if value is not None]
        return rate(sum(values), len(values))


class Task(ABC):
    """A set of prompts and what is made of the answers.

    A record, as `load` returns it, holds the strings `id` and those of `fields`; an answer to it
    holds the same, `response`, `token_ids`, `finish_reason`, `prompt_tokens` and `score`'s fields.
    """

    name: ClassVar[str]  # on the command line, in recipes and in file names
    title: ClassVar[str]  # in reports
    kind: ClassVar[Literal["skill", "safety"]]
    official: ClassVar[Mapping[Split, OfficialFile]]  # a set without splits has "test" alone
    demo: ClassVar[Mapping[Split, str]] = {}  # file names in data/demo
    # The format of a user's own file, for messages: "a JSONL file in GSM8K's format".
    file_format: ClassVar[str]
    unit: ClassVar[str]  # what a summary calls the number of records: "questions", "prompts"
    prompt_field: ClassVar[str]  # the field with the text that is asked
    fields: ClassVar[tuple[str, ...]]  # strings of a record that its answer keeps
    score_fields: ClassVar[Mapping[str, type]] = {}  # what `score` adds and is never None
    # What `score` adds that several answers to one question vote on, against "gold"; "" for none.
    voted_field: ClassVar[str] = ""
    measures: ClassVar[tuple[Measure, ...]]  # the main one first
    groups: ClassVar[tuple[str, ...]] = ()  # fields by which a safety task's rates are split
    shots_from: str | None = None  # the task whose training set gives the shots, if any

    @property
    def official_name(self) -> str:
        """The official set's name in summaries."""
        return self.name

    def load(self, source: str | Path = "official", split: Split = "test") -> list[Record]:
        """The records of "official" (or the task's name), "demo", or a file in the task's format.

        A file has no splits: both names give all of it. UserError, naming file and line, for what
        is no such record, and for a missing or empty file.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        path, prefix = self._locate(source, split)
        records = self.read(path, prefix)
        if not records:
            raise UserError(f"{path}: no records in this file")
        return records

    def _locate(self, source: str | Path, split: Split) -> tuple[Path, str]:
        """The file to read, and what the ids of records without one begin with."""
        if source in ("official", self.name):
            held = split if split in self.official else "test"
            return dataset_file(self.official[held]), f"{self.name}-{split}"
        if source == "demo":
            if not self.demo:
                raise UserError(
                    f"the task {self.name} has no embedded demo data; its data is 'official' or "
                    f"{self.file_format}"
                )
            held = split if split in self.demo else "test"
            return DEMO_FOLDER / self.demo[held], f"demo-{split}"
        path = Path(source)
        if not path.is_file():
            embedded = ", 'demo'" if self.demo else ""
            raise UserError(
                f"{path}: no such file; the data is 'official'{embedded} or {self.file_format}"
            )
        return path, path.stem

    @abstractmethod
    def read(self, path: Path, prefix: str) -> list[Record]:
        """The records of a file; one without an id of its own is called PREFIX-N."""

    @abstractmethod
    def messages(
        self,
        record: Mapping[str, Any],
        shots: Sequence[Record] = (),
        wording: Wording = DEFAULT_WORDING,
    ) -> list[Message]:
        """The chat up to where the answer begins; prompts that are asked as they are need no words
        around them.
        """

    def sample(self, records: Sequence[Record], limit: int | None) -> list[Record]:
        """The records that --limit takes: the first ones, or a stratified sample over `groups`."""
        if self.groups:
            return stratified_sample(records, self.groups, limit)
        return list(records[:limit])

    def score(self, record: Mapping[str, Any], response: str) -> dict[str, Any]:
        """Fields that an answer's record holds beside the response; none if a judge has to say."""
        return {}

    def answer(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
        """The record of one answer: what was asked, `output` and its score.

        `output` holds ANSWER_FIELDS but for the id.
        """
        kept = {name: record[name] for name in ("id", *self.fields)}
        return {**kept, **output, **self.score(record, output["response"])}

    def same_prompt(self, answer: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
        """Tell if an answer is to what `record` asks now."""
        names = (self.prompt_field, "gold")
        return all(answer.get(name) == record.get(name) for name in names)

    def read_answers(
        self, path: Path, asked: Iterable[Mapping[str, Any]] = ()
    ) -> dict[str, Record]:
        """The answers in a file by id, as `iterate_answers` yields them."""
        return {answer["id"]: answer for answer in self.iterate_answers(path, asked)}

    def iterate_answers(
        self, path: Path, asked: Iterable[Mapping[str, Any]] = ()
    ) -> Iterator[Record]:
        """Yield the answers in a file, none if there is no file; a half-written last line is
        passed over.

        UserError, naming line and field, unless each holds what `answer` made, and is to the
        question that `asked` holds under its id now, if any.
        """
        records = {record["id"]: record for record in asked}
        for line, answer in numbered_jsonl(path, may_be_cut=True) if path.exists() else ():
            where = f"{path}, line {line}"
            self._check_answer(answer, where)
            if not self.same_prompt(answer, records.get(answer["id"], answer)):
                raise UserError(
                    f"{where}: {answer['id']} was another question then; {other_run(path.parent)}"
                )
            yield answer

    def _check_answer(self, answer: Mapping[str, Any], where: str) -> None:
        fields = ANSWER_FIELDS | dict.fromkeys(self.fields, str) | dict(self.score_fields)
        try:
            for name, kind in fields.items():
                checked_field(answer, name, kind, where)
            if self.voted_field:
                checked_field(answer, self.voted_field, str | None, where)
        except UserError as error:
            raise UserError(f"{error}; {AGAIN}") from None
        if not all(type(token) is int and 0 <= token < 2**32 for token in answer["token_ids"]):
            raise UserError(f"{where}: 'token_ids' holds what is no token id; {AGAIN}")

    def facts(self, answer: Mapping[str, Any]) -> Record:
        """The values that the summary and the measures read of an answer; they are hashable.

        They are kept of every answer of a run, whose texts are on the disk alone.
        """
        return {name: answer[name] for name in ("finish_reason", *self.score_fields)}

    def summarise(self, answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The result part of the summary."""
        return self.summarise_facts([self.facts(answer) for answer in answers])

    def summarise_facts(self, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The result part of the summary, made of the `facts` of the answers: how many there are,
        the measures, and how many were cut off.
        """
        result: dict[str, Any] = {self.unit: len(answers)}
        for measure in self.measures:
            if measure.needs == "answer":
                *outer, last = measure.path
                place = result
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = measure.rate(answers)
        cut_off = sum(answer["finish_reason"] == "length" for answer in answers)
        return {**result, "cut_off": rate(cut_off, len(answers))}

    def describe(self, summary: Mapping[str, Any]) -> str:
        """The result in a line for the terminal."""
        cut_off = f"{summary['cut_off']['count']} cut off"
        main = self.measures[0]
        if main.needs != "answer":
            return f"{summary[self.unit]} answers, {cut_off}; judge.py judges them"
        share: Any = summary
        for key in main.path:
            share = share[key]
        return (
            f"{share['count']} of {share['total']} {main.counted}, {share['rate']:.1%} "
            f"(95 % interval {share['low']:.1%} to {share['high']:.1%}), {cut_off}"
        )

    def detail(self, record: Mapping[str, Any]) -> str:
        """A prompt's own facts for a reader, beside its text: "gold answer 72", "hazard S1"."""
        return ""


def stratified_sample(
    records: Sequence[Record], groups: Sequence[str], limit: int | None
) -> list[Record]:
    """Take `limit` records, each value of `groups` in its proportion; all if there are no more.

    Official files are sorted by hazard, so their first 100 prompts are all of one kind. Every n-th
    record of the list sorted by `groups` is a stratified sample instead, whose rates estimate those
    of the whole file. It needs no seed and keeps the file's order.
    """
    if limit is None or limit >= len(records):
        return list(records)
    if limit < 1:
        raise ValueError(f"limit is {limit}: take at least 1 of the {len(records)} records")
    by_kind = sorted(
        range(len(records)), key=lambda i: tuple(records[i][group] for group in groups)
    )
    middles = [(2 * i + 1) * len(records) // (2 * limit) for i in range(limit)]
    return [records[i] for i in sorted(by_kind[middle] for middle in middles)]
