"""The loop around the trainer: step records, validation, checkpoints to resume from."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

from tqdm import tqdm

from common import runs
from common.ranks import rank
from data.checked import checked
from data.examples import Example
from data.records import (
    Record,
    append_record,
    numbered_jsonl,
    open_records,
    repair_jsonl,
    rewrite_records,
)
from llama.errors import UserError
from lora.adapter import adapter_fingerprint, save_adapter
from lora.checkpoint import (
    VALUES,
    best_checkpoint,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    tidy_checkpoints,
)
from lora.kl_anchor import measure_divergence
from lora.trainer import StepResult, Trainer, training_batches

# A large model's steps are slow: an interruption should cost minutes, not hours.
SECONDS_BETWEEN_CHECKPOINTS = 300


class State(TypedDict):
    """The values of a checkpoint."""

    completed_steps: int
    skipped_steps: int
    scaler: dict[str, Any]
    seconds: float
    validation_loss: float | None


class LoggedStep(TypedDict):
    """The fields of a step's record that the summary is made of."""

    step: int
    loss: float
    examples: int
    tokens: int
    supervised_tokens: int


class LoggedValidation(TypedDict):
    """The fields of a validation's record, beside the divergence."""

    step: int
    validation_loss: float


def read_log(path: Path, completed_steps: int) -> list[Record]:
    """The records of RUN/train.jsonl up to a step.

    UserError, naming the line, for one that is not whole, and if a step is missing or there twice.
    """
    repair_jsonl(path)
    records: list[Record] = []
    steps = 0
    for line, record in numbered_jsonl(path) if path.exists() else ():
        kind = LoggedStep if "loss" in record else LoggedValidation
        checked(record, kind, f"{path}, line {line}")
        if record["step"] > completed_steps:
            continue
        records.append(record)
        steps += "loss" in record
    if steps != completed_steps:
        raise UserError(
            f"{path} has {steps} steps, the checkpoint was made after {completed_steps}; start "
            "again with --no-resume"
        )
    return records


