"""LoRA fine-tuning: optimizer steps over packed examples, in mixed precision, resumable."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.ranks import world_size
from data.examples import Example, epoch_batches
from llama.errors import UserError
from llama.model import Decoder
from lora.ema import AdapterAverage
from lora.inject import lora_parameters
from lora.kl_anchor import Anchor
from lora.loss import count_supervised, step_loss
from lora.non_finite import require_finite
from lora.recompute import recompute_activations_in_backward

AVERAGE = "average"  # of a parameter, in a checkpoint
SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainerOptions:
    """Hyperparameters of the training.

    `micro_batch_tokens` bounds one forward pass; without dropout, it changes memory and speed
    alone. So does `checkpoint_activations`: blocks are computed again in the backward pass.
    UserError if the warm-up takes up the whole training.
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
    ema_decay: float = 0.0  # of the average that is saved in the adapter's place; 0: none

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup_steps >= self.total_steps:
            raise UserError(
                f"a warm-up of {self.warmup_steps} steps in a training of {self.total_steps}: the "
                f"peak learning rate {self.learning_rate:g} would never be reached; lower --warmup "
                "or take more steps"
            )


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimizer step.

    `loss` is the mean over the supervised tokens, in nats, without the divergence; `grad_norm` is
    taken before clipping; `kl` is the mean KL(base || tuned) of the step's anchors in nats a token,
    None without anchors.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    examples: int
    tokens: int
    supervised_tokens: int
    kl: float | None = None


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """The share of the peak learning rate at `step`, counted from 0.

    A linear warm-up, then the schedule: "cosine" and "linear" fall to 0.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def training_batches(
    examples: Sequence[Example], batch_size: int, seed: int, first_step: int, total_steps: int
) -> Iterator[list[Example]]:
    """Yield the examples of steps `first_step` .. `total_steps - 1`, epoch after epoch.

    Every epoch has its own order, which depends on the seed and the epoch alone.
    """
    lengths = [len(example.input_ids) for example in examples]
    steps_per_epoch = math.ceil(len(examples) / batch_size)
    epoch = -1
    batches: list[list[int]] = []
    for step in range(first_step, total_steps):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            batches = epoch_batches(lengths, batch_size, seed, epoch)
        yield [examples[i] for i in batches[step % steps_per_epoch]]


class Trainer:
    """Trains the LoRA layers of `model`, in float32 like the optimizer, whatever the base's dtype.

    `anchor` adds its divergence to the loss. UserError if the model has no LoRA layers.
    """

    def __init__(
        self, model: Decoder, options: TrainerOptions, anchor: Anchor | None = None
    ) -> None:
        self.model, self.options, self.anchor = model, options, anchor
        self.parameters = lora_parameters(model)
        if not self.parameters:
            raise UserError("the model has no LoRA layers: call inject_lora first")
        recompute_activations_in_backward(model)
        for block in model.blocks:
            block.checkpoint_activations = options.checkpoint_activations
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
        self.average: AdapterAverage | None = None
        if options.ema_decay:
            self.average = AdapterAverage(self.parameters, options.ema_decay)
        self.completed_steps = 0
        self.skipped_steps = 0  # float16 steps whose gradients overflowed

    def step(self, examples: Sequence[Example]) -> StepResult:
        """Take one optimizer step; the loss is the mean over all supervised tokens of `examples`.

        UserError if loss or gradients are not finite.
        """
        options, step = self.options, self.completed_steps
        torch.manual_seed(options.seed * 1_000_003 + step)  # dropout depends on (seed, step) alone
        factor = learning_rate_factor(
            step, options.total_steps, options.warmup_steps, options.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        self.model.train()
        supervised = count_supervised(examples)
        kl = None
        with self.autocast:
            total = step_loss(
                self.model,
                examples,
                options.micro_batch_tokens,
                lambda loss: self.scaler.scale(loss / supervised),
            )
            if self.anchor:
                kl = self.anchor.add_gradients(step, self.scaler.scale)
        loss = self._sum_over_processes(total, gradients=True) / supervised
        self._require_finite("loss", loss, examples)
        grad_norm = self._update(examples)
        if self.average:
            self.average.update()
        self.completed_steps += 1
        return StepResult(
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=options.learning_rate * factor,
            examples=len(examples),
            tokens=sum(len(example.input_ids) for example in examples),
            supervised_tokens=supervised,
            kl=kl,
        )

    def _require_finite(self, name: str, value: float, examples: Sequence[Example]) -> None:
        """UserError, with what one more pass finds out, if `value` is not finite."""
        with self.autocast:
            what = f"step {self.completed_steps + 1}: the {name}"
            require_finite(what, value, self.model, examples)

    def _sum_over_processes(self, loss: float, gradients: bool) -> float:
        """Sum the loss and, in place, the gradients over the ranks, each of which has its share."""
        if world_size() == 1:
            return loss
        grads = []
        if gradients:
            grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            assert len(grads) == len(self.parameters), "every rank makes a pass"
        losses = torch.tensor([loss], device=self.model.device)
        flat = torch.cat([losses, *(grad.flatten() for grad in grads)])
        try:
            torch.distributed.all_reduce(flat)
        except RuntimeError as error:
            raise UserError(f"another process has ended ({str(error).splitlines()[0]})") from None
        total, *sums = flat.split([1, *(grad.numel() for grad in grads)])
        for grad, summed in zip(grads, sums, strict=True):
            grad.copy_(summed.view_as(grad))
        return total.item()

    def _update(self, examples: Sequence[Example]) -> float:
        """Clip the gradients, let the optimizer step; return their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm).item()
        if not self.scaler.is_enabled():  # float16 skips such a step and lowers its loss scale
            self._require_finite("norm of the gradients", grad_norm, examples)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped_steps += self.scaler.get_scale() < scale
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    @torch.no_grad()
    def validation_loss(self, examples: Sequence[Example]) -> float:
        """Mean loss in nats over the supervised tokens of `examples`, without dropout.

        UserError if it is not finite.
        """
        self.model.eval()
        with self.autocast:
            total = step_loss(self.model, examples, self.options.micro_batch_tokens)
        loss = self._sum_over_processes(total, gradients=False) / count_supervised(examples)
        self._require_finite("validation loss", loss, examples)
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that later steps depend on: tensors by name, and JSON values."""
        tensors = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}.parameter"] = parameter.detach()
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"{index}.{name}"] = value
            if self.average:
                tensors[f"{index}.{AVERAGE}"] = self.average.values[index]
        values = {"completed_steps": self.completed_steps, "skipped_steps": self.skipped_steps}
        return tensors, values | {"scaler": self.scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` returned. UserError if it belongs to other LoRA layers."""
        by_parameter = self._by_parameter(tensors)
        for index, parameter in enumerate(self.parameters):
            state = by_parameter[index]
            parameter.data.copy_(state.pop("parameter"))
            if self.average:
                self.average.values[index].copy_(state.pop(AVERAGE))
            moved = {}
            for name, tensor in state.items():  # AdamW counts its steps on the CPU
                moved[name] = tensor if name == "step" else tensor.to(parameter.device)
            if moved:
                self.optimizer.state[parameter] = moved
        self.completed_steps = values["completed_steps"]
        self.skipped_steps = values["skipped_steps"]
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])

    @contextmanager
    def parameters_of(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Within the block the LoRA matrices are those of a state that `state` returned, or their
        averages if it holds some.

        UserError if it belongs to other LoRA layers.
        """
        earlier = self._by_parameter(tensors)
        now = [parameter.detach().clone() for parameter in self.parameters]
        try:
            for index, parameter in enumerate(self.parameters):
                parameter.data.copy_(earlier[index].get(AVERAGE, earlier[index]["parameter"]))
            yield
        finally:
            for parameter, value in zip(self.parameters, now, strict=True):
                parameter.data.copy_(value)

    def _by_parameter(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """The tensors of a state by the parameter's index and by name."""
        by_parameter: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, _, name = key.partition(".")
            index = int(number) if number.isdecimal() else -1
            by_parameter.setdefault(index, {})[name] = tensor
        required = {"parameter", AVERAGE} if self.average else {"parameter"}
        expected = {i: [tuple(p.shape)] for i, p in enumerate(self.parameters)}
        shapes: dict[int, list[tuple[int, ...]]] = {}
        for index, state in by_parameter.items():
            if missing := required - state.keys():
                raise UserError(f"the tensor {index}.{min(missing)} is missing")
            matrices = {tuple(tensor.shape) for name, tensor in state.items() if name != "step"}
            shapes[index] = sorted(matrices)
        if shapes != expected:
            raise UserError(
                f"the checkpoint holds {len(shapes)} LoRA matrices of other shapes than the "
                f"{len(expected)} here"
            )
        return by_parameter
