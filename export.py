"""Write a tuned model that others can load: python export.py --run RUN --to DIR

Merges RUN/adapter into the base model, in float32, and writes a checkpoint folder with tokenizer,
chat template, generation config and a model card, which transformers and vLLM read. The folder is
loaded again and its logits are compared with those of the unmerged model; a broken one is not kept.
--gguf FILE writes a GGUF file for llama.cpp, as well or instead, and checks it in the same way.
--push OWNER/NAME uploads the folder to the Hugging Face Hub.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common import cli
from common.command_line import parse_settings
from common.errors import UserError
from common.hub_upload import prepare_upload
from common.options import non_negative_float, option
from common.tuned_model import Tuned, find_tuned
from data.ailuminate import AILuminate
from data.gsm8k import GSM8K
from data.prompts import Message
from llama.atomic_files import flush_to_disk, named_write_errors
from llama.config import ModelConfig
from llama.fingerprint import model_fingerprint
from llama.gguf_writer import TYPES, check_writable, write_gguf
from llama.hub import HUB_ID, name_for_others, resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, merge_lora
from lora.merged_checkpoint import (
    DTYPES,
    LOST_TOO_MUCH,
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


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The options of export.py."""

    run: Path | None = option(
        None,
        "run folder: its adapter and the model that it was trained on",
        parse=Path,
        metavar="DIR",
    )
    adapter: Path | None = option(
        None,
        "an adapter in PEFT's format, or RUN's own: the last one, or the best by validation loss "
        "(last)",
        parse=Path,
        metavar="DIR|best|last",
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
    gguf: Path | None = option(
        None, "GGUF file to write, not there yet", parse=Path, metavar="FILE"
    )
    gguf_type: str = option("F16", "of the matrices in it (%(default)s)", choices=TYPES)
    push: str | None = option(
        None, "upload the folder to the Hugging Face Hub as well", metavar="OWNER/NAME"
    )
    private: bool = option(False, "with --push: a private repository", flag=True)
    dry_run: bool = option(False, "say what would be done and write nothing", flag=True)

    def __post_init__(self) -> None:
        if self.to is None and self.gguf is None:
            raise UserError("--to DIR or --gguf FILE is missing: where the model goes")
        if self.push and self.to is None:
            raise UserError("--push uploads a folder: give --to DIR as well")
        if self.run is None and self.adapter is None and self.model is None:
            raise UserError("nothing to export: give --run, --adapter or --model")
        if self.private and not self.push:
            raise UserError("--private without --push OWNER/NAME")


def parse_arguments(argv: Sequence[str] | None) -> ExportSettings:
    return parse_settings(ExportSettings, __doc__, argv)


def check_targets(settings: ExportSettings) -> None:
    """UserError unless the folder is empty or not there yet, and the file is not there."""
    folder, file = settings.to, settings.gguf
    if folder and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder}: not an empty folder; choose another")
    if file and file.exists():
        raise UserError(f"--gguf {file}: is there already; choose another name")
    if file and not file.absolute().parent.is_dir():
        raise UserError(f"--gguf {file}: no such folder {file.absolute().parent}")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which becomes `target` only if the block succeeds."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_file():
            flush_to_disk(partial)
        if target.is_dir():
            target.rmdir()  # empty, see check_targets; a rename onto it fails on some systems
        partial.rename(target)
        flush_to_disk(target.absolute().parent)
    finally:
        if partial.is_file():
            partial.unlink()
        shutil.rmtree(partial, ignore_errors=True)


def probe_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """A few embedded questions and hazard prompts as token ids."""
    chats: list[list[Message]] = []
    for record in GSM8K().load("demo", "test")[:PROBES]:
        chats.append(GSM8K().messages(record))
    for record in AILuminate().load("demo")[:PROBES]:
        chats.append([{"role": "user", "content": record["prompt"]}])
    return [tokenizer.encode_chat(chat) for chat in chats]


def hub_id(model: str) -> str | None:
    """The model's name on the Hugging Face Hub; None for a local path."""
    name = name_for_others(model)
    return name if HUB_ID.fullmatch(name) else None


def describe_check(check: Comparison, dtype: str, lost: float) -> str:
    """The result of the comparison with the unmerged model, in a sentence or two."""
    text = (
        f"Beside the unmerged model in float32 the largest logit difference is "
        f"{check.largest_difference:.2g} at {check.positions} positions (logits reach "
        f"{check.largest_logit:.1f})."
    )
    if lost:
        text += f" Rounding to {dtype} loses {lost:.1%} of the adapter's update."
    return text


