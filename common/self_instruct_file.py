"""The last step of self-instruct: from attempts to a training file, and how natural its answers are
to the model.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from common import cli
from common.likelihood import mean_log_likelihoods
from data.examples import build_example
from data.gsm8k import gsm8k_training_messages
from data.records import rewrite_records
from data.self_instruct import FALLBACKS, MODES, assemble, count_sources, training_file
from llama.model import Decoder
from llama.tokenizer import Tokenizer

SCORED = 256  # answers whose likelihood is measured, evenly spread over the file

Record = dict[str, Any]


def add_self_instruct_options(parser: argparse.ArgumentParser) -> None:
    """Add what generate.py --task self-instruct depends on."""
    group = parser.add_argument_group("self-instruct")
    group.add_argument("--mode", choices=MODES, default="rewrite", help="see above (%(default)s)")
    group.add_argument(
        "--samples",
        type=cli.positive_int,
        default=1,
        metavar="K",
        help="attempts at each question (%(default)s)",
    )
    group.add_argument(
        "--fallback",
        choices=FALLBACKS,
        default="gold",
        help="where no attempt has the right number: train on the gold answer, or drop the question (%(default)s)",
    )


def check_self_instruct_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> None:
    """An error of `parser` for several attempts that would all be the same."""
    if arguments.samples > 1 and (arguments.temperature == 0 or arguments.mode == "rewrite"):
        parser.error(
            f"--samples {arguments.samples} with --mode {arguments.mode} and --temperature {arguments.temperature:g}: "
            "several attempts are for --mode sample with a temperature above 0"
        )


def write_training_file(
    arguments: argparse.Namespace,
    records: Sequence[Record],
    attempts: dict[str, Record],
    model: Decoder,
    tokenizer: Tokenizer,
) -> Record:
    """Write the file and return what the summary says of it. UserError if no answer is left for
    it.
    """
    chosen = assemble(records, attempts, arguments.mode, arguments.fallback)
    path = training_file(arguments.run)
    rewrite_records(path, chosen)
    return {
        "training_file": str(path),
        "fallback": arguments.fallback,
        "records": len(chosen),
        "dropped": len(records) - len(chosen),
        "sources": count_sources(chosen),
        "log_likelihood": compare_likelihoods(records, chosen, model, tokenizer),
    }


def compare_likelihoods(
    records: Sequence[Record], chosen: Sequence[Record], model: Decoder, tokenizer: Tokenizer
) -> Record | None:
    """The model's mean log-likelihood, in nats a token, of gold and own answers to the same
    questions.

    Both stand where training puts them, behind the bare question. None if all answers are gold
    ones.
    """
    own = [record for record in chosen if record["source"] != "gold"]
    if not own:
        return None
    count = min(SCORED, len(own))
    own = [own[i * len(own) // count] for i in range(count)]
    gold = {record["id"]: record["answer"] for record in records}

    def mean(answers: Sequence[str]) -> float:
        pairs = zip(own, answers, strict=True)
        examples = [
            build_example(tokenizer, gsm8k_training_messages(r["question"], text))
            for r, text in pairs
        ]
        return sum(mean_log_likelihoods(model, examples)) / count

    return {
        "answers": count,
        "gold": mean([gold[record["id"]] for record in own]),
        "own": mean([record["answer"] for record in own]),
    }


def describe_training_file(summary: Record) -> str:
    """What came of the attempts, and how likely the model finds its answers beside the gold
    ones.
    """
    training, right = summary["training"], summary["right"]
    sources = ", ".join(f"{count} {source}" for source, count in training["sources"].items())
    text = f"{right['count']} of {right['total']} attempts right; {training['training_file']}: {sources}"
    if training["dropped"]:
        text += f", {training['dropped']} dropped"
    if likelihood := training["log_likelihood"]:
        text += (
            f"; mean log-likelihood of {likelihood['answers']} answers {likelihood['own']:.3f} nats a token, "
            f"of the gold ones {likelihood['gold']:.3f}"
        )
    return text
