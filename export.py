"""Write a tuned model that others can load: python export.py --run RUN --to DIR

Merges RUN/adapter into the base model, in float32, and writes a checkpoint folder with tokenizer,
chat template, generation config and a model card, which transformers and vLLM read. The folder is
loaded again and its logits are compared with those of the unmerged model; a broken one is not kept.
--push OWNER/NAME uploads it to the Hugging Face Hub.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common import cli
from common.errors import UserError
from common.hub_upload import prepare_upload
from common.options import non_negative_float, option, parse_settings
from data.ailuminate import load_ailuminate
from data.gsm8k import gsm8k_messages, load_gsm8k
from data.prompts import Message
from data.records import read_json
from llama.fingerprint import model_fingerprint
from llama.hub import resolve
from llama.json_files import read_json_object
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint
from lora.adapter import CONFIG_FILE
from lora.merged_checkpoint import (
    DTYPES,
    Comparison,
    compare_logits,
    load_tuned,
    probe_logits,
    stored_dtype,
    update_lost,
    write_checkpoint,
)
from reporting.model_card import Source, model_card

CARD = "README.md"
PROBES = 4  # questions, and as many hazard prompts, on which the logits are compared
LOST_TOO_MUCH = 0.5


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What export.py can be told."""

    run: Path | None = option(
        None,
        "run folder: its adapter and the model that it was trained on",
        parse=Path,
        metavar="DIR",
    )
    adapter: Path | None = option(
        None, "an adapter in PEFT's format instead of RUN/adapter", parse=Path, metavar="DIR"
    )
    adapter_scale: float = option(
        1.0, "0 is the base model, 1 as trained (1)", parse=non_negative_float, metavar="X"
    )
    model: str | None = option(
        None, "the base model (that of the run, or the one that the adapter names)", metavar="MODEL"
    )
    to: Path | None = option(None, "folder to write, new or empty", parse=Path, metavar="DIR")
    dtype: str = option(
        "auto",
        "float32, bfloat16, float16, or auto: as the base model is stored",
        choices=("auto", *DTYPES),
        metavar="TYPE",
    )
    push: str | None = option(
        None, "upload the folder to the Hugging Face Hub as well", metavar="OWNER/NAME"
    )
    private: bool = option(False, "with --push: a private repository", flag=True)
    dry_run: bool = option(False, "say what would be done and write nothing", flag=True)

    def __post_init__(self) -> None:
        if self.to is None:
            raise UserError("--to DIR is missing: where the checkpoint goes")
        if self.run is None and self.adapter is None and self.model is None:
            raise UserError("nothing to export: give --run, --adapter or --model")
        if self.private and not self.push:
            raise UserError("--private without --push OWNER/NAME")


def parse_arguments(argv: Sequence[str] | None) -> ExportSettings:
    return parse_settings(ExportSettings, __doc__, argv)


@dataclass(frozen=True)
class Tuned:
    """The model that is exported: a base with an adapter, or the base alone."""

    model: str
    adapter: Path | None
    run: Path | None
    training: dict[str, Any]  # what train.py recorded, if the adapter is the run's own


def find_tuned(settings: ExportSettings) -> Tuned:
    """Find out what is to be exported.

    UserError for a run without a finished training, an adapter that is not the one that the
    training wrote, and a base model that cannot be told.
    """
    training: dict[str, Any] = {}
    adapter = settings.adapter
    if settings.run is not None and adapter is None:
        training = read_training(settings.run)
        adapter = settings.run / "adapter"
    model = settings.model or training.get("model")
    if model is None and adapter is not None:
        model = read_json_object(adapter / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(model, str):
        raise UserError(f"{adapter}: it names no base model; give --model")
    if adapter is None and settings.adapter_scale != 1:
        raise UserError(f"--adapter-scale {settings.adapter_scale:g} without an adapter to scale")
    return Tuned(model, adapter, settings.run, training)


def read_training(run: Path) -> dict[str, Any]:
    """The settings of the run's training. UserError unless it is finished and its adapter whole."""
    path = run / "train.summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; was this run trained? --model exports a base alone")
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


