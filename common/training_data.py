"""Data that train.py trains and validates on: records, shots and the questions that are held
out.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from common.errors import UserError
from common.ranks import rank
from common.scale_choice import MIN_EXAMPLES
from common.shots import make_selector, report_near_duplicates
from common.training_settings import TrainingSettings
from common.training_sources import Source, mixture_counts, read_sources
from common.tuned_model import written_fingerprint
from data.anchors import anchor_sets, find_tested_set, load_anchors
from data.examples import (
    Example,
    build_chat_examples,
    build_example,
    choose_held_out,
    question_key,
)
from data.few_shot import FewShotSampler
from data.gsm8k import GSM8K
from data.mixture import parse_mixture
from data.prompts import Message, with_system
from data.records import Record, read_json
from data.registry import TASKS
from data.sources import is_official
from data.task import stratified_sample
from llama.tokenizer import Tokenizer
from lora.adapter import adapter_fingerprint

DEFAULT_VALIDATION = 64
# of more prompts, so many are taken: answering and measuring them all would rival the training
MAX_ANCHORS = 128

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """Tokenised examples in the order of the file, and the keys of the questions held out."""

    ids: list[str]
    keys: list[str]  # of the questions, as `question_key` makes them
    examples: list[Example]
    held_out: set[str]
    mixture: list[Record] = field(default_factory=list)  # what was taken of each of several files

    @property
    def training(self) -> list[Example]:
        return self._select(held_out=False)

    @property
    def validation(self) -> list[Example]:
        return self._select(held_out=True)

    def _select(self, held_out: bool) -> list[Example]:
        pairs = zip(self.keys, self.examples, strict=True)
        return [example for key, example in pairs if (key in self.held_out) == held_out]

    @property
    def examples_sha256(self) -> str:
        token_ids = [[example.input_ids, example.labels] for example in self.examples]
        return _sha256(token_ids)

    @property
    def held_out_sha256(self) -> str | None:
        return _sha256(sorted(self.held_out)) if self.held_out else None


def _sha256(value: Any) -> str:
    """The first 12 hexadecimal digits of the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def load_training_data(
    settings: TrainingSettings, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype
) -> TrainingData:
    """Read, mix, split and tokenise what `settings` name. The embedder of shots runs on `device`.

    Conversations are trained on in every assistant turn and held out by their first user turn.
    """
    sources = read_sources(settings)
    _check_chat_options(settings, sources)
    questions = [source.opening(record) for source in sources for record in source.taken]
    held_out = choose_validation(settings, questions)
    selector = _make_selector(settings, sources, held_out, device, dtype)
    data = TrainingData(
        ids=[], keys=[], examples=[], held_out=held_out, mixture=mixture_counts(sources)
    )
    for source in sources:
        for record in _with_progress(source.taken):
            if source.is_chats:
                examples = _chat_examples(settings, tokenizer, record["messages"])
            else:
                examples = [_question_example(settings, tokenizer, record, selector)]
            for example in examples:
                data.ids.append(record["id"])
                data.keys.append(question_key(source.opening(record)))
                data.examples.append(example)
    return data if settings.max_length is None else _leave_out_long(data, settings.max_length)


def _check_chat_options(settings: TrainingSettings, sources: Sequence[Source]) -> None:
    """UserError for options that chats, or chats alone, do not go with."""
    chats = [source.part.name for source in sources if source.is_chats]
    if chats and (settings.loss != "answer" or not settings.system_header):
        raise UserError(
            f"{chats[0]}: chats are trained on with --loss answer and the template's own "
            "system header alone"
        )
    if settings.shots and len(chats) == len(sources):
        raise UserError(
            f"--shots {settings.shots} with the chats in {chats[0]}: shots are for questions "
            "with worked answers; leave --shots out"
        )


def _question_example(
    settings: TrainingSettings, tokenizer: Tokenizer, record: Record, selector: FewShotSampler
) -> Example:
    messages = GSM8K().training_messages(record, selector.select(record), settings.wording())
    messages = with_system(messages, settings.system)
    return build_example(tokenizer, messages, settings.loss, settings.system_header)


def _chat_examples(
    settings: TrainingSettings, tokenizer: Tokenizer, messages: list[Message]
) -> list[Example]:
    if messages[0]["role"] != "system":
        messages = with_system(messages, settings.system)
    return build_chat_examples(tokenizer, messages)


