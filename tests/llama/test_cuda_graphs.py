"""Static-shape steps give the engine's own tokens; on a CPU they run without a graph."""

import pytest
import torch

from llama import cuda_graphs, engine, generate, load_model

STOP_IDS = frozenset(range(3, 60, 7))


@pytest.fixture(params=["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param))


def ragged_prompts(prefix: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(prefix)
    shared = torch.randint(12, 199, (prefix,), generator=generator).tolist()
    return [
        shared + torch.randint(12, 199, (n,), generator=generator).tolist()
        for n in (5, 2, 23, 1, 9, 30, 14)
    ]


@pytest.mark.parametrize("prefix", [0, 17])
def test_static_steps_choose_the_same_tokens(model, prefix, monkeypatch):
    monkeypatch.setattr(
        engine, "VERIFIED_TOKENS", 0
    )  # drafts are verified by the other kind of step
    prompts = ragged_prompts(prefix)
    expected = {
        batch_size: generate(model, prompts, 40, STOP_IDS, batch_size) for batch_size in (1, 3, 16)
    }
    recorded, real = [], cuda_graphs.DecodingGraphs._record
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(cuda_graphs, "BUCKET", 16)
    monkeypatch.setattr(
        cuda_graphs.DecodingGraphs, "_record", lambda self, n: recorded.append(n) or real(self, n)
    )
    for batch_size, outputs in expected.items():
        assert generate(model, prompts, 40, STOP_IDS, batch_size) == outputs
    assert len(set(recorded)) >= 3, "several buckets, as sequences grew longer"


def test_constraints_drafts_and_copied_slots_go_along_with_static_steps(model, monkeypatch):
    def allowed(new: list[int]) -> list[int] | None:
        return None if len(new) % 3 else [20 + len(new)]

    prompts = ragged_prompts(17) + ragged_prompts(18)
    drafted, guided = (
        generate(model, prompts, 40, STOP_IDS, 6),
        generate(model, prompts, 12, STOP_IDS, 6, allowed_tokens_fn=allowed),
    )
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu", "cuda"))
    assert generate(model, prompts, 40, STOP_IDS, 6) == drafted
    assert generate(model, prompts, 12, STOP_IDS, 6, allowed_tokens_fn=allowed) == guided
