"""Recipes: a row of the experiment as one small YAML file that says everything that produced it.

    title: greedy, 3 shots
    original: {gsm8k: 43.2, safe: 84.2}     # what the original work reported, in percent
    train: {rank: 8, shots: 3}              # a list of such stages is trained one after the other
    gsm8k: {shots: 3, max-new-tokens: 1024}
    ailuminate: {max-new-tokens: 1024}

The keys of a section are options of the script that does the step, without their dashes. `adapter:
NAME` answers with the adapter of another recipe, `self-instruct: NAME` trains on the answers that
another recipe has had written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

Options = dict[str, Any]
Setting = tuple[str, str, Any]  # section, option, value

REQUIRED = ("title", "gsm8k", "ailuminate")
SECTIONS = ("self-instruct", "train", "gsm8k", "ailuminate", "judge")  # in the order of the steps
KEYS = (*REQUIRED, "about", "original", "adapter", "sweep", *SECTIONS)
ORIGINALS = ("gsm8k", "safe")


@dataclass(frozen=True)
class Recipe:
    """What a file says, checked. Recipes in `adapter` and `self_instruct` are named as their files,
    without suffix.
    """

    name: str  # the file's, without its suffix
    path: Path
    title: str
    gsm8k: Options
    ailuminate: Options
    judge: Options
    train: list[Options]
    self_instruct: Options | str | None
    adapter: str | None
    sweep: list[float]  # scales of the adapter that are answered with as well
    original: dict[str, float] = field(default_factory=dict)  # in percent
    raw: dict[str, Any] = field(
        default_factory=dict
    )  # the file, with the settings that overrule it


def parse_setting(text: str) -> Setting:
    """`train.lr=1e-3` -> section, option and value, which is read as in a recipe. UserError for
    anything else.
    """
    name, equals, value = text.partition("=")
    section, dot, option = name.partition(".")
    if not (equals and dot and option) or section not in SECTIONS:
        raise UserError(
            f"{text!r}: expected SECTION.OPTION=VALUE with a section of {', '.join(SECTIONS)}"
        )
    try:
        return section, option, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"{text!r}: the value is not valid YAML ({' '.join(str(error).split())})"
        ) from None


def load_recipe(
    path: Path, options: Mapping[str, set[str]], settings: Iterable[Setting] = ()
) -> Recipe:
    """Read a recipe. `options`: the option names that each section may use. `settings` overrule the
    file.

    UserError with file, key and nearest valid name for a key that is unknown, missing or holds
    another kind of value.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such recipe; the files in recipes/ are some") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    _check(raw, dict, path, "the recipe")
    for section, option, value in settings:
        _check_keys({option: value}, options[section], path, f"option of {section}")
        if section == "judge":  # a step of every recipe
            raw.setdefault(section, {})
        if section in raw and not isinstance(
            raw[section], str
        ):  # else there is no such step here to overrule
            raw[section] = raw[section] or {}
            for stage in raw[section] if isinstance(raw[section], list) else [raw[section]]:
                _check(stage, dict, path, section)[option] = value
    _check_keys(raw, KEYS, path, "key")
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise UserError(
            f"{path}: the key {missing[0]!r} is missing; a recipe has {', '.join(REQUIRED)}"
        )
    if "adapter" in raw and "train" in raw:
        raise UserError(
            f"{path}: both 'train' and 'adapter': an adapter is trained here or taken from another recipe"
        )
    borrowed = raw.get("self-instruct") if isinstance(raw.get("self-instruct"), str) else None
    own = [
        section
        for section in SECTIONS
        if section in raw and not (borrowed and section == "self-instruct")
    ]
    sections = {section: _stages(raw[section], path, section) for section in own}
    for section, stages in sections.items():
        for stage in stages:
            _check_keys(stage, options[section], path, f"option of {section}")
    original = _check(raw.get("original", {}), dict, path, "original")
    _check_keys(original, ORIGINALS, path, "key of original")
    for name, value in original.items():
        if not 0 <= _check(value, float, path, f"original: {name}") <= 100:
            raise UserError(
                f"{path}: original: {name} should be a percentage from 0 to 100, found {value!r}"
            )
    sweep = [
        _check(scale, float, path, "sweep")
        for scale in _check(raw.get("sweep", []), list, path, "sweep")
    ]
    if sweep and "train" not in raw:
        raise UserError(
            f"{path}: 'sweep' scales the adapter that is trained here, and there is no 'train'"
        )
    return Recipe(
        name=path.stem,
        path=path,
        title=_check(raw["title"], str, path, "title"),
        gsm8k=sections["gsm8k"][0],
        ailuminate=sections["ailuminate"][0],
        judge=sections.get("judge", [{}])[0],
        train=sections.get("train", []),
        self_instruct=sections["self-instruct"][0] if "self-instruct" in sections else borrowed,
        adapter=_check(raw["adapter"], str, path, "adapter") if "adapter" in raw else None,
        sweep=[float(scale) for scale in sweep],
        original=original,
        raw=raw,
    )


def _stages(value: Any, path: Path, section: str) -> list[Options]:
    """Training may have several stages; every other step has one."""
    stages = value if section == "train" and isinstance(value, list) else [value]
    if not stages:
        raise UserError(f"{path}: {section} is an empty list")
    return [_check({} if stage is None else stage, dict, path, section) for stage in stages]


def _check_keys(found: dict[Any, Any], known: Any, path: Path, what: str) -> None:
    for key in found:
        if key not in known:
            close = get_close_matches(str(key), [str(name) for name in known], n=1, cutoff=0)
            raise UserError(
                f"{path}: unknown {what} {key!r}; the nearest valid name is {close[0]!r}"
            )


def _check(value: Any, kind: type, path: Path, name: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        words = {dict: "keys and values", list: "a list", float: "a number", str: "text"}[kind]
        raise UserError(f"{path}: {name} should be {words}, found {value!r:.60}")
    return value
