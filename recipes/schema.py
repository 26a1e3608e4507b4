"""Recipes: a row of the experiment as one small YAML file that says everything that produced it.

    title: greedy, 3 shots
    original: {gsm8k: 43.2, safe: 84.2}     # what the original work reported, in percent
    train: {rank: 8, shots: 3}              # a list of such stages is trained one after the other
    gsm8k: {shots: 3, max-new-tokens: 1024}
    ailuminate: {max-new-tokens: 1024}
    xstest: {max-new-tokens: 1024}
    sources:                                # where the values of the original's rows come from
      record: [gsm8k, ailuminate]
      code: [train.rank]
      assumed: {train.shots: as at test}
      ours: [xstest]                        # what the original has not done

Every registered task may be a section. The keys of a section are options of the script that does
the step, without their dashes. `adapter: NAME` answers with the adapter of another recipe,
`self-instruct: NAME` trains on the answers that another recipe has had written, and
`shots-data: self-instruct` shows such answers as shots at test. `rounds: 2` among the options of
self-instruct has the model that the first round trained write the data of the second; every round
trains from the untouched model. `own-answers: {weight: 0.03}` mixes 3 % of the untouched model's
answers to the embedded prompts into the training data.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from common.command_line import check_keys
from common.errors import UserError
from common.yaml_files import parse_yaml, read_yaml
from data.registry import TASKS
from recipes.own_options import (
    OWN_ANSWERS,
    SELF_INSTRUCT,
    own_names,
    take_rounds,
    take_weight,
)
from recipes.sources import Options, read_sources, values_by_source

SHIPPED = Path(__file__).parent  # this project's own recipes, installed with the package
SHOTS_DATA = "shots-data"
# In the order of the steps; a task's section is called as the task.
SECTIONS = (SELF_INSTRUCT, OWN_ANSWERS, "train", *TASKS, "judge")
KEYS = ("title", "about", "original", "sources", "adapter", "sweep", *SECTIONS)
ORIGINALS = ("gsm8k", "safe")
RESERVED_NAMES = ("report",)  # what lies beside the runs of the recipes

TYPE_NAMES = {dict: "keys and values", list: "a list", float: "a number", str: "text"}


class Setting(NamedTuple):
    """An option of a section with the value that overrules the recipes'."""

    section: str
    option: str
    value: Any


@dataclass(frozen=True)
class Recipe:
    """A recipe file, checked. `adapter` and `self_instruct` name other recipes by file, without
    suffix.
    """

    name: str  # the file's, without its suffix
    path: Path
    title: str
    tasks: dict[str, Options]  # what is answered, by task, in the order of the registry
    judge: Options
    train: list[Options]
    self_instruct: Options | str | None
    rounds: int  # of self-instruct, each with a training behind it
    own_answers: Options | None  # to other prompts, mixed into the training data
    own_weight: float  # their share of these
    adapter: str | None
    sweep: list[float]  # scales of the adapter that are answered with as well
    original: dict[str, float] = field(default_factory=dict)  # in percent
    sources: dict[str, dict[str, str]] = field(default_factory=dict)  # kind -> option -> remark
    raw: dict[str, Any] = field(default_factory=dict)  # the file, with what overruled it

    def values_by_source(self) -> dict[str, list[str]]:
        """The settings that have a source, as text by kind."""
        sections = {"train": self.train, "judge": [self.judge]}
        sections |= {task: [options] for task, options in self.tasks.items()}
        if isinstance(self.self_instruct, dict):
            sections[SELF_INSTRUCT] = [self.self_instruct]
        return values_by_source(self.sources, sections)

    @property
    def only_votes(self) -> bool:
        """True if every task is sampled several times, so that no single answer is there."""
        return all(options.get("samples", 1) != 1 for options in self.tasks.values())

    @property
    def judged(self) -> list[str]:
        """The tasks whose answers a judge has to read."""
        return [name for name in self.tasks if TASKS[name].kind == "safety"]


