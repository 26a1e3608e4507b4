"""NaN and infinity end decoding with the prompt, the step and the layer; none becomes a result."""

import pytest
import torch

from llama import UserError, embedding, generate, load_model
from llama.embedding import Embedder
from llama.finite import first_non_finite_module, non_finite_error
from lora import LoRAConfig, inject_lora, lora_disabled

PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12, 13]]
UP_PROJ = "model.layers.1.mlp.up_proj"
WAYS = {
    "greedy": {},
    "one at a time": {"batch_size": 1},
    "sampled": {"temperature": 1.0, "top_p": 0.9},
    "constrained": {"allowed_tokens_fn": lambda new: [20, 30, 40]},
    "constrained and sampled": {"temperature": 1.0, "allowed_tokens_fn": lambda new: [20, 30]},
}


@pytest.fixture
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint("llama"))  # whose head is not tied to the embedding


def damage(model, name: str, value: float = float("nan")) -> None:
    model.get_submodule(name).weight[3, 2] = value


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_ends_decoding_with_its_layer(model, way, value):
    damage(model, UP_PROJ, value)
    finished = []
    with pytest.raises(UserError, match=rf"^prompt 0: .*new token 1 .*weights of {UP_PROJ} hold"):
        generate(model, PROMPTS, 5, on_finish=lambda *output: finished.append(output), **way)
    assert not finished
    with pytest.raises(UserError, match=r"^gsm8k-7: the logits"):
        generate(model, PROMPTS[:1], 5, names=["gsm8k-7"], **way)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_damaged_head_is_noticed_whatever_it_hits(model, way):
    """The token whose logit is NaN need not be one that may be chosen."""
    model.lm_head.weight[150, 2] = float("nan")
    with pytest.raises(UserError, match=r"weights of lm_head hold NaN"):
        generate(model, PROMPTS, 5, **way)


def test_the_step_is_that_of_the_first_meaningless_token(model):
    """Tokens 21, 22 and 23 are forced; the embedding of 23 makes the fourth one meaningless."""
    model.embedding[23] = float("inf")

    def forced(new):
        return [21 + len(new)] if len(new) < 3 else None

    with pytest.raises(UserError, match=r"new token 4 are not finite.*model\.embed_tokens"):
        generate(model, PROMPTS, 8, allowed_tokens_fn=forced)


def test_a_prompt_that_finished_before_is_reported_and_the_other_named(model):
    model.embedding[23] = float("nan")
    finished = {}
    with pytest.raises(UserError, match=r"^prompt 1: "):
        prompts = [[5, 6, 7, 8], [5, 6, 23]]
        generate(model, prompts, 2, batch_size=1, on_finish=finished.__setitem__)
    assert list(finished) == [0]


def test_a_drafted_token_is_checked(model):
    """In a loop, whose drafts are right, the model is damaged half way."""
    prompts = [[30, 31, 32, 33] * 12]
    accepted = generate(model, prompts, 60)[0].token_ids
    calls = []

    def damage_later(_, token_id):
        calls.append(token_id)
        if len(calls) == 40:
            model.model["norm"].weight[0] = float("nan")

    with pytest.raises(UserError, match=r"new token (4\d|5\d|60) .*model\.norm hold"):
        generate(model, prompts, 60, on_token=damage_later)
    assert calls == accepted[: len(calls)]


def test_overflow_in_float16_names_layer_and_way_out(tiny_checkpoint):
    model = load_model(tiny_checkpoint("llama"), dtype="float16")
    model.get_submodule(UP_PROJ).weight.mul_(3e4)
    message = rf"{UP_PROJ}.* is the first .* overflow float16 \(try --dtype float32\)"
    with pytest.raises(UserError, match=message):
        generate(model, PROMPTS, 5)


def test_allowed_tokens_that_all_score_minus_infinity_are_no_choice(model):
    model.lm_head.weight[20:31] = 0
    hidden = model(torch.tensor(PROMPTS[:1]))[0, -1]
    model.lm_head.weight[20] = model.lm_head.weight[30] = -hidden * 3e38
    with pytest.raises(UserError, match="new token 1"):
        generate(model, PROMPTS[:1], 5, allowed_tokens_fn=lambda new: [20, 30])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_adapter_that_is_not_finite_is_named_by_its_layer(model, way):
    inject_lora(model, LoRAConfig(rank=2))
    layer = model.get_submodule(UP_PROJ)
    layer.lora_B.data[3, 1] = float("nan")
    with pytest.raises(UserError, match=rf"new token 1 .*weights of {UP_PROJ} hold .* adapter"):
        generate(model, PROMPTS, 5, **way)
    with lora_disabled(model):
        assert len(generate(model, PROMPTS, 5, **way)) == 3


def test_a_meaningless_embedding_is_not_kept(chat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path))
    model = load_model(chat_checkpoint)
    model.get_submodule("model.layers.1.mlp.up_proj").weight[0] = float("nan")
    monkeypatch.setattr(embedding, "load_model", lambda *_, **__: model)
    embedder = Embedder(chat_checkpoint)
    with pytest.raises(UserError, match=r"text .{8}: the embedding is not finite.*layers\.1\.mlp"):
        embedder.embed(["a text"])
    assert not embedder.path.exists()


def test_the_first_module_is_the_innermost_one(model):
    assert first_non_finite_module(model, PROMPTS[0]) is None
    damage(model, "model.layers.2.self_attn.k_proj")
    assert first_non_finite_module(model, PROMPTS[0]) == "model.layers.2.self_attn.k_proj"
    damage(model, UP_PROJ)
    assert first_non_finite_module(model, PROMPTS[0]) == UP_PROJ
    assert not any(module._forward_hooks for module in model.modules()), "hooks are gone"


def test_what_one_more_pass_does_not_show_is_said(model, monkeypatch):
    assert "without a cache is finite" in str(non_finite_error(model, PROMPTS[0], "x", "logits"))

    def no_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(model), "forward", no_memory)
    assert "no memory is left" in str(non_finite_error(model, PROMPTS[0], "x", "logits"))
