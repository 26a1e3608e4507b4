"""Mixtures of training data by weight: train.py --data a.jsonl:0.97 b.jsonl:0.03

The first file is used whole, or with --limit its first N records. Of every other file
round(N * weight / first weight) records are taken, N being the count of the first, so the counts
are as the weights. They are drawn by the seed, each at most once; a file with fewer records is gone
through in whole passes first, and the rest is drawn.

A method that mixes safety examples into a skill's training needs no more than this. Either it gives
train.py the words `--data gsm8k:0.97 safety.jsonl:0.03` (in a --config file a list under `data`),
or it calls `mix` with records that it has made itself:

    gsm8k, safety = mix([gsm8k_records, safety_records], [0.97, 0.03], seed=0)
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from common.errors import UserError

MOST_PASSES = 100  # through one file; more is a slip in the weights

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One file of a mixture, or the name of an official set, with its weight."""

    name: str
    weight: float


def parse_mixture(words: Sequence[str]) -> list[Part]:
    """The parts that `NAME:WEIGHT` words ask for; a single word is a name without a weight.

    A colon that no number follows, as in `C:\\data\\a.jsonl`, belongs to the name, and so does
    everything in the name of a file that is there. UserError for a weight that is missing or not a
    number above 0, and for a name that occurs twice.
    """
    parts: list[Part] = []
    seen: set[Path] = set()
    for word in words:
        part = _parse_part(word, alone=len(words) == 1)
        path = Path(part.name).resolve()
        if path in seen:
            raise UserError(
                f"--data names {part.name} twice: give each file once, with the sum of its weights"
            )
        seen.add(path)
        parts.append(part)
    return parts


def _parse_part(word: str, alone: bool) -> Part:
    name, colon, text = word.rpartition(":")
    weight = _number(text)
    if not colon or weight is None or Path(word).is_file():
        if alone:
            return Part(word, 1.0)
        raise UserError(
            f"--data {word}: no weight; of several files each needs one, as in a.jsonl:0.97 "
            "b.jsonl:0.03"
        )
    if alone:
        raise UserError(
            f"--data {word}: a weight is for mixtures of several files; --limit takes a part of one"
        )
    if not 0 < weight < math.inf:
        raise UserError(f"--data {word}: the weight is {text}, expected a number above 0")
    return Part(name, weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def mix(sources: Sequence[Sequence[T]], weights: Sequence[float], seed: int) -> list[list[T]]:
    """The records of a mixture, by source, each in its own order; see above.

    UserError if a source would be gone through more than MOST_PASSES times.
    """
    first = list(sources[0])
    mixed = [first]
    for place in range(1, len(sources)):
        records = sources[place]
        count = max(1, round(len(first) * weights[place] / weights[0]))
        passes, rest = divmod(count, len(records))
        if passes >= MOST_PASSES:
            raise UserError(
                f"weights {weights[0]:g} and {weights[place]:g} ask for {count} records beside the "
                f"{len(first)} of the first file, but file {place + 1} has {len(records)}: each "
                f"would occur {passes} times"
            )
        drawn = random.Random(f"{seed} {place}").sample(range(len(records)), rest)
        indices = sorted([*range(len(records))] * passes + drawn)
        mixed.append([records[index] for index in indices])
    return mixed
