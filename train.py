"""Fine-tune a chat model on GSM8K with LoRA: python train.py

Writes RUN/adapter/ (PEFT's format), RUN/train.jsonl (a line a step) and RUN/train.summary.json;
RUN/adapter-best/ is the adapter with the lowest validation loss.
After an interruption the same command goes on from the newest checkpoint in RUN/checkpoints/.
--dry-run says what would be trained, in how many steps and how much memory.

On several devices: torchrun --nproc-per-node N -- train.py. Each process takes its share of every
step's examples.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import torch

from common import cli, distributed, runs
from common.command_line import parse_settings
from common.devices import resolve_device, resolve_dtype
from common.errors import UserError
from common.options import recorded
from common.ranks import rank, world_size
from common.run_folder import set_aside
from common.scale_choice import scale_adapter
from common.tracking import check_tracker, tracker_files, tracking
from common.training_data import (
    TrainingData,
    check_scale_data,
    load_anchor_chats,
    load_training_data,
    refuse_test_prompts,
)
from common.training_plan import (
    choose_pass_tokens,
    describe_plan,
    steps_per_epoch,
    trainer_options,
)
from common.training_settings import TrainingSettings
from common.tuned_model import ADAPTER, BEST_ADAPTER
from data.examples import Example, describe_example
from data.mixture import parse_mixture
from data.records import Record, write_json
from llama.atomic_files import remove_folder
from llama.config import ModelConfig
from llama.decoding import check_prompts
from llama.fingerprint import model_fingerprint
from llama.hub import name_for_others, resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model
from lora import adapter_fingerprint, inject_lora, load_adapter, save_adapter
from lora.adapter import is_adapter
from lora.fsdp import shard_base
from lora.kl_anchor import Anchor, FirstTokens, continue_prompts, continue_sharded
from lora.loop import TrainingLoop
from lora.malloc import keep_freed_memory
from lora.onednn import packed_weights
from lora.safe_lora import check_same_shape, project_onto_alignment
from lora.trainer import Trainer

OUT_OF_MEMORY = (
    "try --micro-batch-tokens 512 or --checkpoint-activations (slower), which leave the result as "
    "it is; --quantize int8 and --batch-size change it"
)


def parse_arguments(argv: list[str] | None) -> TrainingSettings:
    return parse_settings(TrainingSettings, __doc__, argv)


def train(settings: TrainingSettings) -> None:
    keep_freed_memory()
    device = distributed.device_of_rank(resolve_device(settings.device))
    silent = contextlib.redirect_stdout(io.StringIO()) if rank() else contextlib.nullcontext()
    with silent, distributed.process_group(device):
        train_on(device, settings)


def train_on(device: torch.device, settings: TrainingSettings) -> None:
    """Train as one of the processes there are; rank 0 writes the files."""
    dtype = resolve_dtype(settings.dtype, device)
    check_tracker(settings.log_to)
    if not settings.dry_run:
        runs.prepare_run(settings.run)
    for part in parse_mixture(settings.data):
        runs.refuse_overwriting(part.name, settings.run / "train.jsonl")
    tokenizer = load_tokenizer(settings.model, date=settings.date)
    config = load_config(settings.model)
    if settings.safe_lora is not None:
        check_same_shape(config, load_config(settings.safe_lora))
    data = load_training_data(settings, tokenizer, device, dtype)
    settings = resolve_defaults(settings, data)
    settings = choose_pass_tokens(settings, config, data, device, dtype)
    record = training_record(settings, dtype, data)
    earlier = runs.load_previous_summary(
        settings.run / "train.jsonl",
        settings.run / "train.summary.json",
        record,
        settings.resume,
        TrainingSettings,
    )
    if is_finished(earlier, settings.run / "adapter"):
        print(f"{settings.run / 'adapter'} is finished already; --no-resume trains it again")
        return
    check_examples(config, data)
    options = trainer_options(settings, dtype)
    if settings.dry_run:
        print(describe_plan(settings, config, options, data, device))
        return
    print(describe_example(tokenizer, data.training[0]), flush=True)

    model = build_model(settings, dtype, device)
    anchors = build_anchors(settings, config, model, tokenizer)
    anchor = None
    if settings.kl_weight:
        first = None
        if settings.kl_first_tokens:
            first = FirstTokens(settings.kl_first_tokens, settings.kl_first_weight)
        weight, batch_size = settings.kl_weight, settings.batch_size
        anchor = Anchor(model, anchors, weight, batch_size, settings.seed, first)
    trainer = Trainer(model, options, anchor)
    begin_run(settings.run, record, is_new=not earlier)
    loop = TrainingLoop(settings.run, trainer, anchors)
    tracker = settings.log_to if rank() == 0 else None
    # Packed weights are faster, but each is there twice: not where memory is what counts.
    packed = contextlib.nullcontext() if settings.checkpoint_activations else packed_weights(model)
    with packed, tracking(tracker, settings.run, record, loop.records) as log:
        loop.run(
            data.training,
            data.validation,
            batch_size=settings.batch_size,
            checkpoint_every=settings.checkpoint_every,
            keep_checkpoints=settings.keep_checkpoints,
            log=log,
        )
    changes = change_adapter(settings, trainer, data)
    if rank() == 0:
        result = loop.summary(len(data.training)) | {"held_out": sorted(data.held_out)} | changes
        if data.mixture:
            result["mixture"] = data.mixture
        finish_run(settings, loop, record, result, device)


def load_config(model: str) -> ModelConfig:
    return ModelConfig.load(resolve(model, allow_weights=False))


def resolve_defaults(settings: TrainingSettings, data: TrainingData) -> TrainingSettings:
    """Fill in what depends on other options or on the number of examples.

    UserError for options that must not go together.
    """
    kl_prompts = settings.kl_prompts
    if settings.kl_weight and kl_prompts is None:
        kl_prompts = "demo"
    if settings.kl_weight and kl_prompts is not None:
        refuse_test_prompts(kl_prompts)
    steps = settings.steps
    if steps is None:
        steps = max(1, round(settings.epochs * steps_per_epoch(settings, data)))
    validation = len(data.validation)
    if settings.choose_scale:
        check_scale_data(settings, data)
    return replace(settings, kl_prompts=kl_prompts, steps=steps, validation=validation)


def training_record(settings: TrainingSettings, dtype: torch.dtype, data: TrainingData) -> Record:
    """The settings as the summary keeps them, with hashes of what they stand for."""
    adapter = settings.init_adapter
    record = recorded(settings) | {
        "data": " ".join(settings.data),
        "dtype": str(dtype).removeprefix("torch."),
        "model_fingerprint": model_fingerprint(settings.model),
        "init_adapter": adapter_fingerprint(adapter) if adapter else None,
        "training_examples_sha256": data.examples_sha256,
        "held_out_sha256": data.held_out_sha256,
    }
    if settings.safe_lora is not None:
        record["safe_lora_fingerprint"] = model_fingerprint(settings.safe_lora)
    if settings.dropout:  # each process draws its own masks
        record["processes"] = world_size()
    return record


def is_finished(summary: Record, adapter: Path) -> bool:
    """True if the training is over and its adapter as it was saved."""
    if not summary.get("finished") or not is_adapter(adapter):
        return False
    saved, found = summary.get("adapter_fingerprint"), adapter_fingerprint(adapter)
    if saved not in (None, found):
        print(
            f"{adapter} is not the adapter that this training saved ({found}, the summary says "
            f"{saved}): making it again from the newest checkpoint"
        )
    return saved in (None, found)


def check_examples(config: ModelConfig, data: TrainingData) -> None:
    """UserError, naming the record, for an example that the model cannot read or predict."""
    # the last token is predicted and not read: it may lie beyond the context
    check_prompts(config, [example.input_ids[:-1] for example in data.examples], data.ids)
    for name, example in zip(data.ids, data.examples, strict=True):
        token = example.input_ids[-1]
        if not 0 <= token < config.vocab_size:
            raise UserError(
                f"{name}: its last token has the id {token}, outside the model's vocabulary of "
                f"{config.vocab_size}: the tokenizer is not this model's, or its embedding was not "
                "resized"
            )


def build_model(settings: TrainingSettings, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The base with its LoRA layers, new or of --init-adapter."""
    load_device = torch.device("cpu") if settings.fsdp else device  # sharding moves the parts
    model = load_model(settings.model, dtype=dtype, device=load_device, quantize=settings.quantize)
    torch.manual_seed(settings.seed)
    inject_lora(model, settings.lora_config())
    if settings.init_adapter:
        load_adapter(model, settings.init_adapter)
    if settings.fsdp:
        shard_base(model, device)
    return model


