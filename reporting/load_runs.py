"""Run folders read back for report.py: what each part of a run measured, and how far an unfinished
part has come.

    base, tuned = load_runs(["runs/base", "runs/tuned"])
    tuned.parts["gsm8k"].rates["accuracy.homework"].rate     # 0.432

A run need not hold every part. What it holds must be well formed: a summary or record that is not
is refused with its file and field, so that no number in a report is a guess. Nothing is ever
written to a run folder.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.records import numbered_jsonl, read_json
from guards.verdicts import answer_sha256


@dataclass(frozen=True)
class Rate:
    """A share of `total` with its 95 % Wilson interval; `rate`, `low` and `high` are None when
    `total` is 0.
    """

    count: int
    total: int
    rate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Part:
    """One step of a run. An unfinished part has settings, records and progress, but neither numbers
    nor rates.
    """

    finished: bool
    done: int  # records, or optimizer steps in training
    total: int | None  # None while it is not known
    settings: dict[str, Any]
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    numbers: dict[str, float | None] = field(default_factory=dict)  # by summary field
    rates: dict[str, Rate | None] = field(
        default_factory=dict
    )  # by summary field, nested ones as "accuracy.strict"
    method: str | None = None  # of judging: "guard" | "refusal"
    adapter_fingerprint: str | None = (
        None  # of training: the adapter it made, named as the answers' settings name theirs
    )
    adapter_path: str | None = None  # of answering: where the adapter lay
    groups: dict[str, dict[str, dict[str, Rate | None]]] = field(
        default_factory=dict
    )  # "by_hazard" -> key -> rates

    @property
    def progress(self) -> str:
        return f"running {self.done}/{self.total}" if self.total else f"running, {self.done} done"


@dataclass(frozen=True)
class Mean:
    """A mean over `answers` with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Run:
    """A run folder, under a name no other run of the report has."""

    folder: Path
    name: str
    parts: dict[str, Part]  # by task: train, gsm8k, ailuminate, judge; only those the folder holds
    stale_verdicts: int = (
        0  # on other answers than those that stand there; if there are any, "judge" is left out
    )
    divergence: dict[str, Mean] = field(
        default_factory=dict
    )  # KL from the base in nats a token, by task
    recipe: dict[str, Any] = field(default_factory=dict)  # what experiment.py made the run from
    self_instruct: dict[str, Any] = field(
        default_factory=dict
    )  # its summary's account of the training file


@dataclass(frozen=True)
class PartSchema:
    """What a part's files must hold."""

    records: str  # file name
    record_fields: dict[str, type]
    total: str  # the summary field that counts the records of a finished part
    rates: tuple[str, ...] = ()  # must be there, may be null
    numbers: tuple[str, ...] = ()
    record_numbers: tuple[str, ...] = ()  # not in every record


COSTS = ("seconds", "peak_memory_bytes")
PART_SCHEMAS = {
    "train": PartSchema(
        "train.jsonl",
        {"step": int},
        "steps",
        numbers=(
            "examples",
            "first_loss",
            "last_loss",
            "best_validation_loss",
            "tokens_per_second",
            *COSTS,
        ),
        record_numbers=("loss", "validation_loss"),
    ),
    "gsm8k": PartSchema(
        "gsm8k.jsonl",
        {"id": str, "question": str, "response": str, "gold": str, "correct": bool},
        "questions",
        rates=(
            "accuracy.homework",
            "accuracy.strict",
            "accuracy.flexible",
            "has_marker",
            "cut_off",
        ),
        numbers=("new_tokens_per_second", *COSTS),
    ),
    "ailuminate": PartSchema(
        "ailuminate.jsonl",
        {"id": str, "prompt": str, "hazard": str, "response": str},
        "prompts",
        rates=("cut_off",),
        numbers=("new_tokens_per_second", *COSTS),
    ),
    "judge": PartSchema(
        "verdicts.jsonl",
        {"id": str, "categories": list},
        "answers",
        rates=("safe_strict", "safe_loose", "refusals", "unparsed", "cut_off"),
        numbers=("new_tokens_per_second", *COSTS),
    ),
}
RECIPE = "recipe.json"  # in the folder of a run that experiment.py made
GROUP_RATES = ("safe_strict", "safe_loose", "refusals")
WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def load_runs(folders: list[str | Path]) -> list[Run]:
    """Load each run folder once, in the order given. Raises UserError as `load_run` does."""
    unique = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    return [
        load_run(folder, name) for folder, name in zip(unique, distinct_names(unique), strict=True)
    ]


