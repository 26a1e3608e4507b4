"""The model that a run tuned, or that an adapter and a base make: what is named and what it
needs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.records import read_json
from llama.json_files import read_json_object
from lora import adapter_fingerprint
from lora.adapter import CONFIG_FILE


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

    UserError for a run without a finished training, an adapter that is not the one that the
    training wrote, and a base model that cannot be told.
    """
    training: dict[str, Any] = {}
    if run is not None and adapter is None:
        training = read_training(run)
        adapter = run / "adapter"
    base = model or training.get("model")
    if base is None and adapter is not None:
        base = read_json_object(adapter / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise UserError(f"{adapter}: it names no base model; give --model")
    return Tuned(base, adapter, run, training)


def read_training(run: Path) -> dict[str, Any]:
    """The settings of the run's training. UserError unless it is finished and its adapter whole."""
    path = run / "train.summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; was this run trained? --model names a base alone")
    summary = read_json(path)
    settings = summary.get("settings")
    if not summary.get("finished") or not isinstance(settings, dict):
        raise UserError(f"{path}: this training is not finished; finish it with train.py")
    expected = summary.get("adapter_fingerprint")
    found = adapter_fingerprint(run / "adapter")
    if found != expected:
        raise UserError(
            f"{run / 'adapter'} has the fingerprint {found}, its training wrote {expected}: it is "
            "damaged or another one; train again, or name it with --adapter"
        )
    return settings
