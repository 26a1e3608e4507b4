"""Several sampled answers to a question: the majority's, and whether any of them is right.

maj@K  the answer that most of K samples give is right (self-consistency, Wang et al. 2023,
       https://arxiv.org/abs/2203.11171)
pass@k at least one of k samples is right, estimated without bias from n >= k of them (Chen et al.
       2021, https://arxiv.org/abs/2107.03374)

pass@k is no accuracy: somebody would have to know which sample is right. Both stand apart from the
accuracy of single answers.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data.attempts import by_question
from data.intervals import mean_interval, rate
from data.records import Record
from data.task import Task


def samples_stem(task: Task) -> str:
    """The stem of the files that hold the samples: RUN/gsm8k-samples.jsonl, a line a sample."""
    return f"{task.name}-samples"


def majority(votes: Sequence[str | None]) -> str | None:
    """The most frequent vote, of several the one that came first; None if nobody voted."""
    counts = Counter(vote for vote in votes if vote is not None)
    return counts.most_common(1)[0][0] if counts else None  # in order of first occurrence


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of `k` samples drawn from `samples` is among the `right` ones.

    1 - C(samples - right, k) / C(samples, k): unbiased, unlike 1 - (1 - right/samples)^k.
    """
    if not (1 <= k <= samples and 0 <= right <= samples):
        raise ValueError(f"k = {k}, right = {right} of {samples} samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def shown_sizes(samples: int) -> list[int]:
    """The k of pass@k that a summary holds: 1, 2, 4, ... and all samples."""
    sizes = []
    size = 1
    while size < samples:
        sizes.append(size)
        size *= 2
    return [*sizes, samples]


def summarise_votes(task: Task, answers: Mapping[str, Record], samples: int) -> dict[str, Any]:
    """The result part of the summary of the samples, of the questions that have all of theirs.

    `answers` by id, `samples` a question. Intervals are Wilson's for maj@K, and of a bootstrap over
    questions for pass@k, which is a mean of chances.
    """
    whole = [each for each in by_question(answers).values() if len(each) == samples]
    voted = right = 0
    chances: dict[int, list[float]] = {size: [] for size in shown_sizes(samples)}
    for attempts in whole:
        vote = majority([attempt[task.voted_field] for attempt in attempts])
        voted += vote == attempts[0]["gold"]
        right = sum(attempt["correct"] for attempt in attempts)
        for size, values in chances.items():
            values.append(pass_at_k(samples, right, size))
    cut_off = sum(answer["finish_reason"] == "length" for answer in answers.values())
    return {
        task.unit: len(whole),
        "samples": samples,
        "maj": rate(voted, len(whole)),
        "pass": {str(size): _mean(values) for size, values in chances.items()},
        "cut_off": rate(cut_off, len(answers)),
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """The mean over questions with its 95 % bootstrap interval; None where there is no question."""
    if not values:
        return {"mean": None, "low": None, "high": None}
    low, high = mean_interval(values)
    return {"mean": sum(values) / len(values), "low": low, "high": high}


def describe_votes(summary: Mapping[str, Any], task: Task) -> str:
    """The result in a line for the terminal."""
    share, samples = summary["maj"], summary["samples"]
    passes = []
    for size, value in summary["pass"].items():
        passes.append(f"pass@{size} {value['mean']:.1%}")
    return (
        f"maj@{samples} {share['rate']:.1%} (95 % interval {share['low']:.1%} to "
        f"{share['high']:.1%}) of {summary[task.unit]} {task.unit}, {', '.join(passes)}, "
        f"{summary['cut_off']['count']} of {summary['cut_off']['total']} samples cut off"
    )