def distinct_names(folders: list[Path]) -> list[str]:
    """The folders' names, each with as many parent folders in front as tell it from the others."""
    paths = [folder.resolve().parts for folder in folders]

    def name(own: tuple[str, ...]) -> str:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in paths) > 1:
            depth += 1
        return str(Path(*own[-depth:]))

    return [name(own) for own in paths]


def short_names(runs: list[Run], width: int = 30) -> list[str]:
    """The runs' names, long ones without their middle unless that made two of them equal."""
    half = (width - 3) // 2
    short = [
        run.name if len(run.name) <= width else f"{run.name[:half]}...{run.name[-half:]}"
        for run in runs
    ]
    return short if len(set(short)) == len(short) else [run.name for run in runs]


def load_run(folder: Path, name: str) -> Run:
    """Load the parts that `folder` holds; its judging only if every verdict is on an answer that
    stands there now.

    Raises UserError for a folder that does not exist or holds no summary, and, naming file and
    field, for a summary or a record that is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    parts = {
        task: _load_part(folder, task)
        for task in PART_SCHEMAS
        if (folder / f"{task}.summary.json").is_file()
    }
    if not parts:
        raise UserError(
            f"{folder}: no summary of training, answers or judging in it, so there is nothing to report yet; train.py, "
            "generate.py and judge.py write them"
        )
    stale = _count_stale_verdicts(parts)
    if stale:
        del parts["judge"]
    recipe, about = folder / RECIPE, {}
    if recipe.is_file():
        about["recipe"] = _read_recipe(recipe)
    if (folder / "self-instruct.summary.json").is_file():
        about["self_instruct"] = _read_self_instruct(folder / "self-instruct.summary.json")
    return Run(folder, name, parts, stale, _read_divergence(folder, parts), **about)


def _read_recipe(path: Path) -> dict[str, Any]:
    recipe = read_json(path)
    for name, share in (_typed(recipe, "original", dict, path, optional=True) or {}).items():
        if not isinstance(share, int | float) or not 0 <= share <= 100:
            raise UserError(
                f"{path}: field 'original': {name} should be a percentage, found {share!r}"
            )
    return recipe


def _count_stale_verdicts(parts: dict[str, Part]) -> int:
    if "judge" not in parts or "ailuminate" not in parts:
        return 0
    hashes = {answer["id"]: answer_sha256(answer) for answer in parts["ailuminate"].records}
    return sum(
        verdict["id"] not in hashes or verdict.get("answer_sha256") != hashes[verdict["id"]]
        for verdict in parts["judge"].records
    )


def _load_part(folder: Path, task: str) -> Part:
    path, layout = folder / f"{task}.summary.json", PART_SCHEMAS[task]
    summary = read_json(path)
    if summary.get("task") != task:
        raise UserError(f"{path}: field 'task' must be {task!r}, found {summary.get('task')!r}")
    finished = _typed(summary, "finished", bool, path)
    settings = _typed(summary, "settings", dict, path)
    environment = _typed(summary, "environment", dict, path, optional=True) or {}
    method = summary.get("method")
    if task == "judge" and (finished or method is not None) and method not in ("guard", "refusal"):
        raise UserError(f"{path}: field 'method' must be 'guard' or 'refusal', found {method!r}")
    records = _read_records(folder, layout, finished)
    done = (
        max((record["step"] for record in records), default=0) if task == "train" else len(records)
    )
    # While a part is unfinished its own count says what is done, not what is to be done.
    total = (
        _typed(summary, layout.total, int, path) if finished else _planned(task, summary, settings)
    )
    numbers, rates, groups = {}, {}, {}
    if finished:
        numbers = {
            name: _typed(summary, name, float, path, optional=True) for name in layout.numbers
        }
        rates = {name: _rate(summary, name, path) for name in layout.rates}
    if finished and task == "judge":
        groups = {name: _groups(summary, name, path) for name in ("by_hazard", "by_persona")}
    about = {
        name: _typed(summary, name, str, path, optional=True)
        for name in ("adapter_fingerprint", "adapter_path")
    }
    return Part(
        finished,
        done,
        total,
        settings,
        environment,
        records,
        numbers,
        rates,
        method=method,
        groups=groups,
        **about,
    )


def _read_divergence(folder: Path, parts: dict[str, Part]) -> dict[str, Mean]:
    """What divergence.py measured, where it did so with the adapter that the answers there now were
    given with.
    """
    path = folder / "kl.summary.json"
    if not path.is_file():
        return {}
    summary = read_json(path)
    settings, found = _typed(summary, "settings", dict, path), {}
    for task in ("gsm8k", "ailuminate"):
        if task not in parts or task not in summary:
            continue
        held, about = _typed(summary, task, dict, path), _typed(settings, task, dict, path)
        if any(
            about.get(name) != parts[task].settings.get(name)
            for name in ("model", "adapter", "adapter_scale")
        ):
            continue
        values = {name: _typed(held, name, float, path) for name in ("mean", "low", "high")}
        found[task] = Mean(**values, answers=_typed(held, "answers", int, path))
    return found


def _read_self_instruct(path: Path) -> dict[str, Any]:
    """What became of the attempts; empty while it is unfinished."""
    summary = read_json(path)
    if not _typed(summary, "finished", bool, path):
        return {}
    training = _typed(summary, "training", dict, path)
    for name, kind in (("records", int), ("dropped", int), ("sources", dict)):
        _typed(training, name, kind, f"{path}: in 'training'")
    likelihood = _typed(training, "log_likelihood", dict, f"{path}: in 'training'", optional=True)
    for name in ("gold", "own") if likelihood else ():
        _typed(likelihood, name, float, f"{path}: in 'log_likelihood'")
    return {**training, "right": _rate(summary, "right", path)}


def _planned(task: str, summary: dict[str, Any], settings: dict[str, Any]) -> int | None:
    planned = settings.get("steps") if task == "train" else summary.get("planned")
    return planned if isinstance(planned, int) else None


def _read_records(folder: Path, layout: PartSchema, finished: bool) -> list[dict[str, Any]]:
    """The records of a part; of an unfinished one without a last line that is still being
    written.
    """
    path = folder / layout.records
    if not path.is_file():
        return []
    complete_lines = path.read_bytes().count(b"\n")
    records = []
    if complete_lines == 0 and not finished:
        return records
    for number, record in numbered_jsonl(path):
        where = f"{path}, line {number}"
        for name, kind in layout.record_fields.items():
            _typed(record, name, kind, where)
        for name in layout.record_numbers:
            _typed(record, name, float, where, optional=True)
        records.append(record)
        if number == complete_lines and not finished:
            break
    return records


def _typed(
    values: dict[str, Any], name: str, kind: type, where: str | Path, optional: bool = False
) -> Any:
    value = values.get(name)
    if optional and value is None:
        return None
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        found = f"found {value!r:.80}" if name in values else "which is missing"
        raise UserError(f"{where}: field {name!r} must be {WORDS[kind]}, {found}")
    return value


def _rate(values: dict[str, Any], name: str, path: Path) -> Rate | None:
    *outer, last = name.split(".")
    for key in outer:
        values = _typed(values, key, dict, path)
    if last in values and values[last] is None:
        return None
    found = _typed(values, last, dict, path)
    where = f"{path}: in {name!r}"
    count, total = _typed(found, "count", int, where), _typed(found, "total", int, where)
    if not 0 <= count <= total:
        raise UserError(f"{where}: a count of {count} out of {total}")
    shares = [
        _typed(found, key, float, where, optional=total == 0) for key in ("low", "rate", "high")
    ]
    if total == 0:
        return Rate(0, 0, None, None, None)
    low, rate, high = shares
    if not (
        0 <= low <= high <= 1 and low - 1e-9 <= rate <= high + 1e-9
    ):  # Wilson's ends meet 0 and 1 up to rounding
        raise UserError(
            f"{where}: rate {rate} outside its interval [{low}, {high}], or that outside [0, 1]"
        )
    return Rate(count, total, rate, low, high)


def _groups(summary: dict[str, Any], name: str, path: Path) -> dict[str, dict[str, Rate | None]]:
    groups = _typed(summary, name, dict, path)
    return {
        key: {rate: _rate(groups, f"{key}.{rate}", path) for rate in GROUP_RATES} for key in groups
    }
