"""The branches for CUDA in norms and LoRA layers, on CPU tensors that say they were elsewhere."""

from unittest import mock

import pytest
import torch

from llama.model import RMSNorm
from lora import LoRAConfig
from tests.lora.test_loss import make_examples, packed
from tests.tiny import tiny_decoder, with_random_lora


@pytest.mark.parametrize("variant", ["llama3-scaled", "qwen3"])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_fused_norms_and_products_give_the_same_loss_and_gradients(variant, monkeypatch):
    config = LoRAConfig(rank=4, alpha=12)  # a scale of 3, which rounds
    examples = make_examples(3, prefix=5, supervise_all=True)
    loss, gradients = packed(with_random_lora(tiny_decoder(variant), config, seed=1), examples)
    norms = mock.Mock(side_effect=torch.nn.functional.rms_norm)
    products = mock.Mock(side_effect=torch.addmm)
    monkeypatch.setattr(torch.nn.functional, "rms_norm", norms)
    monkeypatch.setattr(torch, "addmm", products)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    model = with_random_lora(tiny_decoder(variant), config, seed=1)
    fused_loss, fused_gradients = packed(model, examples)
    assert norms.call_count > 0
    assert products.call_count > 0
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(fused_gradients, gradients, strict=True):
        assert (ours - theirs).abs().max() <= 3e-5 * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_on_cuda_rounds_as_on_the_cpu(dtype, monkeypatch):
    """First the normalised value, then its product with the weight, as transformers does."""
    torch.manual_seed(0)
    norm = RMSNorm(48, 1e-6).to(dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(3, 7, 48).to(dtype) * 3
    expected = norm(x)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert torch.equal(norm(x), expected)
