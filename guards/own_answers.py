"""The base's own answers to other prompts, to be mixed into the training of a skill.

A few per cent of refusals and of plain answers to harmless prompts keep a tuned model safe without
making it refuse more (after SafeInstruct, Bianchi et al. 2023, https://arxiv.org/abs/2309.07875;
none of its data is used). The answers are the untouched model's, so that they change it least. Kept
are refusals of the embedded hazard prompts and answers to the embedded look-alikes, as the refusal
phrases tell them apart; what is tested on is never among the prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.anchors import anchor_sets, load_anchors
from data.prompts import DEFAULT_WORDING, Message, Wording
from data.records import Record
from data.task import Measure, Split, Task
from guards.refusal_phrases import RefusalPhrases

PROMPTS = "demo+look-alikes"
REFUSED, ANSWERED = "refused", "answered"
EXPECTED = {"ailuminate": REFUSED, "xstest": ANSWERED}  # by the task of the prompts


def training_file(run: Path) -> Path:
    """The file in which the kept answers are left for train.py --data."""
    return run / "own-answers.train.jsonl"


def is_kept(answer: Mapping[str, Any]) -> bool:
    """Tell if an answer is to be trained on: as expected of its prompt, and not cut off."""
    as_expected = answer["refused"] == (answer["expected"] == REFUSED)
    return as_expected and answer["finish_reason"] == "stop" and bool(answer["response"].strip())


class OwnAnswers(Task):
    """A record has `prompt` and `expected`, "refused" or "answered".

    It tests nothing, so it is no task of the registry: generate.py offers it beside those.
    """

    name = "own-answers"
    title = "Own answers"
    kind = "safety"
    official = {}
    file_format = "none: its prompts are embedded"
    unit = "prompts"
    prompt_field = "prompt"
    fields = ("prompt", "expected")
    score_fields = {"refused": bool}
    groups = ("expected",)
    measures = (
        Measure(path=("kept",), title="kept", counted="kept", other="left out", counts=is_kept),
    )

    @property
    def official_name(self) -> str:
        return "demo"

    def load(self, source: str | Path = "demo", split: Split = "test") -> list[Record]:
        """The embedded hazard prompts and harmless look-alikes. UserError for any other source."""
        if source not in ("official", "demo"):
            raise UserError(
                f"--task own-answers with --data {source}: its answers are trained on, so its "
                "prompts are the embedded ones alone; leave --data out"
            )
        records = []
        for task, name in anchor_sets(PROMPTS):
            for prompt in load_anchors(task, name):
                about = {"prompt": prompt["prompt"], "expected": EXPECTED[task.name]}
                records.append({"id": f"{task.name}-{prompt['id']}", **about})
        return records

    def read(self, path: Path, prefix: str) -> list[Record]:
        return self.load(path)

    def facts(self, answer: Mapping[str, Any]) -> Record:
        """The values that `is_kept` reads."""
        fields = ("expected", "response")
        return super().facts(answer) | {name: answer[name] for name in fields}

    def messages(
        self,
        record: Mapping[str, Any],
        shots: Sequence[Record] = (),
        wording: Wording = DEFAULT_WORDING,
    ) -> list[Message]:
        """The prompt as it is, in a single user turn."""
        return [{"role": "user", "content": record["prompt"]}]

    def score(self, record: Mapping[str, Any], response: str) -> dict[str, Any]:
        return {"refused": RefusalPhrases().is_refusal(response)}


def kept_chats(answers: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The kept answers as chats to train on. UserError if none is kept."""
    chats = []
    for answer in answers:
        if is_kept(answer):
            question = {"role": "user", "content": answer["prompt"]}
            reply = {"role": "assistant", "content": answer["response"].strip()}
            chats.append({"messages": [question, reply], "expected": answer["expected"]})
    if not chats:
        raise UserError(
            f"none of the {len(answers)} own answers is kept: no hazard prompt is refused and no "
            "harmless one answered to its end; take a longer --max-new-tokens or another model"
        )
    return chats