@dataclass(frozen=True)
class Export:
    """A merged model in memory and what is known of it before it is written."""

    settings: ExportSettings
    tuned: Tuned
    base: Path  # folder or GGUF file, for the config and tokenizer files
    fingerprint: str
    dtype: str
    model: Decoder  # merged, float32
    prompts: list[list[int]]
    expected: list[Tensor]  # the unmerged model's logits
    lost: float  # of the update, by rounding to dtype

    def check(self, written: Path, kind: str) -> Comparison:
        """Load what was written and compare it with the unmerged model.

        UserError, so that it is not kept, if it is not the same model up to rounding.
        """
        if probe_prompts(load_tokenizer(written)) != self.prompts:
            raise UserError(f"{written}: its tokenizer gives other tokens than the base model's")
        found = probe_logits(load_model(written), self.prompts)
        check = compare_logits(self.expected, found)
        if check.is_broken(kind):
            raise UserError(
                f"the merged model's logits differ by {check.largest_difference:.2g} from the "
                f"unmerged model's, which reach {check.largest_logit:.1f}: more than rounding to "
                f"{kind} explains; it is not kept"
            )
        return check


def merge(
    settings: ExportSettings, tuned: Tuned, base: Path, fingerprint: str, dtype: str
) -> Export:
    """Load base and adapter, note what the model says unmerged, and merge."""
    prompts = probe_prompts(load_tokenizer(base))
    model = load_tuned(tuned.model, tuned.adapter, settings.adapter_scale)
    expected = probe_logits(model, prompts)
    lost = update_lost(model, dtype)
    merge_lora(model)
    return Export(settings, tuned, base, fingerprint, dtype, model, prompts, expected, lost)


def write_folder(job: Export, target: Path) -> None:
    """Write the checkpoint folder with its card, checked."""
    with whole(target) as folder:
        with named_write_errors(target):
            folder.mkdir(parents=True)
            write_checkpoint(job.model, job.base, folder, job.dtype)
        check = job.check(folder, job.dtype)
        text = describe_check(check, job.dtype, job.lost)
        adapter = job.tuned.adapter
        source = Source(
            model=job.tuned.model,
            published_as=hub_id(job.tuned.model),
            model_fingerprint=job.fingerprint,
            adapter=adapter_fingerprint(adapter) if adapter else None,
            scale=job.settings.adapter_scale,
            dtype=job.dtype,
            check=text,
            run=job.tuned.run,
            training=job.tuned.training,
        )
        card = model_card(source, title=target.resolve().name)
        (folder / CARD).write_text(card, encoding="utf-8")
    print(f"{target}: {text}")
    if job.lost > LOST_TOO_MUCH:
        print(
            f"Note: most of this adapter is smaller than a step of {job.dtype}: export it with "
            "--dtype float32, or hand out base and adapter apart"
        )


def write_gguf_file(job: Export, target: Path) -> None:
    """Write the GGUF file, checked."""
    kind = job.settings.gguf_type
    with whole(target) as file:
        with named_write_errors(target):
            write_gguf(job.model, job.base, file, kind, name=target.stem)
        check = job.check(file, kind)
    print(f"{target}: {describe_check(check, kind, 0)}")


def export(settings: ExportSettings) -> None:
    tuned = find_tuned(settings.run, settings.adapter, settings.model)
    if tuned.adapter is None and settings.adapter_scale != 1:
        raise UserError(f"--adapter-scale {settings.adapter_scale:g} without an adapter to scale")
    check_targets(settings)
    base = resolve(tuned.model)
    fingerprint = model_fingerprint(tuned.model)
    tuned.check_base(fingerprint)
    if settings.gguf:
        check_writable(ModelConfig.load(base), base)
    dtype = stored_dtype(base) if settings.dtype == "auto" else settings.dtype
    with_adapter = f" with {tuned.adapter}" if tuned.adapter else ""
    targets = f"{settings.to}, {dtype}" if settings.to else ""
    if settings.gguf:
        targets += f"{'; ' if targets else ''}{settings.gguf}, {settings.gguf_type}"
    print(f"{tuned.model}{with_adapter} -> {targets}", flush=True)
    if settings.dry_run:
        return
    upload = prepare_upload(settings.push, settings.private) if settings.push else None
    job = merge(settings, tuned, base, fingerprint, dtype)
    if settings.to:
        write_folder(job, settings.to)
    if settings.gguf:
        write_gguf_file(job, settings.gguf)
    if upload and settings.to:
        print(f"uploaded to {upload.send(settings.to)}")


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(export, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
