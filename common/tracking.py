"""Curves of a training in TensorBoard, Trackio or Weights & Biases: train.py --log-to NAME.

The library is imported only if it is named. RUN/log-to.NAME.json says up to which step it has been
told: a training that goes on repeats the steps since its last checkpoint, and those must not be
there twice. Steps of before --log-to was given are told as well.
"""

import importlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.records import Record, read_json, write_json

PROJECT = "unforget"  # at Trackio and Weights & Biases, unless WANDB_PROJECT names another
MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}
TRACKERS = tuple(MODULES)

Log = Callable[[Record], None]


@dataclass
class Tracker:
    """One library's view of a training. `write` takes values by name and their step."""

    state_path: Path
    write: Callable[[dict[str, float], int], None]
    id: str
    logged: dict[str, int] = field(default_factory=dict)  # the last step, by kind of record

    def log(self, record: Record) -> None:
        """Pass a record of RUN/train.jsonl on, unless the library has been told of that step."""
        step, kind = record["step"], "validation" if "validation_loss" in record else "training"
        if step <= self.logged.get(kind, 0):
            return
        values = {}
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                values[name] = value
        self.write(values, step)
        self.logged[kind] = step
        self.save()

    def save(self) -> None:
        write_json(self.state_path, {"id": self.id, "logged": self.logged})


def tracker_files(run: Path) -> list[Path]:
    """The files and folders that trackers leave in a run folder."""
    return [run / "tensorboard", *(_state_path(run, name) for name in TRACKERS)]


def check_tracker(name: str | None) -> None:
    """UserError, with the pip command, if the library is not installed."""
    if name is not None:
        _import(name)


@contextmanager
def tracking(
    name: str | None, run: Path, settings: Mapping[str, Any], earlier: Sequence[Record]
) -> Iterator[Log]:
    """A function that logs a record to the library `name`; without one it does nothing.

    `earlier` are the records of the steps that are taken already. UserError if it is not installed.
    """
    if name is None:
        yield lambda record: None
        return
    path = _state_path(run, name)
    state = read_json(path) if path.is_file() else {}
    identity = str(state.get("id") or secrets.token_hex(4))
    write, close = _OPEN[name](_import(name), run, identity, settings)
    tracker = Tracker(path, write, identity, dict(state.get("logged") or {}))
    try:
        for record in earlier:
            tracker.log(record)
        yield tracker.log
    finally:
        close()


def _state_path(run: Path, name: str) -> Path:
    return run / f"log-to.{name}.json"


def _import(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError:
        raise UserError(
            f"--log-to {name}: {name} is not installed: pip install {name}, or leave --log-to out "
            "(RUN/train.jsonl holds the same values)"
        ) from None


Opened = tuple[Callable[[dict[str, float], int], None], Callable[[], None]]


def _open_tensorboard(module: Any, run: Path, identity: str, settings: Mapping[str, Any]) -> Opened:
    writer = module.SummaryWriter(log_dir=str(run / "tensorboard"))

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a killed process must not lose what counts as told

    return write, writer.close


def _open_trackio(module: Any, run: Path, identity: str, settings: Mapping[str, Any]) -> Opened:
    name = f"{run.resolve().name}-{identity}"
    module.init(project=PROJECT, name=name, config=dict(settings), resume="allow")
    return (lambda values, step: module.log(values, step=step)), module.finish


def _open_wandb(module: Any, run: Path, identity: str, settings: Mapping[str, Any]) -> Opened:
    module.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.resolve().name,
        id=identity,
        dir=str(run),
        config=dict(settings),
        resume="allow",
    )
    return (lambda values, step: module.log(values, step=step)), module.finish


_OPEN: dict[str, Callable[[Any, Path, str, Mapping[str, Any]], Opened]] = {
    "tensorboard": _open_tensorboard,
    "trackio": _open_trackio,
    "wandb": _open_wandb,
}
