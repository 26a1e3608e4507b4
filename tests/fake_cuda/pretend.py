"""The pretended CUDA device: fake tensors, calls of the host that do nothing, counted operators.

Under `FakeTensorMode` an operator checks the shapes, dtypes and devices of its inputs as on the
real device and returns tensors without values. A value that Python asks for is made up.
Import after `device.install`.
"""

import contextlib
import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from data.examples import IGNORE_INDEX, Example
from llama.config import ModelConfig
from llama.model import Decoder
from llama.quantization import quantize_linears

FREE_BYTES = 70 * 2**30

# What allocates, or only looks at a tensor in another way, launches no kernel.
NO_KERNEL = set(
    """view _unsafe_view expand permute transpose t select slice unsqueeze squeeze alias as_strided
    detach detach_ split split_with_sizes unbind _reshape_alias lift_fresh unflatten reshape numel
    sym_size is_same_size device empty empty_like empty_strided new_empty new_empty_strided resize_
    _local_scalar_dense prim""".split()
)


def model_config(sizes: dict[str, Any], layers: int = 2) -> ModelConfig:
    """The sizes of a published model, with fewer layers."""
    return dataclasses.replace(ModelConfig.from_dict(sizes), num_hidden_layers=layers)


def build(
    config: ModelConfig, dtype: torch.dtype, device: str = "cuda", quantize: bool = False
) -> Decoder:
    """A decoder without values on the pretended device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Decoder(config)
    finally:
        torch.set_default_dtype(before)
    if quantize:
        quantize_linears(model)
    return model.requires_grad_(False).eval()


def make_examples(prefix: int, count: int = 5, own: int = 40, seed: int = 0) -> list[Example]:
    """Examples of about `own` tokens each behind `prefix` common ones."""
    numbers = random.Random(seed)
    shared = [numbers.randrange(100) for _ in range(prefix)]
    examples = []
    for index in range(count):
        length = own + numbers.randrange(-own // 5, own // 5 + 1)
        tokens = [200 + index] + [numbers.randrange(1000) for _ in range(length)]
        ids = shared + tokens
        ignored = prefix + own // 3
        examples.append(Example(ids, [IGNORE_INDEX] * ignored + ids[ignored:]))
    return examples


class OperatorCount(TorchDispatchMode):
    """Counts the operators that a GPU would launch kernels for."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.operators.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        if name not in NO_KERNEL:
            self.operators[name] += 1
        return func(*args, **(kwargs or {}))


class FusedNorm(torch.autograd.Function):
    """`F.rms_norm` as a build for CUDA has it: one kernel forward and one backward.

    A build without falls apart into elementwise operators instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size, weight: None, eps: float) -> Tensor:
        assert x.shape[-1:] == shape
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad.clone(), None, None, None


class PretendedGraph:
    """torch.cuda.CUDAGraph in the part that this project uses."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@contextlib.contextmanager
def nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


class MadeUpValues:
    """What Python gets to see of fake tensors: ever new token ids, or ever the same one."""

    def __init__(self, repeat: bool) -> None:
        self.repeat, self.numbers = repeat, random.Random(0)

    def one(self, tensor: Tensor) -> int | float | bool:
        if tensor.dtype == torch.bool:
            return True
        if tensor.dtype.is_floating_point:
            return 1.0
        return 7 if self.repeat else self.numbers.randrange(10, 100_000)

    def nested(self, tensor: Tensor, shape: tuple[int, ...]) -> Any:
        if not shape:
            return self.one(tensor)
        return [self.nested(tensor, shape[1:]) for _ in range(shape[0])]


@contextlib.contextmanager
def pretended_cuda(repeat: bool = False) -> Iterator[None]:
    """Within the block, device "cuda" seems to be there; with `repeat`, texts repeat themselves."""
    values = MadeUpValues(repeat)
    plain_tensor, plain_allclose = torch.tensor, torch.allclose
    plain = {name: getattr(Tensor, name) for name in ("item", "tolist", "__bool__")}

    def item(self):
        return values.one(self) if isinstance(self, FakeTensor) else plain["item"](self)

    def tolist(self):
        if isinstance(self, FakeTensor):
            return values.nested(self, tuple(self.shape))
        return plain["tolist"](self)

    def as_bool(self):
        return True if isinstance(self, FakeTensor) else plain["__bool__"](self)

    def tensor(data, *, dtype=None, device=None, **more):
        """A copy of values to the device; what `torch.tensor` does inside is hidden from modes."""
        made = plain_tensor(data, dtype=dtype, **more)
        if device is None or torch.device(device).type == "cpu":
            return made
        return torch.zeros(made.shape, dtype=made.dtype, device=device)

    def allclose(actual, expected, *more, **options):
        if isinstance(actual, FakeTensor):
            assert actual.shape == expected.shape
            return True
        return plain_allclose(actual, expected, *more, **options)

    stream = mock.MagicMock()
    host_calls = {
        "Stream": lambda *_, **__: stream,
        "Event": lambda *_, **__: stream,
        "current_stream": lambda *_: stream,
        "stream": nothing,
        "device": nothing,
        "graph": nothing,
        "CUDAGraph": PretendedGraph,
        "graph_pool_handle": lambda: (0, 1),
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "a pretended device",
        "get_device_properties": lambda *_: mock.Mock(total_memory=FREE_BYTES, major=9, minor=0),
        "mem_get_info": lambda *_: (FREE_BYTES, FREE_BYTES),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "set_device": lambda *_: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "manual_seed_all": lambda *_: None,
    }
    lifts = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        patches = [
            mock.patch.object(torch, "tensor", tensor),
            mock.patch.object(torch.nn.functional, "rms_norm", FusedNorm.apply),
            mock.patch.object(torch, "allclose", allclose),
            mock.patch.object(Tensor, "item", item),
            mock.patch.object(Tensor, "tolist", tolist),
            mock.patch.object(Tensor, "__bool__", as_bool),
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        ]
        if "tolist" in FakeTensor.__dict__:
            patches.append(mock.patch.object(FakeTensor, "tolist", tolist))
        patches += [mock.patch.object(torch.cuda, name, call) for name, call in host_calls.items()]
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        yield