def find_recipe(name: str) -> Path:
    """The recipe file called `name`: a path, or one of this project's own by its bare name.

    UserError with the nearest name for one that does not exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {recipe.stem: recipe for recipe in sorted(SHIPPED.glob("*.yaml"))}
    if path.name == name and path.name.removesuffix(".yaml") in shipped:
        return shipped[path.name.removesuffix(".yaml")]
    close = get_close_matches(path.stem, shipped, n=1, cutoff=0)
    raise UserError(f"{name}: no such recipe; the nearest of our own is {close[0]}")


def parse_setting(text: str) -> Setting:
    """`train.lr=1e-3` as section, option and value, which is read as in a recipe.

    UserError for anything else.
    """
    name, equals, value = text.partition("=")
    section, dot, option = name.partition(".")
    if not (equals and dot and option) or section not in SECTIONS:
        expected = f"SECTION.OPTION=VALUE with a section of {', '.join(SECTIONS)}"
        raise UserError(f"{text!r}: expected {expected}")
    return Setting(section, option, parse_yaml(value, repr(text)))


def load_recipe(
    path: Path, options: Mapping[str, set[str]], settings: Iterable[Setting] = ()
) -> Recipe:
    """Read and check a recipe.

    `options` holds the option names that each section may use. `settings` overrule the file.
    UserError with file, key and nearest valid name for a key that is unknown, missing or holds
    another kind of value.
    """
    name = _checked_name(path.stem, str(path))
    raw = read_yaml(path)
    check_keys(raw, KEYS, str(path), "key")
    for setting in settings:
        names = own_names(options, setting.section)
        check_keys([setting.option], names, str(path), f"option of {setting.section}")
        _overrule(raw, setting, path)
    if "title" not in raw:
        raise UserError(f"{path}: the key 'title' is missing")
    sections = _read_sections(raw, options, path)
    rounds = take_rounds(sections, path)
    own_weight = take_weight(sections, path)
    borrowed = raw.get("self-instruct") if isinstance(raw.get("self-instruct"), str) else None
    if borrowed is not None:
        _checked_name(borrowed, f"{path}: self-instruct")
    recipe = Recipe(
        name=name,
        path=path,
        title=_typed(raw["title"], str, path, "title"),
        tasks={task: sections[task][0] for task in TASKS if task in sections},
        judge=sections.get("judge", [{}])[0],
        train=sections.get("train", []),
        self_instruct=borrowed or sections.get("self-instruct", [None])[0],
        rounds=rounds,
        own_answers=sections.get(OWN_ANSWERS, [None])[0],
        own_weight=own_weight,
        adapter=_read_adapter(raw, path),
        sweep=_read_sweep(raw, path),
        original=_read_original(raw, path),
        sources=read_sources(raw, sections, str(path)),
        raw=raw,
    )
    _typed(raw.get("about", ""), str, path, "about")
    _check_parts(recipe)
    return recipe


def _check_parts(recipe: Recipe) -> None:
    """UserError for parts that lack one another or exclude each other."""
    if not recipe.tasks:
        raise UserError(f"{recipe.path}: no task in it; a recipe has one of {', '.join(TASKS)}")
    if recipe.adapter and recipe.train:
        raise UserError(
            f"{recipe.path}: both 'train' and 'adapter': an adapter is trained here or taken from "
            "another recipe"
        )
    if recipe.sweep and not recipe.train:
        raise UserError(
            f"{recipe.path}: 'sweep' scales the adapter that is trained here, and there is no "
            "'train'"
        )
    if recipe.name in (recipe.adapter, recipe.self_instruct):
        raise UserError(f"{recipe.path}: it borrows from itself; name another recipe")
    shown = any(options.get(SHOTS_DATA) == SELF_INSTRUCT for options in recipe.tasks.values())
    if shown and recipe.self_instruct is None:
        raise UserError(
            f"{recipe.path}: {SHOTS_DATA}: {SELF_INSTRUCT} without a section '{SELF_INSTRUCT}'"
        )
    if recipe.self_instruct is not None and not recipe.train and not shown:
        raise UserError(
            f"{recipe.path}: '{SELF_INSTRUCT}' makes training data, and there is no 'train'"
        )


def _checked_name(name: str, where: str) -> str:
    """The name, which is also that of a folder. UserError for one that would be another place."""
    separators = {"/", "\\"} & set(name)
    if not name or separators or name.startswith(".") or name in RESERVED_NAMES:
        raise UserError(f"{where}: {name!r} cannot be the name of a recipe and of its run folder")
    return name


def _overrule(raw: dict[str, Any], setting: Setting, path: Path) -> None:
    """Put the setting into every stage of its section, if the recipe does that step itself."""
    section = setting.section
    if section == "judge":  # a step of every recipe
        raw.setdefault(section, {})
    if section not in raw or isinstance(raw[section], str):
        return
    if raw[section] is None:
        raw[section] = {}
    stages = raw[section] if isinstance(raw[section], list) else [raw[section]]
    for stage in stages:
        _typed(stage, dict, path, section)[setting.option] = copy.deepcopy(setting.value)


def _read_sections(
    raw: dict[str, Any], options: Mapping[str, set[str]], path: Path
) -> dict[str, list[Options]]:
    """The steps that the recipe does itself; training may have several stages."""
    sections: dict[str, list[Options]] = {}
    for section in SECTIONS:
        value = raw.get(section)
        if section not in raw or (section == "self-instruct" and isinstance(value, str)):
            continue
        stages = value if section == "train" and isinstance(value, list) else [value]
        if not stages:
            raise UserError(f"{path}: {section} is an empty list")
        sections[section] = []
        for stage in stages:
            checked = _typed({} if stage is None else stage, dict, path, section)
            check_keys(checked, own_names(options, section), str(path), f"option of {section}")
            for option, value in checked.items():
                _check_value(value, f"{path}: {section}: {option}")
            sections[section].append(dict(checked))
    return sections


def _check_value(value: Any, where: str) -> None:
    """UserError unless the value, or each of a list, is text, a number, true or false."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str | int | float):
            raise UserError(
                f"{where} should be text, a number, true or false, or a list of such, found "
                f"{_shown(item)}"
            )


def _read_adapter(raw: dict[str, Any], path: Path) -> str | None:
    if "adapter" not in raw:
        return None
    name = _typed(raw["adapter"], str, path, "adapter")
    return _checked_name(name, f"{path}: adapter")


def _read_sweep(raw: dict[str, Any], path: Path) -> list[float]:
    scales: list[float] = []
    for value in _typed(raw.get("sweep", []), list, path, "sweep"):
        scale = float(_typed(value, float, path, "sweep"))
        if not 0 <= scale < math.inf or scale in (1.0, *scales):
            raise UserError(
                f"{path}: sweep holds each scale once, at least 0 and not 1, which is answered "
                f"anyway; found {value!r}"
            )
        scales.append(scale)
    return scales


def _read_original(raw: dict[str, Any], path: Path) -> dict[str, float]:
    original = _typed(raw.get("original", {}), dict, path, "original")
    check_keys(original, ORIGINALS, str(path), "key of original")
    for name, value in original.items():
        if not 0 <= _typed(value, float, path, f"original: {name}") <= 100:
            raise UserError(
                f"{path}: original: {name} should be a percentage from 0 to 100, found {value!r}"
            )
    return original


def _typed(value: Any, kind: type, path: Path, name: str) -> Any:
    """`value`. UserError, naming the key, unless it is of this kind."""
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise UserError(f"{path}: {name} should be {TYPE_NAMES[kind]}, found {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
