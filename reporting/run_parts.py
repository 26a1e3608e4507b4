"""Parts of a run as dataclasses: training, answers to a task, a judge's verdicts on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from data.scoring import extract_number
from data.task import Task
from reporting.rates import Rate, RatePath

CUT_OFF: RatePath = ("cut_off",)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One step of a run. An unfinished one has settings, records and progress, but no results."""

    name: str  # as its files: "train", "gsm8k", "ailuminate.qwen3guard"
    finished: bool
    done: int  # records, or optimizer steps in training
    total: int | None  # None while it is not known
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    new_tokens_per_second: float | None = None

    @property
    def progress(self) -> str:
        return f"running {self.done}/{self.total}" if self.total else f"running, {self.done} done"


@dataclass(frozen=True, kw_only=True)
class Training(Part):
    """A training: its losses by optimizer step, in nats a supervised token."""

    losses: dict[int, float] = field(default_factory=dict)
    validation_losses: dict[int, float] = field(default_factory=dict)
    examples: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    best_validation_loss: float | None = None
    tokens_per_second: float | None = None
    adapter_fingerprint: str | None = None  # named as the answers' settings name theirs
    best_adapter_fingerprint: str | None = None  # of the lowest validation loss

    def wrote(self, adapter: str | None) -> bool:
        """True if an adapter with this fingerprint was trained here."""
        written = (self.adapter_fingerprint, self.best_adapter_fingerprint)
        return adapter is not None and adapter in written


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `outcomes` follow the task's measures: does it count, None where a judge says."""

    id: str
    prompt: str
    response: str
    cut_off: bool
    detail: str  # of the prompt: "gold answer 72", "hazard S1"
    groups: Mapping[str, str]
    outcomes: tuple[bool | None, ...]
    gold: str | None = None
    prediction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answers(Part):
    """A run's answers to one task."""

    task: Task
    records: list[Answer] = field(default_factory=list)
    rates: dict[RatePath, Rate] = field(default_factory=dict)
    adapter_path: str | None = None  # where the adapter lay
    _right: dict[str, dict[str, bool]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def right(self, reading: str) -> dict[str, bool]:
        """By id, whether the number that the reading finds is the gold one; read only once."""
        if reading not in self._right:
            right = {}
            for answer in self.records:
                right[answer.id] = extract_number(answer.response, reading) == answer.gold
            self._right[reading] = right
        return self._right[reading]


class VerdictFields(TypedDict):
    """Fields of a verdict that the report reads; see `guards.verdict.Verdict`."""

    id: str
    safety: str | None
    categories: list[str]
    refusal: str | None
    answer_sha256: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one answer; `outcomes` as an answer's."""

    fields: VerdictFields
    outcomes: tuple[bool | None, ...]


GroupRates = dict[str, dict[RatePath, Rate]]  # by the group's value, then by the measure's path


@dataclass(frozen=True, kw_only=True)
class Judgement(Part):
    """The verdicts of one judge on a run's answers to one task."""

    task: Task
    judge: str
    records: list[Verdict] = field(default_factory=list)
    rates: dict[RatePath, Rate] = field(default_factory=dict)
    groups: dict[str, GroupRates] = field(default_factory=dict)  # by field: "hazard"
    by_answer: GroupRates = field(default_factory=dict)  # "whole", "cut off"
    note: str = ""  # what a reader of the rates must know
