"""An exponential moving average of the adapter, which is saved in the adapter's place.

Fine-tuned weights averaged over their path stay nearer to where they started, and with it to how
the model refused (Kim et al. 2025, https://arxiv.org/abs/2508.12531). The average begins at the
adapter as it is before the first step, so few steps with a slow average leave little trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class AdapterAverage:
    """average = decay * average + (1 - decay) * parameter after every optimizer step."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay = {decay}: expected a value between 0 and 1")
        self.parameters, self.decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def replace_parameters(self) -> None:
        """Copy the averages into the parameters, for good."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the averages within the block."""
        now = [parameter.detach().clone() for parameter in self.parameters]
        try:
            self.replace_parameters()
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, now, strict=True):
                    parameter.copy_(value)
