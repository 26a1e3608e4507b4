"""What the measured results say: whose tokens differ and why, ratios to ours, and how far the
machine's limits are.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

TIE = 1e-4  # between the two largest logits: less is rounding in float32


def compare_tokens(
    folder: Path, prompts: list[list[int]], engines: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every answer that differs from transformers', with the gap of the two top logits at the first
    difference.

    The logits are transformers' own on the prompt and the common part of both answers. It is a tie
    if the two tokens are the top two and closer than `TIE`. Empty without transformers among the
    engines.
    """
    if "transformers" not in engines:
        return []
    expected = engines["transformers"]["token_ids"]
    differences = []
    for engine, result in engines.items():
        for index, (ours, theirs) in enumerate(zip(result["token_ids"], expected, strict=False)):
            if ours != theirs:
                differences.append(
                    {"engine": engine, "question": index, **first_difference(ours, theirs)}
                )
    if differences:
        add_gaps(folder, prompts, expected, differences)
    return differences


def first_difference(ours: list[int], theirs: list[int]) -> dict[str, Any]:
    """The position and both tokens, None where an answer has ended."""
    length = min(len(ours), len(theirs))
    position = next((i for i in range(length) if ours[i] != theirs[i]), length)
    return {
        "position": position,
        "tokens": [next(iter(row[position:]), None) for row in (ours, theirs)],
    }


def add_gaps(
    folder: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    differences: list[dict[str, Any]],
) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for difference in differences:
        index = difference["question"]
        input_ids = torch.tensor([prompts[index] + expected[index][: difference["position"]]])
        with torch.inference_mode():
            top = model(input_ids, logits_to_keep=1).logits[0, -1].topk(2)
        difference["gap"] = float(top.values[0] - top.values[1])
        difference["tie"] = difference["gap"] < TIE and set(difference["tokens"]) == set(
            top.indices.tolist()
        )


def tokens_needed(prompts: list[list[int]]) -> int:
    """Prompt tokens that must be computed at least: a prefix that several prompts share counts
    once.
    """
    ordered = sorted(prompts)
    return len(ordered[0]) + sum(
        next(
            (len(b) - i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
            len(b) - len(a),
        )
        for a, b in pairwise(ordered)
    )


def ratios(section: dict[str, Any], prompts: list[list[int]], machine: dict[str, float]) -> None:
    """Add to each engine its ratio to ours and its equal answers, and to the section the limits
    that bind ours.
    """
    engines, one = section["engines"], section.get("one_prompt", {})
    for group in (engines, one):
        ours = group.get("unforget")
        for result in group.values():
            if ours:
                result["ratio_to_ours"] = seconds_per_question(result) / seconds_per_question(ours)
    for result in engines.values():
        result["partial"] = result["questions"] < len(prompts)
    for engine, result in engines.items():
        if "transformers" in engines:
            result["compared"] = min(result["questions"], engines["transformers"]["questions"])
            result["different"] = [d for d in section["differences"] if d["engine"] == engine]
    if "unforget" in engines:
        section["limits"] = limits(engines["unforget"], tokens_needed(prompts), machine)


def seconds_per_question(result: dict[str, Any]) -> float:
    return result["seconds"] / result["questions"]


def limits(
    ours: dict[str, Any], prefill_tokens: int, machine: dict[str, float]
) -> dict[str, float]:
    """Seconds that the arithmetic needs at full speed, and reading the weights once in every pass
    ours made.
    """
    body, head, stats = ours["body_parameters"], ours["head_parameters"], ours["stats"]
    operations = 2 * body * prefill_tokens + 2 * (body + head) * stats["new_tokens"]
    weights_read = 4 * (body + head) * stats["forward_passes"]
    arithmetic = operations / machine["gflops"] / 1e9
    bandwidth = weights_read / machine["gb_per_second"] / 1e9
    return {
        "prefill_tokens_needed": prefill_tokens,
        "arithmetic_seconds": arithmetic,
        "arithmetic_fraction": arithmetic / ours["seconds"],
        "bandwidth_seconds": bandwidth,
        "bandwidth_fraction": bandwidth / ours["seconds"],
    }
