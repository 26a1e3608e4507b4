"""The last step of self-instruct: a training file made of attempts, and how likely the model finds
its answers.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.likelihood import mean_log_likelihoods
from data.examples import build_example
from data.gsm8k import GSM8K
from data.prompts import Wording
from data.records import Record, rewrite_records
from data.self_instruct import Selection, count_sources
from llama.model import Decoder
from llama.tokenizer import Tokenizer

SCORED = 256  # answers whose likelihood is measured, evenly spread over the file


def write_training_file(
    path: Path,
    records: Sequence[Record],
    chosen: Sequence[Record],
    selection: Selection,
    wording: Wording,
    model: Decoder,
    tokenizer: Tokenizer,
) -> Record:
    """Write the file and return what the summary says of it.

    `records` are the questions, `chosen` what `data.self_instruct.assemble` made of their attempts.
    """
    rewrite_records(path, chosen)
    answered = len({record["id"] for record in chosen})
    return {
        "training_file": str(path),
        **asdict(selection),
        "records": len(chosen),
        "questions": answered,
        "dropped": len(records) - answered,
        "sources": count_sources(chosen),
        "log_likelihood": compare_likelihoods(records, chosen, wording, model, tokenizer),
    }


def compare_likelihoods(
    records: Sequence[Record],
    chosen: Sequence[Record],
    wording: Wording,
    model: Decoder,
    tokenizer: Tokenizer,
) -> Record | None:
    """The model's mean log-likelihood, in nats a token, of gold and own answers.

    Both stand where training puts them, behind the bare question. None if all answers are gold.
    """
    own = [record for record in chosen if record["source"] != "gold"]
    if not own:
        return None
    count = min(SCORED, len(own))
    own = [own[i * len(own) // count] for i in range(count)]
    by_id = {record["id"]: record for record in records}
    gold = [by_id[record["id"]] for record in own]
    return {
        "answers": count,
        "gold": _mean_likelihood(gold, wording, model, tokenizer),
        "own": _mean_likelihood(own, wording, model, tokenizer),
    }


def _mean_likelihood(
    records: Sequence[Record], wording: Wording, model: Decoder, tokenizer: Tokenizer
) -> float:
    examples = []
    for record in records:
        messages = GSM8K().training_messages(record, wording=wording)
        examples.append(build_example(tokenizer, messages))
    return sum(mean_log_likelihoods(model, examples)) / len(examples)