class TrainingLoop:
    """RUN/train.jsonl and RUN/checkpoints, from the newest checkpoint on.

    `anchors` are the examples on which the divergence from the base is measured. Of several
    processes, rank 0 reads and writes the files.
    """

    def __init__(self, run: Path, trainer: Trainer, anchors: list[Example]) -> None:
        self.run_folder, self.trainer, self.anchors = run, trainer, anchors
        self.seconds = 0.0  # of training alone, over all calls
        self.records: list[Record] = []
        self.log: Callable[[Record], None] | None = None
        path = run / "train.jsonl"
        if saved := checkpoints(run / "checkpoints"):
            self._resume(saved[-1], path)
        if rank() == 0:
            rewrite_records(path, self.records)
        self.file = open_records(path if rank() == 0 else Path(os.devnull), resume=True)

    def _resume(self, checkpoint: Path, path: Path) -> None:
        """Load a checkpoint and the records of the steps up to it; later ones are taken again."""
        tensors, values = load_checkpoint(checkpoint)
        checked(values, State, str(checkpoint / VALUES))
        try:
            self.trainer.load_state(tensors, values)
        except UserError as error:
            raise UserError(
                f"{checkpoint}: {error}; delete it to go on from the one before"
            ) from None
        self.seconds = values["seconds"]
        print(f"going on from {checkpoint}", flush=True)
        if rank() == 0:
            self.records = read_log(path, self.trainer.completed_steps)

    def run(
        self,
        training: list[Example],
        validation: list[Example],
        batch_size: int,
        checkpoint_every: int,
        keep_checkpoints: int,
        log: Callable[[Record], None] | None = None,
    ) -> None:
        """Take the steps that are left; validate and save a checkpoint every so many of them.

        `log` is called with every record that is written.
        """
        trainer, self.log = self.trainer, log
        if rank() == 0:
            tidy_checkpoints(self.run_folder / "checkpoints", keep_checkpoints)
        total, done = trainer.options.total_steps, trainer.completed_steps
        batches = training_batches(training, batch_size, trainer.options.seed, done, total)
        saved = time.monotonic()
        silent = True if rank() else None  # None: where there is no terminal
        bar = tqdm(total=total, initial=done, desc="training", unit="step", disable=silent)
        with self.file, bar:
            for batch in batches:
                self._step(batch, bar)
                done = trainer.completed_steps
                due = done % checkpoint_every == 0 or done == total
                loss = self._validate(validation) if due and validation else None
                if due or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self._save(loss, keep_checkpoints)
                    saved = time.monotonic()

    def _step(self, batch: list[Example], bar: Any) -> None:
        """Take one optimizer step, record it and show it on the progress bar."""
        begin = time.perf_counter()
        result = self.trainer.step(batch)
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        self._record(self._step_record(result))
        memory = runs.peak_memory_bytes(self.trainer.model.device) / 2**30
        speed = result.tokens / seconds
        bar.set_postfix_str(f"loss {result.loss:.4f}, {speed:.0f} tokens/s, {memory:.1f} GiB")
        bar.update()

    def _step_record(self, result: StepResult) -> Record:
        measured = {name: value for name, value in vars(result).items() if value is not None}
        step = {"step": self.trainer.completed_steps}
        return {**step, **measured, "seconds": round(self.seconds, 3)}

    def _validate(self, validation: list[Example]) -> float:
        """Record the validation loss, with anchors the divergence as well; return the loss.

        With an average of the adapter both are the average's, which is what is saved.
        """
        step = self.trainer.completed_steps
        average = self.trainer.average
        with average.in_place() if average else nullcontext():
            loss = self.trainer.validation_loss(validation)
            divergence = measure_divergence(self.trainer.model, validation, self.anchors)
        self._record({"step": step, "validation_loss": loss, **divergence})
        if rank() == 0:
            tqdm.write(f"step {step}: validation loss {loss:.4f}")
        return loss

    def _save(self, validation_loss: float | None, keep: int) -> None:
        if rank():
            return
        tensors, values = self.trainer.state()
        values |= {"seconds": self.seconds, "validation_loss": validation_loss}
        folder = self.run_folder / "checkpoints"
        save_checkpoint(folder, self.trainer.completed_steps, tensors, values, keep)

    def _record(self, record: Record) -> None:
        append_record(self.file, record)
        self.records.append(record)
        if self.log:
            self.log(record)

    def save_best(self, folder: Path, base_model: str | None) -> Record:
        """Write the adapter of the checkpoint with the lowest validation loss, if there is one.

        Returns what the summary says of it, and leaves the model as it is.
        """
        best = best_checkpoint(self.run_folder / "checkpoints")
        if best is None:
            return {}
        tensors, values = load_checkpoint(best)
        with self.trainer.parameters_of(tensors):
            save_adapter(self.trainer.model, folder, base_model)
        fingerprint = adapter_fingerprint(folder)
        return {"best_step": values["completed_steps"], "best_adapter_fingerprint": fingerprint}

    def summary(self, examples: int) -> Record:
        """The result part of the summary; `examples` is how many there were to train on."""
        steps = [record for record in self.records if "loss" in record]
        validations = [record for record in self.records if "validation_loss" in record]
        losses = [record["validation_loss"] for record in validations]
        seen = sum(record["examples"] for record in steps)
        tokens = sum(record["tokens"] for record in steps)
        divergence: Record = {}
        for record in self.records:  # the last one of each kind counts
            divergence |= {name: record[name] for name in record if name.startswith("kl_")}
        return {
            "examples": examples,
            "examples_seen": seen,
            "steps": len(steps),
            "skipped_steps": self.trainer.skipped_steps,
            "tokens": tokens,
            "supervised_tokens": sum(record["supervised_tokens"] for record in steps),
            "first_loss": steps[0]["loss"],
            "last_loss": steps[-1]["loss"],
            "last_validation_loss": losses[-1] if losses else None,
            "best_validation_loss": min(losses, default=None),
            **divergence,
            "seconds": round(self.seconds, 3),
            "examples_per_second": seen / self.seconds,
            "tokens_per_second": tokens / self.seconds,
            "trainable_parameters": sum(p.numel() for p in self.trainer.parameters),
            "peak_memory_bytes": runs.peak_memory_bytes(self.trainer.model.device),
        }
