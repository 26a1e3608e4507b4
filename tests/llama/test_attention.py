"""Attention where no kernel is to be had: plain products, said once, and the same numbers."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama import load_model, notices
from llama.attention import plain_attention, scaled_dot_product_attention

NONE_HERE = SDPBackend.CUDNN_ATTENTION  # the only kernel allowed is one that a CPU does not have


@pytest.fixture(autouse=True)
def untold():
    notices.tell_once.cache_clear()


def tensors(dtype: torch.dtype, queries: int, keys: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, queries, 20), (2, 2, keys, 20), (2, 2, keys, 20)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_plain_products_give_what_the_kernels_give(dtype, capsys):
    atol = {torch.float32: 1e-6, torch.float64: 1e-12}.get(dtype, 2e-2)
    square, wide = tensors(dtype, 7, 7), tensors(dtype, 5, 9)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)
    for inputs, options in ((square, {"causal": True}), (wide, {"mask": mask}), (wide, {})):
        expected = scaled_dot_product_attention(*inputs, **options)
        assert not capsys.readouterr().err
        with sdpa_kernel(NONE_HERE):
            found = scaled_dot_product_attention(*inputs, **options)
        assert "no attention kernel" in capsys.readouterr().err
        notices.tell_once.cache_clear()
        assert found.dtype == dtype and found.shape == expected.shape
        assert torch.allclose(found, expected, atol=atol)
        assert torch.equal(found, plain_attention(*inputs, **options))


def test_a_model_runs_without_any_kernel_and_says_so_once(tiny_checkpoint, capsys):
    model = load_model(tiny_checkpoint("qwen3"))
    ids = torch.arange(12, 30)[None]
    expected = model(ids)
    with sdpa_kernel(NONE_HERE):
        found = model(ids)
    assert torch.allclose(found, expected, atol=1e-5)
    assert capsys.readouterr().err.count("no attention kernel") == 1, "three layers, one line"


def test_running_out_of_memory_is_no_missing_kernel(monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        scaled_dot_product_attention(*tensors(torch.float32, 5, 5))
