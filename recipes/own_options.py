"""Options of a recipe that are no options of the script that does the step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from recipes.sources import Options

SELF_INSTRUCT, ROUNDS, MAX_ROUNDS = "self-instruct", "rounds", 9
OWN_ANSWERS, WEIGHT = "own-answers", "weight"
MAX_WEIGHT = 0.5  # of own answers: more would be another skill


def own_names(options: Mapping[str, set[str]], section: str) -> list[str]:
    """The options that the section may hold, in order."""
    own = {SELF_INSTRUCT: {ROUNDS}, OWN_ANSWERS: {WEIGHT}}.get(section, set())
    return sorted(options[section] | own)


def take_rounds(sections: Mapping[str, Sequence[Options]], path: Path) -> int:
    """Take `rounds`, which is no option of the script, out of self-instruct's options."""
    [own] = sections.get(SELF_INSTRUCT, [{}])
    rounds = own.pop(ROUNDS, 1)
    if type(rounds) is not int or not 1 <= rounds <= MAX_ROUNDS:
        raise UserError(
            f"{path}: {SELF_INSTRUCT}: {ROUNDS} should be a whole number from 1 to {MAX_ROUNDS}, "
            f"found {rounds!r}"
        )
    if rounds > 1 and not sections.get("train"):
        raise UserError(
            f"{path}: {SELF_INSTRUCT}: {ROUNDS}: {rounds} without 'train': the model that writes "
            "the data of a later round is trained on those of the one before"
        )
    return rounds


def take_weight(sections: Mapping[str, Sequence[Options]], path: Path) -> float:
    """Take `weight`, which is no option of the script, out of the options of own answers."""
    if OWN_ANSWERS not in sections:
        return 0.0
    [own] = sections[OWN_ANSWERS]
    weight = own.pop(WEIGHT, None)
    if not isinstance(weight, float) or not 0 < weight <= MAX_WEIGHT:
        raise UserError(
            f"{path}: {OWN_ANSWERS}: {WEIGHT} should be their share of the training data, above 0 "
            f"and at most {MAX_WEIGHT}, found {weight!r}"
        )
    if not sections.get("train"):
        raise UserError(f"{path}: '{OWN_ANSWERS}' makes training data, and there is no 'train'")
    return weight