def build_anchors(
    settings: TrainingSettings, config: ModelConfig, model: Decoder, tokenizer: Tokenizer
) -> list[Example]:
    """The prompts of --kl-prompts with what the base says to them; none without the option."""
    if settings.kl_prompts is None:
        return []
    prompts = []
    names = []
    chats = load_anchor_chats(settings.kl_prompts, settings.system)
    for number, chat in enumerate(chats, start=1):
        prompts.append(tokenizer.encode_chat(chat))
        names.append(f"prompt {number} of {settings.kl_prompts}")
    check_prompts(config, prompts, names)
    answer = continue_sharded if settings.fsdp else continue_prompts
    return answer(model, prompts, tokenizer.stop_ids)


def change_adapter(settings: TrainingSettings, trainer: Trainer, data: TrainingData) -> Record:
    """Make of the trained adapter what is saved: its average, projected, at the chosen scale.

    Each step is an option's. Returns what the summary says of them.
    """
    if trainer.average:
        trainer.average.replace_parameters()
    changes = project_update(settings, trainer, data)
    if settings.choose_scale:
        changes |= scale_adapter(trainer.model, data.validation, settings.choose_scale)
    return changes


def project_update(settings: TrainingSettings, trainer: Trainer, data: TrainingData) -> Record:
    """Apply --safe-lora to the trained layers; what the summary says of it, {} without the option.

    `validation_loss` is that of the projected adapter, which is saved.
    """
    if settings.safe_lora is None:
        return {}
    model, threshold = trainer.model, settings.safe_lora_threshold
    untuned = load_model(settings.safe_lora, dtype=model.dtype, device="cpu")
    cosines = project_onto_alignment(model, untuned, threshold)
    projected = [name for name, cosine in cosines.items() if cosine < threshold]
    loss = trainer.validation_loss(data.validation) if data.validation else None
    print(f"Safe LoRA: {len(projected)} of {len(cosines)} layers projected")
    return {"safe_lora": {"projected": projected, "cosines": cosines, "validation_loss": loss}}


