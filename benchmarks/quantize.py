"""Memory, speed and answers with 8-bit weights: python -m benchmarks.quantize

The same model with its weights as stored and with `quantize="int8"`, each in a process of its own:
memory, greedy answers to GSM8K test questions with 3 fixed shots, and LoRA steps over 4 training
questions with one fixed shot. Then both read the gold answers of the same test questions, and their
logits are compared wherever a token is predicted.
"""

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.engines import peak_memory
from common.cli import run_script
from common.command_line import parse_settings
from common.options import option, positive_int
from data.examples import IGNORE_INDEX, Example, build_example
from data.gsm8k import GSM8K
from data.scoring import extract_number
from llama import generate, load_model, load_tokenizer
from llama.decoding import Output
from llama.model import Decoder
from lora import LoRAConfig, inject_lora
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions

SCHEMES = (None, "int8")
SHOTS, STEPS, STEP_EXAMPLES = 3, 3, 4
COLUMNS = (
    "weights",
    "parameters",
    "answering, peak",
    "with training, peak",
    "one prompt, tokens/s",
    "all",
    "examples/s",
)
Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """The options of the benchmark."""

    model: str = option("smollm2", "local folder, Hub id or alias (%(default)s)")
    dtype: str = option("float32", "of all that is not quantised (%(default)s)")
    device: str = option("cpu", "(%(default)s)")
    data: str = option("gsm8k", "gsm8k, demo or a file (%(default)s)")
    questions: int = option(64, "test questions (%(default)s)", parse=positive_int, metavar="N")
    max_new_tokens: int = option(256, "of an answer (%(default)s)", parse=positive_int, metavar="N")
    batch_size: int = option(
        32, "sequences in progress at one time (%(default)s)", parse=positive_int, metavar="N"
    )


def gold_examples(
    settings: QuantizationSettings, records: Records, shots: Records
) -> list[Example]:
    """The records' chats, closed by their gold answers."""
    tokenizer = load_tokenizer(settings.model)
    examples = []
    for record in records:
        messages = GSM8K().training_messages(record, shots)
        examples.append(build_example(tokenizer, messages))
    return examples


def measure(settings: QuantizationSettings, scheme: str | None) -> dict[str, Any]:
    """Bytes of the parameters, tokens and their rate, examples a second, and the peak memory."""
    pool = GSM8K().load(settings.data, "train")
    records = GSM8K().load(settings.data, "test")[: settings.questions]
    model = load_model(settings.model, settings.dtype, settings.device, scheme)
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    result: dict[str, Any] = {"parameters": sum(sizes)}
    result |= answer(settings, model, records, pool[:SHOTS])
    result["answering"] = peak_memory()
    examples = gold_examples(settings, pool[-STEPS * STEP_EXAMPLES :], pool[:1])
    return result | train(model, examples)


def answer(
    settings: QuantizationSettings, model: Decoder, records: Records, shots: Records
) -> dict[str, Any]:
    """The greedy answers, their numbers, and tokens a second for one prompt and for all."""
    tokenizer = load_tokenizer(settings.model)
    prompts = []
    for record in records:
        prompts.append(tokenizer.encode_chat(GSM8K().messages(record, shots)))
    result: dict[str, Any] = {}
    outputs: list[Output] = []
    for name, some in (("one prompt", prompts[:1]), ("all prompts", prompts)):
        start = time.perf_counter()
        outputs = generate(
            model, some, settings.max_new_tokens, tokenizer.stop_ids, settings.batch_size
        )
        seconds = time.perf_counter() - start
        result[name] = sum(len(output.token_ids) for output in outputs) / seconds
    texts = [tokenizer.decode(output.token_ids) for output in outputs]
    numbers = [extract_number(text, "number") for text in texts]
    golds = [record["gold"] for record in records]
    right = sum(number == gold for number, gold in zip(numbers, golds, strict=True))
    return result | {"texts": texts, "numbers": numbers, "right": right}


def train(model: Decoder, examples: list[Example]) -> dict[str, float]:
    """Examples a second after the first step, and the peak memory of everything so far."""
    torch.manual_seed(0)
    inject_lora(model, LoRAConfig())
    trainer = Trainer(model, TrainerOptions(STEPS))
    with packed_weights(model):
        trainer.step(examples[:STEP_EXAMPLES])
        start = time.perf_counter()
        for begin in range(STEP_EXAMPLES, len(examples), STEP_EXAMPLES):
            trainer.step(examples[begin : begin + STEP_EXAMPLES])
    rate = (STEPS - 1) * STEP_EXAMPLES / (time.perf_counter() - start)
    return {"examples": rate, "peak": peak_memory()}


@torch.inference_mode()
def logit_changes(settings: QuantizationSettings) -> str:
    """The difference between both models' logits where a token of a gold answer is predicted."""
    models = []
    for scheme in SCHEMES:
        models.append(load_model(settings.model, settings.dtype, settings.device, scheme))
    records = GSM8K().load(settings.data, "test")[: settings.questions]
    shots = GSM8K().load(settings.data, "train")[:SHOTS]
    changes, same = [], []
    for example in gold_examples(settings, records, shots):
        sources = [i - 1 for i, label in enumerate(example.labels) if label != IGNORE_INDEX]
        input_ids = torch.tensor([example.input_ids], device=settings.device)
        plain, small = (model.logits(model(input_ids)[0, sources]).float() for model in models)
        changes.append((plain - small).abs().amax(-1))
        same.append(plain.argmax(-1) == small.argmax(-1))
    change, kept = torch.cat(changes), torch.cat(same).float().mean().item()
    return (
        f"Over {len(change)} tokens of gold answers: the largest change of a logit "
        f"{change.max():.2f}, the median of each token's largest {change.median():.2f}; the "
        f"likeliest token stays for {kept:.1%}."
    )


def table_row(settings: QuantizationSettings, scheme: str | None, result: dict[str, Any]) -> str:
    cells = [scheme or settings.dtype]
    cells += [f"{result[name] / 2**30:.2f} GiB" for name in ("parameters", "answering", "peak")]
    cells += [f"{result[name]:.2f}" for name in ("one prompt", "all prompts", "examples")]
    return f"| {' | '.join(cells)} |"


def benchmark(settings: QuantizationSettings) -> None:
    """Measure both kinds of weights and print the table and what changes."""
    results = []
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for scheme in SCHEMES:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            result = process.apply(measure, (settings, scheme))
        print(table_row(settings, scheme, result), flush=True)
        results.append(result)
    plain, small = results
    print(f"\n{logit_changes(settings)}")
    for what, name in (("text", "texts"), ("number", "numbers")):
        changed = sum(a != b for a, b in zip(plain[name], small[name], strict=True))
        print(f"Answers with another {what}: {changed} of {len(plain[name])}.")
    print(f"Right: {plain['right']} before, {small['right']} after.")


def main(argv: list[str] | None = None) -> int:
    return run_script(benchmark, parse_settings(QuantizationSettings, __doc__, argv))


if __name__ == "__main__":
    sys.exit(main())