def check_base(tuned: Tuned, fingerprint: str) -> None:
    """UserError if the base model is not the one that was trained on."""
    trained_on = tuned.training.get("model_fingerprint", fingerprint)
    if fingerprint != trained_on:
        raise UserError(
            f"{tuned.model} has the fingerprint {fingerprint}, but {tuned.run} was trained on "
            f"{trained_on}: the model at this path has changed"
        )


def check_target(folder: Path) -> None:
    """UserError unless the folder is empty or not there yet."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder}: not an empty folder; choose another")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`; it becomes `target` if the block succeeds, else it goes."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--to {target}: cannot be written ({error.strerror})") from None
    try:
        yield partial
        if target.is_dir():
            target.rmdir()  # empty, see check_target; a rename onto it fails on some systems
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def probe_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """A few embedded questions and hazard prompts as token ids."""
    chats: list[list[Message]] = []
    for record in load_gsm8k("demo", "test")[:PROBES]:
        chats.append(gsm8k_messages(record["question"]))
    for record in load_ailuminate("demo")[:PROBES]:
        chats.append([{"role": "user", "content": record["prompt"]}])
    return [tokenizer.encode_chat(chat) for chat in chats]


def describe_check(check: Comparison, dtype: str, lost: float) -> str:
    """What the comparison with the unmerged model showed, in a sentence or two."""
    text = (
        f"Beside the unmerged model in float32 the largest logit difference is "
        f"{check.largest_difference:.2g} at {check.positions} positions (logits reach "
        f"{check.largest_logit:.1f})."
    )
    if lost:
        text += f" Rounding to {dtype} loses {lost:.1%} of the adapter's update."
    return text


def export(settings: ExportSettings) -> None:
    assert settings.to is not None
    tuned = find_tuned(settings)
    check_target(settings.to)
    base = resolve(tuned.model)
    fingerprint = model_fingerprint(tuned.model)
    check_base(tuned, fingerprint)
    dtype = stored_dtype(base) if settings.dtype == "auto" else settings.dtype
    with_adapter = f" with {tuned.adapter}" if tuned.adapter else ""
    print(f"{tuned.model}{with_adapter} -> {settings.to}, {dtype}", flush=True)
    if settings.dry_run:
        return
    upload = prepare_upload(settings.push, settings.private) if settings.push else None
    prompts = probe_prompts(load_tokenizer(tuned.model))
    model = load_tuned(tuned.model, tuned.adapter, settings.adapter_scale)
    expected = probe_logits(model, prompts)
    lost = update_lost(model, dtype)
    with whole_folder(settings.to) as folder:
        write_checkpoint(model, base, folder, dtype)
        del model  # before the written one is loaded
        check = compare_written(folder, prompts, expected, dtype)
        source = Source(
            model=tuned.model,
            model_fingerprint=fingerprint,
            adapter=adapter_fingerprint(tuned.adapter) if tuned.adapter else None,
            scale=settings.adapter_scale,
            dtype=dtype,
            check=describe_check(check, dtype, lost),
            run=tuned.run,
            training=tuned.training,
        )
        card = model_card(source, title=settings.to.resolve().name)
        (folder / CARD).write_text(card, encoding="utf-8")
    print(f"{settings.to}: {source.check}")
    if lost > LOST_TOO_MUCH:
        print(
            f"Note: most of this adapter is smaller than a step of {dtype}: export it with --dtype "
            "float32, or hand out base and adapter apart"
        )
    if upload:
        print(f"uploaded to {upload.send(settings.to)}")


def compare_written(
    folder: Path, prompts: list[list[int]], expected: list[Tensor], dtype: str
) -> Comparison:
    """Load the written checkpoint and compare it with the unmerged model.

    UserError, so that the folder is not kept, if it is not the same model up to rounding.
    """
    if probe_prompts(load_tokenizer(folder)) != prompts:
        raise UserError(f"{folder}: its tokenizer gives other tokens than the base model's")
    check = compare_logits(expected, probe_logits(load_model(folder), prompts))
    if check.is_broken(dtype):
        raise UserError(
            f"the merged model's logits differ by {check.largest_difference:.2g} from the unmerged "
            f"model's, which reach {check.largest_logit:.1f}: more than rounding to {dtype} "
            "explains; it is not kept"
        )
    return check


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(export, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
