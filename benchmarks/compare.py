"""Results compared: whose tokens differ and why, ratios to ours, the machine's limits."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

TIE = 1e-4  # between the two largest logits: less is rounding in float32
Result = dict[str, Any]


def compare_tokens(
    folder: Path, prompts: list[list[int]], engines: dict[str, Result]
) -> list[Result]:
    """Every answer that differs from transformers', with the gap between the two top logits there.

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
                place = {"engine": engine, "question": index}
                differences.append({**place, **first_difference(ours, theirs)})
    if differences:
        add_gaps(folder, prompts, expected, differences)
    return differences


def first_difference(ours: list[int], theirs: list[int]) -> Result:
    """The position and both tokens, None where an answer has ended."""
    position = common_length(ours, theirs)
    tokens = [row[position] if position < len(row) else None for row in (ours, theirs)]
    return {"position": position, "tokens": tokens}


def common_length(left: list[int], right: list[int]) -> int:
    """The number of leading tokens that two sequences share."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def add_gaps(
    folder: Path, prompts: list[list[int]], expected: list[list[int]], differences: list[Result]
) -> None:
    """Add `gap`, between transformers' two top logits, and `tie` to every difference."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for difference in differences:
        index = difference["question"]
        input_ids = torch.tensor([prompts[index] + expected[index][: difference["position"]]])
        with torch.inference_mode():
            top = model(input_ids, logits_to_keep=1).logits[0, -1].topk(2)
        gap = float(top.values[0] - top.values[1])
        top_two = set(difference["tokens"]) == set(top.indices.tolist())
        difference |= {"gap": gap, "tie": gap < TIE and top_two}


def tokens_needed(prompts: list[list[int]]) -> int:
    """The prompt tokens that must be computed at least: shared prefixes count once."""
    ordered = sorted(prompts)
    total = len(ordered[0])
    for before, prompt in pairwise(ordered):
        total += len(prompt) - common_length(before, prompt)
    return total


def ratios(section: Result, prompts: list[list[int]], machine: dict[str, float]) -> None:
    """Add each engine's ratio to ours and its equal answers, and the limits that bind ours."""
    engines, alone = section["engines"], section.get("one_prompt", {})
    for group in (engines, alone):
        ours = group.get("unforget")
        for result in group.values():
            if ours:
                result["ratio_to_ours"] = seconds_per_question(result) / seconds_per_question(ours)
    for engine, result in engines.items():
        result["partial"] = result["questions"] < len(prompts)
        if "transformers" in engines:
            result["compared"] = min(result["questions"], engines["transformers"]["questions"])
            result["different"] = [d for d in section["differences"] if d["engine"] == engine]
    if "unforget" in engines:
        section["limits"] = limits(engines["unforget"], tokens_needed(prompts), machine)


def seconds_per_question(result: Result) -> float:
    return result["seconds"] / result["questions"]


def limits(ours: Result, prefill_tokens: int, machine: dict[str, float]) -> dict[str, float]:
    """The seconds that the arithmetic needs at full speed, and reading the weights each pass."""
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
