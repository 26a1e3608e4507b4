"""What 8-bit weights save, cost and change: python -m benchmarks.quantize

The same model with its weights as stored and with `quantize="int8"`, each in a process of its own:
memory, greedy answers to GSM8K test questions with 3 fixed shots, and LoRA steps over 4 training
questions with one fixed shot. Then both read the gold answers of the same test questions, and their
logits are compared wherever a token is predicted.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.engines import peak_memory
from data.examples import IGNORE_INDEX, Example, build_example
from data.gsm8k import gsm8k_messages, gsm8k_training_messages, load_gsm8k
from data.scoring import extract_number
from llama import generate, load_model, load_tokenizer
from llama.model import Decoder
from lora import LoRAConfig, inject_lora
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions

SCHEMES = (None, "int8")
SHOTS, STEPS, STEP_EXAMPLES = 3, 3, 4


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="smollm2", help="local folder, Hub id or alias (%(default)s)"
    )
    parser.add_argument(
        "--dtype", default="float32", help="of all that is not quantised (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--data", default="gsm8k", help="gsm8k, demo or a file (%(default)s)")
    parser.add_argument(
        "--questions", type=int, default=64, metavar="N", help="test questions (%(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="rows in flight (%(default)s)"
    )
    return parser.parse_args(argv)


def gold_examples(
    arguments: argparse.Namespace,
    records: Sequence[dict[str, Any]],
    shots: Sequence[dict[str, Any]],
) -> list[Example]:
    tokenizer = load_tokenizer(arguments.model)
    return [
        build_example(tokenizer, gsm8k_training_messages(r["question"], r["answer"], shots))
        for r in records
    ]


def measure(arguments: argparse.Namespace, scheme: str | None) -> dict[str, Any]:
    """Bytes of the parameters, tokens and their rate, examples a second, and the process's peak
    memory.
    """
    tokenizer, pool = load_tokenizer(arguments.model), load_gsm8k(arguments.data, "train")
    records = load_gsm8k(arguments.data, "test")[: arguments.questions]
    prompts = [
        tokenizer.encode_chat(gsm8k_messages(record["question"], pool[:SHOTS]))
        for record in records
    ]
    model = load_model(arguments.model, arguments.dtype, arguments.device, scheme)
    result = {"parameters": sum(p.numel() * p.element_size() for p in model.parameters())}
    for name, some in (("one prompt", prompts[:1]), ("all prompts", prompts)):
        start = time.perf_counter()
        outputs = generate(
            model, some, arguments.max_new_tokens, tokenizer.stop_ids, arguments.batch_size
        )
        result[name] = sum(len(output.token_ids) for output in outputs) / (
            time.perf_counter() - start
        )
    texts = [tokenizer.decode(output.token_ids) for output in outputs]
    numbers = [extract_number(text, "number") for text in texts]
    result |= {"texts": texts, "numbers": numbers, "answering": peak_memory()}
    result["right"] = sum(
        number == record["gold"] for number, record in zip(numbers, records, strict=True)
    )
    return result | train(model, gold_examples(arguments, pool[-STEPS * STEP_EXAMPLES :], pool[:1]))


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
    return {
        "examples": (STEPS - 1) * STEP_EXAMPLES / (time.perf_counter() - start),
        "peak": peak_memory(),
    }


@torch.inference_mode()
def logit_changes(arguments: argparse.Namespace) -> str:
    """What both models say where a token of a gold answer is predicted."""
    models = [
        load_model(arguments.model, arguments.dtype, arguments.device, scheme) for scheme in SCHEMES
    ]
    records = load_gsm8k(arguments.data, "test")[: arguments.questions]
    changes, same = [], []
    for example in gold_examples(arguments, records, load_gsm8k(arguments.data, "train")[:SHOTS]):
        sources = [i - 1 for i, label in enumerate(example.labels) if label != IGNORE_INDEX]
        input_ids = torch.tensor([example.input_ids], device=arguments.device)
        plain, small = (model.logits(model(input_ids)[0, sources]).float() for model in models)
        changes.append((plain - small).abs().amax(-1))
        same.append(plain.argmax(-1) == small.argmax(-1))
    change, same = torch.cat(changes), torch.cat(same).float().mean().item()
    return (
        f"Over {len(change)} tokens of gold answers: the largest change of a logit {change.max():.2f}, the median of "
        f"each token's largest {change.median():.2f}; the likeliest token stays for {same:.1%}."
    )


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    results = []
    print(
        "| weights | parameters | answering, peak | with training, peak | one prompt, tokens/s | all | examples/s |"
    )
    print("|---" * 7 + "|")
    for scheme in SCHEMES:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            result = process.apply(measure, (arguments, scheme))
        sizes = (f"{result[name] / 2**30:.2f} GiB" for name in ("parameters", "answering", "peak"))
        rates = (f"{result[name]:.2f}" for name in ("one prompt", "all prompts", "examples"))
        print("| " + " | ".join([scheme or arguments.dtype, *sizes, *rates]) + " |", flush=True)
        results.append(result)
    plain, small = results
    print(f"\n{logit_changes(arguments)}")
    for what, name in (("text", "texts"), ("number", "numbers")):
        changed = sum(a != b for a, b in zip(plain[name], small[name], strict=True))
        print(f"Answers with another {what}: {changed} of {len(plain[name])}.")
    print(f"Right: {plain['right']} before, {small['right']} after.")


if __name__ == "__main__":
    main()
