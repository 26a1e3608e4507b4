"""LoRA fine-tuning: optimizer steps over packed examples, in mixed precision, with resumable
state.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from common.ranks import world_size
from data.examples import IGNORE_INDEX, Example, epoch_batches
from llama.errors import UserError
from llama.model import Decoder
from lora.inject import lora_parameters
from lora.kl_anchor import Anchor
from lora.loss import step_loss
from lora.recompute import recompute_activations_in_backward

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainerOptions:
    """`micro_batch_tokens` bounds one forward pass; without dropout, it changes memory and speed
    alone.

    So does `checkpoint_activations`: blocks are computed again in the backward pass. `fsdp` shards
    the frozen weights.
    """

    total_steps: int
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    micro_batch_tokens: int = 1024
    seed: int = 0
    dtype: torch.dtype = torch.float32
    checkpoint_activations: bool = False
    fsdp: bool = False


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: mean loss in nats a supervised token, norm of the gradients before
    clipping, counts.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    examples: int
    tokens: int
    supervised_tokens: int
    kl: float | None = (
        # mean KL(base || tuned) of the step's anchors, in nats a token; the loss is without it
        None
    )


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """The share of the peak learning rate at `step` (from 0): a linear warm-up, then the schedule
    down to 0.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def count_supervised(examples: Sequence[Example]) -> int:
    """Tokens to be predicted; nothing stands before a first token to predict it from."""
    return sum(label != IGNORE_INDEX for example in examples for label in example.labels[1:])


def training_batches(
    examples: Sequence[Example], batch_size: int, seed: int, first_step: int, total_steps: int
) -> Iterator[list[Example]]:
    """The examples of steps `first_step` .. `total_steps - 1`, epoch after epoch in the seeded
    order of each.
    """
    lengths = [len(example.input_ids) for example in examples]
    per_epoch = math.ceil(len(examples) / batch_size)
    step = first_step
    while step < total_steps:
        epoch, skipped = divmod(step, per_epoch)
        for batch in epoch_batches(lengths, batch_size, seed, epoch)[
            skipped : skipped + total_steps - step
        ]:
            yield [examples[i] for i in batch]
            step += 1


def shard_base(model: Decoder) -> None:
    """Leave each process its part of the frozen weights (FSDP2); a block is whole only while it
    computes.

    LoRA parameters stay whole everywhere, their gradients are exchanged by the trainer.
    """
    lora = set(lora_parameters(model))
    for block in model.model["layers"]:
        fully_shard(block, ignored_params=lora)
    fully_shard(model, ignored_params=lora)


class Trainer:
    """Trains the LoRA layers of `model`. They and the optimizer are float32 whatever the dtype of
    the rest.
    """

    def __init__(
        self, model: Decoder, options: TrainerOptions, anchor: Anchor | None = None
    ) -> None:
        self.model, self.options, self.anchor = model, options, anchor
        self.parameters = lora_parameters(model)
        if not self.parameters:
            raise UserError("the model has no LoRA layers: call inject_lora first")
        recompute_activations_in_backward(model)
        if options.checkpoint_activations:
            for block in model.model["layers"]:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if options.fsdp:
            shard_base(model)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay
        )
        device_type = model.device.type
        self.autocast = torch.autocast(
            device_type, options.dtype, enabled=options.dtype != torch.float32
        )
        # float16 gradients underflow unless the loss is scaled up; bfloat16 has the range of
        # float32
        self.scaler = torch.amp.GradScaler(device_type, enabled=options.dtype == torch.float16)
        self.completed_steps = 0
        self.skipped_steps = 0  # float16 steps whose gradients overflowed

    def step(self, examples: Sequence[Example]) -> StepResult:
        """One optimizer step over `examples`, its loss the mean over all their supervised
        tokens.
        """
        options = self.options
        torch.manual_seed(
            options.seed * 1_000_003 + self.completed_steps
        )  # dropout depends on (seed, step) alone
        factor = learning_rate_factor(
            self.completed_steps, options.total_steps, options.warmup_steps, options.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        self.model.train()
        supervised = count_supervised(examples)
        with self.autocast:
            total = step_loss(
                self.model,
                examples,
                options.micro_batch_tokens,
                lambda loss: self.scaler.scale(loss / supervised),
            )
        kl = None
        if self.anchor:
            with self.autocast:
                kl = self.anchor.add_gradients(self.completed_steps, self.scaler.scale)
        loss = self._sum_over_processes(total, gradients=True) / supervised
        if not math.isfinite(loss):
            raise UserError(f"step {self.completed_steps + 1}: the loss is {loss}; lower --lr")
        grad_norm = self._update()
        self.completed_steps += 1
        tokens = sum(len(example.input_ids) for example in examples)
        return StepResult(
            loss, grad_norm, options.learning_rate * factor, len(examples), tokens, supervised, kl
        )

    def _sum_over_processes(self, loss: float, gradients: bool) -> float:
        """Add up the loss and, in place, the gradients: both are sums over examples, each process
        has its share's.
        """
        if world_size() == 1:
            return loss
        grads = [parameter.grad for parameter in self.parameters] if gradients else []
        flat = torch.cat(
            [torch.tensor([loss], device=self.model.device), *(grad.flatten() for grad in grads)]
        )
        try:
            torch.distributed.all_reduce(flat)
        except RuntimeError as error:
            raise UserError(f"another process has ended ({str(error).splitlines()[0]})") from None
        total, *sums = flat.split([1, *(grad.numel() for grad in grads)])
        for grad, summed in zip(grads, sums, strict=True):
            grad.copy_(summed.view_as(grad))
        return total.item()

    def _update(self) -> float:
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm).item()
        if not self.scaler.is_enabled() and not math.isfinite(grad_norm):
            raise UserError(
                f"step {self.completed_steps + 1}: the gradients are not finite; lower --lr"
            )
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped_steps += self.scaler.get_scale() < scale
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    @torch.no_grad()
    def validation_loss(self, examples: Sequence[Example]) -> float:
        """Mean loss in nats over the supervised tokens of `examples`, without dropout."""
        self.model.eval()
        with self.autocast:
            total = step_loss(self.model, examples, self.options.micro_batch_tokens)
        return self._sum_over_processes(total, gradients=False) / count_supervised(examples)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that later steps depend on: tensors by name, and JSON values."""
        tensors = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}.parameter"] = parameter.detach()
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"{index}.{name}"] = value
        values = {"completed_steps": self.completed_steps, "skipped_steps": self.skipped_steps}
        return tensors, values | {"scaler": self.scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` returned. UserError if it belongs to other LoRA layers."""
        names = {name.split(".", 1)[0] for name in tensors}
        shapes = [tuple(tensors[f"{i}.parameter"].shape) for i in range(len(names))]
        wanted = [tuple(parameter.shape) for parameter in self.parameters]
        if shapes != wanted:
            raise UserError(
                f"the checkpoint holds {len(shapes)} LoRA matrices of other shapes than the {len(wanted)} here"
            )
        for index, parameter in enumerate(self.parameters):
            parameter.data.copy_(tensors[f"{index}.parameter"])
            prefix = f"{index}."
            state = {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            del state["parameter"]
            if state:
                self.optimizer.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device)
                    for name, value in state.items()
                }
        self.completed_steps, self.skipped_steps = (
            values["completed_steps"],
            values["skipped_steps"],
        )
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
