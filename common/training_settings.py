"""Settings of train.py: its options, its --config file and what its summary records."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.options import (
    Scope,
    fraction,
    non_negative_float,
    non_negative_int,
    option,
    positive_float,
    positive_int,
)
from common.ranks import world_size
from common.settings import PromptSettings, RunSettings
from common.tracking import TRACKERS
from data.examples import LOSSES
from lora.layer import TARGET_ALIASES, LoRAConfig
from lora.trainer import SCHEDULES

DATA, LORA, KEEPING = "data", "LoRA", "keeping what the base model does"
OPTIMIZER, MACHINE = "optimizer", "memory and checkpoints"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(PromptSettings, RunSettings):
    """Settings of train.py."""

    limit: int | None = option(
        None, "use only the first N questions or chats (all)", parse=positive_int, metavar="N"
    )
    batch_size: int = option(
        16,
        "examples per optimizer step, of all processes together (%(default)s)",
        parse=positive_int,
        metavar="N",
    )
    shots_data: str | None = option(
        None,
        "shots from this file, in GSM8K's format, instead of the training data",
        metavar="FILE",
    )
    data: tuple[str, ...] = option(
        ("gsm8k",),
        "FILE: JSONL in GSM8K's format, or of chats (see data/chats.py); several are mixed by "
        "weight, as in a.jsonl:0.97 b.jsonl:0.03 (see data/mixture.py) (gsm8k)",
        nargs="+",
        metavar="gsm8k|demo|FILE[:WEIGHT]",
        group=DATA,
    )
    loss: str = option(
        "answer", "train on the answer, or on every token (%(default)s)", choices=LOSSES, group=DATA
    )
    system: str | None = option(
        None,
        "train under this system prompt; safety: one built in (the template's own)",
        metavar="TEXT",
        group=DATA,
    )
    system_header: bool = option(
        True,
        "--no-system-header trains without the system turn that the chat template prints on its "
        "own",
        group=DATA,
    )
    max_length: int | None = option(
        None,
        "leave out examples of more than N tokens (none are)",
        parse=positive_int,
        metavar="N",
        group=DATA,
    )
    validation: int | None = option(
        None,
        "examples held out (64, at most a tenth)",
        parse=non_negative_int,
        metavar="N",
        group=DATA,
    )
    rank: int = option(
        8, "of the low-rank update (%(default)s)", parse=positive_int, metavar="N", group=LORA
    )
    alpha: float = option(
        16.0,
        "update times alpha / rank (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=LORA,
    )
    dropout: float = option(
        0.0, "before the low-rank path (%(default)s)", parse=fraction, metavar="P", group=LORA
    )
    target: tuple[str, ...] = option(
        ("all",),
        "adapted linears: all, attention, mlp, or names such as q_proj (all)",
        nargs="+",
        metavar="NAME",
        group=LORA,
    )
    init_adapter: Path | None = option(
        None,
        "go on training this adapter, not a new one",
        parse=Path,
        metavar="DIR",
        group=LORA,
    )
    kl_weight: float = option(
        0.0,
        "adds X times the divergence from the base, on --kl-prompts, to the loss (%(default)s)",
        parse=non_negative_float,
        metavar="X",
        group=KEEPING,
    )
    kl_prompts: str | None = option(
        None,
        "log the divergence on these prompts and on held-out examples: the embedded hazard "
        "prompts, the embedded harmless ones that look like such, the official ones, a CSV in "
        "their format, or a JSONL in GSM8K's; several with + between (with --kl-weight: demo)",
        metavar="demo|look-alikes|ailuminate|FILE",
        group=KEEPING,
    )
    kl_first_tokens: int = option(
        0,
        "with --kl-weight, the first N tokens of an answer weigh more (%(default)s)",
        parse=non_negative_int,
        metavar="N",
        group=KEEPING,
        when=lambda settings: settings.kl_first_tokens > 0,
    )
    kl_first_weight: float = option(
        10.0,
        "so much more (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=KEEPING,
        when=lambda settings: settings.kl_first_tokens > 0,
    )
    ema: float = option(
        0.0,
        "save an exponential moving average of the adapter with this decay a step, as in 0.95 "
        "(none)",
        parse=fraction,
        metavar="P",
        group=KEEPING,
        when=lambda settings: settings.ema > 0,
    )
    choose_scale: tuple[float, ...] = option(
        (),
        "afterwards, multiply the update by the smallest of these scales whose loss on the "
        "held-out questions is within a standard error of the lowest, as in 0.5 0.75 1",
        parse=positive_float,
        nargs="+",
        metavar="X",
        group=KEEPING,
        when=lambda settings: bool(settings.choose_scale),
    )
    safe_lora: str | None = option(
        None,
        "afterwards, project the update onto what alignment changed since this untuned base of the "
        "same family, as in meta-llama/Llama-3.2-1B (Safe LoRA)",
        metavar="MODEL",
        group=KEEPING,
    )
    safe_lora_threshold: float = option(
        0.5,
        "project the layers whose update and its projection have a cosine below X (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=KEEPING,
        when=lambda settings: settings.safe_lora is not None,
    )
    lr: float = option(
        2e-4,
        "peak learning rate (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=OPTIMIZER,
    )
    schedule: str = option(
        "cosine", "after the warm-up (%(default)s)", choices=SCHEDULES, group=OPTIMIZER
    )
    warmup: float = option(
        0.03,
        "as a share of the steps (%(default)s)",
        parse=fraction,
        metavar="P",
        group=OPTIMIZER,
    )
    epochs: float = option(
        1.0,
        "passes over the data (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=OPTIMIZER,
        exclusive="length",
        scope=Scope.CALL,  # `steps` is recorded, which follows from it
    )
    steps: int | None = option(
        None,
        "optimizer steps, instead of --epochs",
        parse=positive_int,
        metavar="N",
        group=OPTIMIZER,
        exclusive="length",
    )
    weight_decay: float = option(
        0.0, "AdamW's (%(default)s)", parse=non_negative_float, metavar="X", group=OPTIMIZER
    )
    clip: float = option(
        1.0,
        "gradient clipping: maximum global norm (%(default)s)",
        parse=positive_float,
        metavar="X",
        group=OPTIMIZER,
    )
    micro_batch_tokens: int | None = option(
        None,
        "tokens in one forward pass: changes memory and speed, not the gradients (1024; on CUDA "
        "8192, or fewer for a small memory)",
        parse=positive_int,
        metavar="N",
        group=MACHINE,
        # which values are dropped depends on how a step is cut into passes
        when=lambda settings: settings.dropout > 0,
    )
    checkpoint_activations: bool = option(
        False,
        "recompute blocks in the backward pass and hold weights once: half to two thirds of the "
        "memory, 50 to 75 %% more time",
        group=MACHINE,
        scope=Scope.COST,
    )
    fsdp: bool = option(
        False,
        "with torchrun: shard the frozen weights, for models too large for one device",
        group=MACHINE,
        scope=Scope.COST,
    )
    checkpoint_every: int = option(
        50,
        "steps; validates as well (%(default)s)",
        parse=positive_int,
        metavar="N",
        group=MACHINE,
        scope=Scope.COST,
    )
    keep_checkpoints: int = option(
        2,
        "the last N stay, and the best by validation loss (%(default)s)",
        parse=positive_int,
        metavar="N",
        group=MACHINE,
        scope=Scope.COST,
    )

    log_to: str | None = option(
        None,
        "show the curves of RUN/train.jsonl there as well; has to be installed (none)",
        choices=TRACKERS,
        group=MACHINE,
        scope=Scope.CALL,
    )

    def __post_init__(self) -> None:
        if self.fsdp and world_size() == 1:
            raise UserError(
                "--fsdp needs several processes: torchrun --nproc-per-node N -- train.py --fsdp ..."
            )

        if self.fsdp and self.safe_lora is not None:
            raise UserError(
                "--safe-lora with --fsdp: the projection needs whole weights, not shards; train "
                "without --fsdp"
            )
        self._check_keeping()
        if self.system is not None and not self.system_header:
            raise UserError(
                "--system with --no-system-header: the system prompt would be cut off again"
            )

    def _check_keeping(self) -> None:
        """UserError for options of KEEPING that lack one another or exclude each other."""
        if self.kl_first_tokens and not self.kl_weight:
            raise UserError(
                f"--kl-first-tokens {self.kl_first_tokens} without --kl-weight: there is no "
                "divergence in the loss to weigh"
            )
        scales = " ".join(f"{scale:g}" for scale in self.choose_scale)
        if len(set(self.choose_scale)) != len(self.choose_scale) or len(self.choose_scale) == 1:
            raise UserError(f"--choose-scale {scales}: expected several different scales")
        if self.choose_scale and self.fsdp:
            raise UserError(
                f"--choose-scale {scales} with --fsdp: measuring the scales needs whole weights, "
                "not shards; train without --fsdp"
            )

    def lora_config(self) -> LoRAConfig:
        """The LoRA configuration, with the short names in `target` written out."""
        names: list[str] = []
        for name in self.target:
            names += TARGET_ALIASES.get(name, (name,))
        return LoRAConfig(self.rank, self.alpha, self.dropout, tuple(names))