def _leave_out_long(data: TrainingData, max_length: int) -> TrainingData:
    """The examples of at most `max_length` tokens. UserError if none is as short as that."""
    kept = replace(data, ids=[], keys=[], examples=[])
    for name, key, example in zip(data.ids, data.keys, data.examples, strict=True):
        if len(example.input_ids) <= max_length:
            kept.ids.append(name)
            kept.keys.append(key)
            kept.examples.append(example)
    if not kept.training:
        shortest = min(len(example.input_ids) for example in data.examples)
        raise UserError(
            f"--max-length {max_length} leaves nothing to train on: the shortest example has "
            f"{shortest} tokens"
        )
    left_out = len(data.examples) - len(kept.examples)
    print(f"--max-length {max_length}: {left_out} of {len(data.examples)} examples left out")
    return kept


def _with_progress(records: Sequence[T]) -> Iterable[T]:
    return tqdm(records, desc="tokenising", leave=False, disable=rank() > 0 or None)


def _make_selector(
    settings: TrainingSettings,
    sources: Sequence[Source],
    held_out: set[str],
    device: torch.device,
    dtype: torch.dtype,
) -> FewShotSampler:
    """The choice of shots for the questions; they come from --shots-data or the first such file."""
    questions = [source for source in sources if not source.is_chats]
    records = [record for source in questions for record in source.taken]
    pool = questions[0].available if questions else []
    if settings.shots_data:
        pool = GSM8K().load(settings.shots_data, "train")
    # With --loss all, the answers of shots are trained on.
    pool = [record for record in pool if question_key(record["question"]) not in held_out]
    if settings.dry_run and settings.shot_selection == "similar":
        print("--dry-run: fixed shots in place of similar ones, whose embedding takes long")
        settings = replace(settings, shot_selection="fixed")
    selector = make_selector(settings, pool, records, device, dtype)
    if not settings.dry_run:
        report_near_duplicates(settings, selector, records, settings.run / "train.duplicates.json")
    return selector


def choose_validation(settings: TrainingSettings, questions: list[str]) -> set[str]:
    """The keys of the questions to hold out: --validation of them, by default 64 or a tenth.

    With --init-adapter, only questions that its training held out as well.
    """
    count = settings.validation
    if count is None:
        count = min(DEFAULT_VALIDATION, len(questions) // 10)
    earlier: set[str] = set()
    if settings.init_adapter and count:
        earlier = held_out_by(settings.init_adapter)
        if not earlier:
            print(
                f"{settings.init_adapter} does not say which questions its training held out: "
                "it may have been trained on some of those held out now"
            )
    return choose_held_out(questions, count, earlier)


def held_out_by(adapter: Path) -> set[str]:
    """The keys that the training of the adapter held out; none where no summary beside it tells."""
    summary_path = adapter.parent / "train.summary.json"
    if not summary_path.is_file():
        return set()
    summary = read_json(summary_path)
    held_out = summary.get("held_out")
    same = written_fingerprint(summary, adapter) == adapter_fingerprint(adapter)
    return set(map(str, held_out)) if same and isinstance(held_out, list) else set()


def load_anchor_chats(source: str, system: str | None = None) -> list[list[Message]]:
    """The chats of --kl-prompts, at most MAX_ANCHORS of each set, under the system prompt.

    `source` names the sets as `data.anchors.anchor_sets` takes them.
    """
    chats = []
    for task, name in anchor_sets(source):
        records = load_anchors(task, name)
        if task.groups:
            records = stratified_sample(records, task.groups, MAX_ANCHORS)
        for record in records[:MAX_ANCHORS]:
            chats.append(with_system(task.messages(record), system))
    print(
        f"{len(chats)} prompts of {source} to measure the divergence from the base on", flush=True
    )
    return chats


def refuse_test_prompts(source: str) -> None:
    """UserError if the prompts that training is to stay near the base on are tested on."""
    if find_tested_set(source) is not None:
        raise UserError(
            f"--kl-weight with --kl-prompts {source} would train on the prompts that are tested on"
        )


def check_scale_data(settings: TrainingSettings, data: TrainingData) -> None:
    """UserError if --choose-scale has too few questions to choose by, or those that are tested."""
    held_out = len(data.validation)
    if held_out < MIN_EXAMPLES:
        raise UserError(
            f"--choose-scale with {held_out} examples held out: it needs at least {MIN_EXAMPLES} "
            "of the training data that are not trained on; raise --validation"
        )
    for part in parse_mixture(settings.data):
        if any(is_official(part.name, task.official["test"]) for task in TASKS.values()):
            raise UserError(
                f"--choose-scale with --data {part.name}: a scale chosen on what is tested would "
                "be tested on what chose it; choose it on training questions"
            )
