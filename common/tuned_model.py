"""The model that a run tuned, or that an adapter and a base make: what is named and what it
needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.records import read_json
from llama.json_files import read_json_object
from lora import adapter_fingerprint
from lora.adapter import CONFIG_FILE

ADAPTER, BEST_ADAPTER = "adapter", "adapter-best"  # the folders that train.py leaves in a run
CHOICES = {"last": ADAPTER, "best": BEST_ADAPTER}  # as --adapter names them


@dataclass(frozen=True)
class Tuned:
    """A base model with an adapter, or the base alone."""

    model: str
    adapter: Path | None
    run: Path | None
    training: dict[str, Any]  # what train.py recorded, if the adapter is the run's own

    def check_base(self, fingerprint: str) -> None:
        """UserError if the base model, which has this fingerprint, is not what was trained on."""
        trained_on = self.training.get("model_fingerprint", fingerprint)
        if fingerprint != trained_on:
            raise UserError(
                f"{self.model} has the fingerprint {fingerprint}, but {self.run} was trained on "
                f"{trained_on}: the model at this path has changed"
            )


def find_tuned(run: Path | None, adapter: Path | None, model: str | None) -> Tuned:
    """The model that these options name: RUN/adapter unless `adapter` is given, and its base.

    `adapter` may be "best" or "last", one of the run's own. UserError for a run without a finished
    training, an adapter that is not the one that the training wrote, and a base model that cannot
    be told.
    """
    training: dict[str, Any] = {}
    if adapter is not None and is_choice(adapter):
        if run is None:
            raise UserError(
                f"--adapter {adapter} is one of a run: give --run; a folder is ./{adapter}"
            )
        adapter = chosen_adapter(run, adapter)
        training = read_training(run, adapter)
    elif run is not None and adapter is None:
        adapter = run / ADAPTER
        training = read_training(run, adapter)
    base = model or training.get("model")
    if base is None and adapter is not None:
        base = read_json_object(adapter / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise UserError(f"{adapter}: it names no base model; give --model")
    return Tuned(base, adapter, run, training)


def is_choice(adapter: Path) -> bool:
    """Tell if --adapter says "best" or "last" and no folder."""
    return str(adapter) in CHOICES


def chosen_adapter(run: Path, choice: Path) -> Path:
    """The folder of the run's best or last adapter.

    UserError if its training is not finished, or kept no best one.
    """
    summary = _finished_training(run)
    if str(choice) == "best" and not summary.get("best_adapter_fingerprint"):
        raise UserError(
            f"{run} has no best adapter: it was trained without validation, or by a version that "
            "kept none; --adapter last is the one there is"
        )
    return run / CHOICES[str(choice)]


def written_fingerprint(training: Mapping[str, Any], adapter: Path) -> Any:
    """The fingerprint of an adapter folder as its training wrote it; None if it does not say."""
    is_best = adapter.name == BEST_ADAPTER
    return training.get("best_adapter_fingerprint" if is_best else "adapter_fingerprint")


def _finished_training(run: Path) -> dict[str, Any]:
    """The summary of the run's training. UserError unless it is finished."""
    path = run / "train.summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; was this run trained? --model names a base alone")
    summary = read_json(path)
    if not summary.get("finished") or not isinstance(summary.get("settings"), dict):
        raise UserError(f"{path}: this training is not finished; finish it with train.py")
    return summary


def read_training(run: Path, adapter: Path) -> dict[str, Any]:
    """The settings of the run's training. UserError unless it is finished and `adapter` whole."""
    summary = _finished_training(run)
    expected, found = written_fingerprint(summary, adapter), adapter_fingerprint(adapter)
    if found != expected:
        raise UserError(
            f"{adapter} has the fingerprint {found}, its training wrote {expected}: it is "
            "damaged or another one; train again, or name it with --adapter"
        )
    return dict(summary["settings"])
