"""Self-instruct: training answers in the model's own words, in GSM8K's format.

What a model is trained on counts, and so does how far that is from what it would have said: answers
close to its own distribution change it less (SDFT, Yang et al. 2024,
https://arxiv.org/abs/2402.13669). `rewrite` shows the model the gold answer and asks for its own
version, `sample` lets it solve the problem several times. Either is kept only if it comes to an end
by itself and has the right number.

Of several right samples one is kept, or every one that reasons in another way, which is told by the
list of its equations (RFT, Yuan et al. 2023, https://arxiv.org/abs/2308.01825). A second round,
with samples of the model that was trained on those of the first, is up to recipes (TPT,
https://arxiv.org/abs/2504.18116). Questions that no sample solves can be rewritten, as STaR has the
answer explained that it shows (Zelikman et al. 2022, https://arxiv.org/abs/2203.14465).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.attempts import by_question, plan_attempts, split_id
from data.equations import equations
from data.gsm8k import GSM8K
from data.prompts import DEFAULT_WORDING, Message, Wording
from data.reasoning import strip_reasoning
from data.records import Record
from data.scoring import MARKER, extract_number
from data.task import Measure, Split, Task

MODES = ("rewrite", "sample")
KEEPS = ("first", "distinct")
FALLBACKS = ("gold", "drop", "rewrite")
READINGS = ("number", "flexible")


@dataclass(frozen=True)
class Selection:
    """The right attempts to keep of a question, and what stands in where there is none."""

    keep: str = "first"  # of KEEPS
    per_question: int | None = None  # the most to keep of distinct ones; None: all
    fallback: str = "gold"  # of FALLBACKS
    reading: str = "number"  # of READINGS: where an attempt has its answer


def training_file(run: Path) -> Path:
    """The file in which self-instruct leaves what train.py --data reads."""
    return run / "self-instruct.train.jsonl"


class SelfInstruct(GSM8K):
    """GSM8K's training questions, each attempted `samples` times under the ids ID#0, ID#1, ...

    It tests nothing, so it is no task of the registry: generate.py offers it beside those.
    """

    name = "self-instruct"
    title = "Self-instruct"
    unit = "attempts"
    measures = (
        Measure(
            path=("right",),
            title="right",
            counted="right",
            other="wrong",
            counts=lambda attempt: attempt["correct"],
        ),
    )

    def __init__(self, mode: str = "rewrite", samples: int = 1) -> None:
        self.mode, self.samples = mode, samples
        self.shots_from = GSM8K.name if mode == "sample" else None

    @property
    def official_name(self) -> str:
        return GSM8K.name

    def load(self, source: str | Path = "official", split: Split = "train") -> list[Record]:
        """Every attempt at the training records of `source`; there is no other split."""
        return plan_attempts(GSM8K().load(source, "train"), self.samples)

    def sample(self, records: Sequence[Record], limit: int | None) -> list[Record]:
        """The attempts at the first `limit` questions."""
        return list(records[: None if limit is None else limit * self.samples])

    def questions(self, attempts: Sequence[Record]) -> list[Record]:
        """The training records that `attempts` are attempts at, under their own ids."""
        records = []
        for attempt in attempts:
            name, number = split_id(attempt["id"])
            if number == 0:
                records.append({**attempt, "id": name})
        return records

    def messages(
        self,
        record: Mapping[str, Any],
        shots: Sequence[Record] = (),
        wording: Wording = DEFAULT_WORDING,
    ) -> list[Message]:
        if self.mode == "rewrite":
            return rewrite_messages(record["question"], record["answer"], wording)
        return super().messages(record, shots, wording)

    def summarise_facts(self, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The number of attempts, of those that are right, and of those that were cut off."""
        return Task.summarise_facts(self, answers)

    def describe(self, summary: Mapping[str, Any]) -> str:
        """The outcome in a line, with the model's likelihood of its own answers and the gold ones.

        `summary["training"]` is what `common.self_instruct_file` says of the training file.
        """
        training = summary["training"]
        right = training.get("right") or summary["right"]
        sources = ", ".join(f"{count} {source}" for source, count in training["sources"].items())
        text = f"{right['count']} of {right['total']} attempts right; "
        text += f"{training['training_file']}: {sources}"
        if training["records"] > training["questions"]:
            text += f", to {training['questions']} questions"
        if training["dropped"]:
            text += f", {training['dropped']} dropped"
        if likelihood := training["log_likelihood"]:
            text += (
                f"; mean log-likelihood of {likelihood['answers']} answers "
                f"{likelihood['own']:.3f} nats a token, of the gold ones {likelihood['gold']:.3f}"
            )
        return text


class RewriteUnsolved(SelfInstruct):
    """The gold answers of some questions, to be rewritten: those that no sample has solved."""

    name = "self-instruct-rewrite"
    title = "Self-instruct, rewriting"

    def __init__(self, unsolved: Collection[str]) -> None:
        super().__init__("rewrite")
        self.unsolved = unsolved  # ids of questions

    def sample(self, records: Sequence[Record], limit: int | None) -> list[Record]:
        """One attempt at each unsolved question."""
        return [record for record in records if split_id(record["id"])[0] in self.unsolved]