def begin_run(run: Path, record: Record, is_new: bool) -> None:
    """Let rank 0 write the summary of an unfinished run, once all have read what was there."""
    distributed.barrier()
    if rank() == 0:
        if is_new:  # before the summary vouches for what is there
            # In an order in which a call that is killed leaves a training that can be resumed.
            kept = set_aside(run / ADAPTER, run / BEST_ADAPTER)
            remove_folder(run / "checkpoints")
            kept += set_aside(run / "train.jsonl", run / "train.summary.json", *tracker_files(run))
            for path in kept:
                print(f"--no-resume: what an earlier call made is kept as {path}")
        summary = {"task": "train", "finished": False, "settings": record}
        write_json(run / "train.summary.json", summary)
    distributed.barrier()


def finish_run(
    settings: TrainingSettings,
    loop: TrainingLoop,
    record: Record,
    result: Record,
    device: torch.device,
) -> None:
    adapter, base = settings.run / ADAPTER, name_for_others(settings.model)
    best: Record = {}
    if settings.safe_lora is None and not settings.choose_scale:
        # Else validation losses are of adapters before they were changed.
        best = loop.save_best(settings.run / BEST_ADAPTER, base)
    save_adapter(loop.trainer.model, adapter, base)
    summary = {
        "task": "train",
        "finished": True,
        "settings": record,
        **result,
        "adapter_fingerprint": adapter_fingerprint(adapter),
        **best,
        "environment": runs.environment(device),
    }
    write_json(settings.run / "train.summary.json", summary)
    print(f"{adapter}: {describe(summary)}")
    if best and best["best_adapter_fingerprint"] != summary["adapter_fingerprint"]:
        print(
            f"{settings.run / BEST_ADAPTER}: the lowest validation loss, of step "
            f"{best['best_step']}; generate.py --adapter best answers with it"
        )


def describe(summary: Record) -> str:
    """The result in one line for the terminal."""
    line = (
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, "
        f"{summary['examples_per_second']:.2f} examples/s, "
        f"loss {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}"
    )
    if summary["skipped_steps"]:
        line += f", {summary['skipped_steps']} steps skipped for overflow"
    return line


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(train, parse_arguments(argv), OUT_OF_MEMORY)


if __name__ == "__main__":
    distributed.flush_and_exit(main())
