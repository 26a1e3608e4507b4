"""The loop around the trainer: progress, records of every step, validation and checkpoints to go on
from.
"""

import os
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import runs
from common.ranks import rank
from data.examples import Example
from data.records import append_record, open_records, read_jsonl, repair_jsonl, rewrite_records
from lora.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from lora.kl_anchor import measure_divergence
from lora.trainer import Trainer, training_batches

SECONDS_BETWEEN_CHECKPOINTS = (
    300  # a large model's steps are slow: an interruption costs minutes, not hours
)


class TrainingRun:
    """RUN/train.jsonl and RUN/checkpoints, from the newest checkpoint on."""

    def __init__(self, run: Path, trainer: Trainer, anchors: list[Example]) -> None:
        self.run, self.trainer, self.anchors = run, trainer, anchors
        self.seconds = 0.0  # of training alone, over all calls
        self.records: list[dict[str, Any]] = []
        path = run / "train.jsonl"
        if saved := checkpoints(run / "checkpoints"):
            tensors, values = load_checkpoint(saved[-1])
            trainer.load_state(tensors, values)
            self.seconds = values["seconds"]
            print(f"going on from {saved[-1]}", flush=True)
            if rank() == 0:
                repair_jsonl(path)
                # Steps after the checkpoint are about to be taken again.
                self.records = [
                    record
                    for record in read_jsonl(path)
                    if record["step"] <= trainer.completed_steps
                ]
        if rank() == 0:
            rewrite_records(path, self.records)
        self.file = open_records(path if rank() == 0 else Path(os.devnull), resume=True)

    def follow(
        self,
        training: list[Example],
        validation: list[Example],
        batch_size: int,
        checkpoint_every: int,
        keep_checkpoints: int,
    ) -> None:
        """Take the steps that are left, a checkpoint and a validation every so many of them."""
        trainer, total = self.trainer, self.trainer.options.total_steps
        started = trainer.completed_steps
        batches = training_batches(training, batch_size, trainer.options.seed, started, total)
        saved = time.monotonic()
        quiet = rank() > 0 or None
        with (
            self.file,
            tqdm(total=total, initial=started, desc="training", unit="step", disable=quiet) as bar,
        ):
            for batch in batches:
                begin = time.perf_counter()
                result = trainer.step(batch)
                self.seconds += time.perf_counter() - begin
                taken = {name: value for name, value in vars(result).items() if value is not None}
                self._record(
                    {"step": trainer.completed_steps, **taken, "seconds": round(self.seconds, 3)}
                )
                speed = result.tokens / (time.perf_counter() - begin)
                memory = runs.peak_memory_bytes(trainer.model.device) / 2**30
                bar.set_postfix_str(
                    f"loss {result.loss:.4f}, {speed:.0f} tokens/s, {memory:.1f} GiB"
                )
                bar.update()
                due = (
                    trainer.completed_steps % checkpoint_every == 0
                    or trainer.completed_steps == total
                )
                loss = self._validate(validation) if due and validation else None
                if due or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self._save(loss, keep_checkpoints)
                    saved = time.monotonic()

    def _validate(self, validation: list[Example]) -> float:
        loss = self.trainer.validation_loss(validation)
        divergence = measure_divergence(self.trainer.model, validation, self.anchors)
        self._record({"step": self.trainer.completed_steps, "validation_loss": loss, **divergence})
        if rank() == 0:
            tqdm.write(f"step {self.trainer.completed_steps}: validation loss {loss:.4f}")
        return loss

    def _save(self, validation_loss: float | None, keep: int) -> None:
        if rank():
            return
        tensors, values = self.trainer.state()
        values |= {"seconds": self.seconds, "validation_loss": validation_loss}
        save_checkpoint(
            self.run / "checkpoints", self.trainer.completed_steps, tensors, values, keep
        )

    def _record(self, record: dict[str, Any]) -> None:
        append_record(self.file, record)
        self.records.append(record)

    def summary(self, examples: int) -> dict[str, Any]:
        steps = [record for record in self.records if "loss" in record]
        validation = [
            record["validation_loss"] for record in self.records if "validation_loss" in record
        ]
        seen, tokens = sum(r["examples"] for r in steps), sum(r["tokens"] for r in steps)
        return {
            "examples": examples,
            "examples_seen": seen,
            "steps": len(steps),
            "skipped_steps": self.trainer.skipped_steps,
            "tokens": tokens,
            "supervised_tokens": sum(r["supervised_tokens"] for r in steps),
            "first_loss": steps[0]["loss"],
            "last_loss": steps[-1]["loss"],
            "last_validation_loss": validation[-1] if validation else None,
            "best_validation_loss": min(validation, default=None),
            **{
                name: value
                for record in self.records
                for name, value in record.items()
                if name.startswith("kl_")
            },
            "seconds": round(self.seconds, 3),
            "examples_per_second": seen / self.seconds,
            "tokens_per_second": tokens / self.seconds,
            "trainable_parameters": sum(parameter.numel() for parameter in self.trainer.parameters),
            "peak_memory_bytes": runs.peak_memory_bytes(self.trainer.model.device),
        }