def rewrite_messages(
    question: str, answer: str, wording: Wording = DEFAULT_WORDING
) -> list[Message]:
    """The chat that asks for the gold answer in the model's own words."""
    content = (
        "Here is a problem with a reference answer. Use the reference answer as a guide and write "
        "your own answer to the problem, in your own words.\n\n"
        f"{wording.question_prefix}{question}\n\nReference answer: {answer}\n\n"
        f"Your own answer: {wording.instruction}".rstrip()
    )
    return [{"role": "user", "content": content}]


def own_answer(
    attempt: Mapping[str, Any], answer_prefix: str = "A:", reading: str = "number"
) -> str | None:
    """The attempt as a training answer that ends in `#### N`; None if it is not to be trained on.

    `answer_prefix`, which training puts in front of every answer, is taken off. The attempt must
    have ended by itself, N must be the gold number, and it must work towards N: a bare `#### N`
    repeats what the prompt of `rewrite` shows. Small models like to add a remark behind the number,
    which is cut off: trained on, it would come back in every answer. An attempt with several `####`
    is none of the format either. By the reading "flexible" an attempt without any `####` has its
    answer in the last number, and gets `#### N` added: some models work only where they are not
    asked for the format.
    """
    text = strip_reasoning(attempt["response"]).strip()
    text = text.removeprefix(answer_prefix.strip()).strip()
    if reading == "flexible" and MARKER not in text:
        text = f"{text}\n{MARKER} {extract_number(text, 'flexible')}"
    steps, marker, tail = text.partition(MARKER)
    number = extract_number(marker + tail.strip().partition("\n")[0], "number")
    if number != attempt["gold"] or MARKER in tail or attempt["finish_reason"] != "stop":
        return None
    worked = any(character.isalnum() for character in steps)
    if reading == "flexible":  # a lone number is no work
        worked = any(character.isalpha() for character in steps) or bool(equations(steps))
    if not worked:
        return None
    return f"{steps.rstrip()}\n{MARKER} {number}"


def assemble(
    records: Sequence[Record],
    attempts: Mapping[str, Record],
    mode: str,
    selection: Selection,
    answer_prefix: str = "A:",
    rewrites: Mapping[str, Record] | None = None,
) -> list[Record]:
    """The training file's records, {"id", "question", "answer", "source"}, in the order of
    `records`; a question has several if `selection` keeps distinct attempts.

    Where no attempt passes, the selection's fallback stands in: the gold answer, nothing, or what
    passes of `rewrites`, attempts by the mode "rewrite". UserError if nothing is left at all.
    """
    chosen: list[Record] = []
    tried, rewritten = by_question(attempts), by_question(rewrites or {})
    for record in records:
        answers, source = (
            select_answers(tried.get(record["id"], []), selection, answer_prefix),
            mode,
        )
        if not answers and selection.fallback == "gold":
            answers, source = [record["answer"]], "gold"
        elif not answers and selection.fallback == "rewrite":
            first = Selection(reading=selection.reading)
            answers = select_answers(rewritten.get(record["id"], []), first, answer_prefix)
            source = "rewrite"
        about = {"id": record["id"], "question": record["question"]}
        chosen += [{**about, "answer": answer, "source": source} for answer in answers]
    if not chosen:
        raise UserError(
            f"none of the {len(records)} answers has the right number, so nothing is left to train "
            "on; use --fallback gold, a longer --max-new-tokens, or --mode sample with more "
            "--samples"
        )
    return chosen


def select_answers(
    attempts: Sequence[Record], selection: Selection, answer_prefix: str = "A:"
) -> list[str]:
    """The answers to train on among the attempts at one question, in the attempts' order."""
    kept: dict[tuple[str, ...], str] = {}  # by the equations
    for attempt in attempts:
        answer = own_answer(attempt, answer_prefix, selection.reading)
        if answer is not None:
            kept.setdefault(equations(answer), answer)
    most = 1 if selection.keep == "first" else selection.per_question
    return list(kept.values())[:most]


def count_right(attempts: Iterable[Record], selection: Selection, answer_prefix: str = "A:") -> int:
    """The number of attempts that could be trained on by the selection's reading."""
    right = 0
    for attempt in attempts:
        right += own_answer(attempt, answer_prefix, selection.reading) is not None
    return right


def unsolved(
    records: Sequence[Record],
    attempts: Mapping[str, Record],
    selection: Selection,
    answer_prefix: str = "A:",
) -> set[str]:
    """The ids of the questions that no attempt solves, as `own_answer` sees it."""
    tried = by_question(attempts)
    names = set()
    for record in records:
        if not select_answers(tried.get(record["id"], []), selection, answer_prefix):
            names.add(record["id"])
    return names


def count_sources(records: Sequence[Record]) -> dict[str, int]:
    """The number of records from each source; empty for files that do not say."""
    return dict(Counter(record["source"] for record in records if "source" in record).most_common())
