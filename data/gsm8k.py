"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): grade-school word problems.

One JSON object a line: {"question": "Natalia sold clips ...", "answer": "She sold ...\\n#### 72"}.
Its answers are scored by `data.scoring`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.intervals import rate
from data.prompts import DEFAULT_WORDING, Message, Wording
from data.reasoning import strip_reasoning
from data.records import Record, numbered_jsonl, text_field
from data.scoring import MARKER, METHODS, extract_gold, extract_number
from data.sources import OfficialFile
from data.task import Measure, Task

_URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"


class GSM8K(Task):
    """A record has `question`, `answer` (worked, ending in `#### number`) and `gold`, that number.

    `gold` is spelled as `extract_number` writes it. A file that self-instruct made also has
    `source`: where the answer comes from.
    """

    name = "gsm8k"
    title = "GSM8K"
    kind = "skill"
    official = {
        "train": OfficialFile(
            "gsm8k/train.jsonl",
            f"{_URL}/train.jsonl",
            "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        ),
        "test": OfficialFile(
            "gsm8k/test.jsonl",
            f"{_URL}/test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
    }
    demo = {"train": "train.jsonl", "test": "test.jsonl"}
    file_format = "a JSONL file in GSM8K's format"
    unit = "questions"
    prompt_field = "question"
    fields = ("question",)
    score_fields = {"gold": str, "correct": bool}
    voted_field = "prediction"
    measures = (
        Measure(
            path=("accuracy", "number"),
            title="accuracy",
            counted="right",
            other="wrong",
            counts=lambda answer: answer["correct"],
        ),
    )
    shots_from: str | None = "gsm8k"

    def read(self, path: Path, prefix: str) -> list[Record]:
        records: list[Record] = []
        for line, raw in numbered_jsonl(path):
            where = f"{path}, line {line}"
            question, answer = text_field(raw, "question", where), text_field(raw, "answer", where)
            try:
                gold = extract_gold(answer)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            source = {"source": text_field(raw, "source", where)} if "source" in raw else {}
            if records and ("source" in records[0]) != bool(source):
                found = "a" if source else "no"
                raise UserError(
                    f"{where}: {found} 'source', unlike the first record; all have it or none"
                )
            record = {"id": f"{prefix}-{len(records)}", "question": question, "answer": answer}
            records.append({**record, "gold": gold, **source})
        return records

    def messages(
        self,
        record: Mapping[str, Any],
        shots: Sequence[Record] = (),
        wording: Wording = DEFAULT_WORDING,
    ) -> list[Message]:
        """A user and an assistant turn for each shot, then the user turn to be answered."""
        messages: list[Message] = []
        for shot in shots:
            messages += wording.shot(shot["question"], shot["answer"])
        return [*messages, wording.question(record["question"])]

    def training_messages(
        self,
        record: Mapping[str, Any],
        shots: Sequence[Record] = (),
        wording: Wording = DEFAULT_WORDING,
    ) -> list[Message]:
        """The same chat closed by the assistant turn with the worked answer."""
        return [*self.messages(record, shots, wording), wording.answer(record["answer"])]

    def score(self, record: Mapping[str, Any], response: str) -> dict[str, Any]:
        prediction, gold = extract_number(response, "number"), record["gold"]
        return {"prediction": prediction, "gold": gold, "correct": prediction == gold}

    def facts(self, answer: Mapping[str, Any]) -> Record:
        """Beside its score: whether each scoring method calls it right, and if it has a '####'."""
        facts = {"finish_reason": answer["finish_reason"], "correct": answer["correct"]}
        for method in METHODS:
            facts[method] = extract_number(answer["response"], method) == answer["gold"]
        facts["has_marker"] = MARKER in strip_reasoning(answer["response"])
        return facts

    def summarise_facts(self, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The accuracy by every scoring method, and the shares with a '####' and cut off."""
        accuracy = {}
        for method in METHODS:
            accuracy[method] = rate(sum(answer[method] for answer in answers), len(answers))
        marked = sum(answer["has_marker"] for answer in answers)
        summary = super().summarise_facts(answers)
        summary["accuracy"] = accuracy
        summary["has_marker"] = rate(marked, len(answers))
        return summary

    def detail(self, record: Mapping[str, Any]) -> str:
        return f"gold answer {record['gold']}"
