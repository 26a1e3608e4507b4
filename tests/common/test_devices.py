"""--device and --dtype on machines of several kinds."""

import pytest
import torch

from common import devices
from common.devices import resolve_device, resolve_dtype
from common.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_best_device(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto").type == expected


def test_a_device_that_is_not_there_is_refused():
    assert resolve_device("cpu") == CPU
    with pytest.raises(UserError, match="--device nonsense cannot be used here"):
        resolve_device("nonsense")
    with pytest.raises(UserError, match="--device meta cannot be used here: the devices are cpu"):
        resolve_device("meta")


def test_a_named_cuda_device_becomes_the_current_one(monkeypatch):
    """Streams and graphs are made on it."""
    current = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)],
)
def test_auto_is_a_dtype_that_the_device_computes_in(capability, expected, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    devices._say_once.cache_clear()
    assert resolve_dtype("auto", CUDA) == expected == resolve_dtype("auto", CUDA)
    said = capsys.readouterr().out
    assert said.count("Card (compute capability 7.5) has no bfloat16") == (
        1 if expected == torch.float16 else 0
    )
    assert resolve_dtype("bfloat16", CUDA) == torch.bfloat16, "what is asked for counts"
    assert resolve_dtype("auto", CPU) == torch.float32
