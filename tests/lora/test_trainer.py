"""The trainer against PEFT and against itself: same losses and gradients, whatever the accumulation
or interruption.
"""

import contextlib
import itertools
import math

import peft
import pytest
import torch
from safetensors import SafetensorError

from data.examples import IGNORE_INDEX, Example
from llama import Decoder, ModelConfig
from llama.errors import UserError
from lora import LoRAConfig, inject_lora, load_adapter, lora_parameters
from lora.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from lora.ema import AdapterAverage
from lora.onednn import packed_weights
from lora.trainer import Trainer, TrainerOptions, learning_rate_factor, training_batches
from tests.tiny import tiny_decoder, tiny_transformers_model

STEPS = 20


def make_examples(count: int, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(6, 24, (), generator=generator))
        ids = torch.randint(0, 40, (length,), generator=generator).tolist()
        ignored = length // 2
        examples.append(Example(ids, [IGNORE_INDEX] * ignored + ids[ignored:]))
    return examples


def make_model(variant: str = "llama3-scaled", dropout: float = 0.0) -> Decoder:
    model = tiny_decoder(variant)
    torch.manual_seed(0)
    inject_lora(model, LoRAConfig(rank=4, dropout=dropout))
    return model


def run(trainer: Trainer, batches) -> list[float]:
    return [trainer.step(batch).loss for batch in batches]


def peft_losses(
    adapter, variant: str, batches, options: TrainerOptions
) -> tuple[list[float], dict]:
    """The same training in PEFT: padded batches, transformers' forward, torch's cross-entropy,
    AdamW.
    """
    model = peft.PeftModel.from_pretrained(
        tiny_transformers_model(variant), adapter, is_trainable=True
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    losses, first_gradients = [], {}
    for step, batch in enumerate(batches):
        longest = max(len(example.input_ids) for example in batch)
        input_ids = torch.tensor([e.input_ids + [0] * (longest - len(e.input_ids)) for e in batch])
        mask = torch.tensor(
            [[1] * len(e.input_ids) + [0] * (longest - len(e.input_ids)) for e in batch]
        )
        labels = torch.tensor(
            [e.labels + [IGNORE_INDEX] * (longest - len(e.labels)) for e in batch]
        )
        logits = model(input_ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first_gradients = {
                name.removeprefix("base_model.model.").replace(
                    ".default.weight", ""
                ): p.grad.clone()
                for name, p in model.named_parameters()
                if p.requires_grad
            }
        torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        factor = learning_rate_factor(
            step, options.total_steps, options.warmup_steps, options.schedule
        )
        optimizer.param_groups[0]["lr"] = options.learning_rate * factor
        optimizer.step()
        losses.append(loss.item())
    return losses, first_gradients


@pytest.mark.parametrize("variant", ["llama3-scaled", "qwen3", "qwen2", "smollm3"])
def test_twenty_steps_equal_peft(variant, tmp_path):
    options = TrainerOptions(
        total_steps=STEPS, learning_rate=5e-3, warmup_steps=3, weight_decay=0.01
    )
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny_transformers_model(variant), config)
    theirs.save_pretrained(tmp_path)
    model = Decoder(ModelConfig.from_dict(theirs.base_model.model.config.to_dict()))
    model.load_state_dict(tiny_transformers_model(variant).state_dict(), strict=False)
    load_adapter(model, tmp_path)
    batches = list(training_batches(make_examples(30), 4, seed=1, first_step=0, total_steps=STEPS))
    expected, gradients = peft_losses(tmp_path, variant, batches, options)

    trainer = Trainer(model, options)
    seen = {}
    update = trainer._update

    def remember(examples):
        seen.update(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        )
        return update(examples)

    trainer._update = remember
    losses = []
    for batch in batches:
        losses.append(trainer.step(batch).loss)
        trainer._update = update
    assert losses == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < losses[0] - 0.3, "training must move for this to mean anything"
    assert seen.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (seen[name] - gradient).abs().max() <= 1e-5 * max(1e-3, gradient.abs().max()), name


def test_accumulation_is_normalised_over_the_step():
    """Batch 8 in one pass, in two, in four: the same loss and gradients, though passes hold unlike
    token counts.
    """
    examples = make_examples(8)
    results = []
    for tokens in (10**6, 70, 30):
        model = make_model()
        trainer = Trainer(model, TrainerOptions(total_steps=1, micro_batch_tokens=tokens))
        for layer in model.modules():
            if hasattr(layer, "lora_B"):
                torch.nn.init.constant_(layer.lora_B, 0.05)
        gradients = []
        trainer.optimizer.step = lambda *_, kept=gradients, m=model: kept.extend(
            p.grad.clone() for p in lora_parameters(m)
        )
        results.append((trainer.step(examples).loss, gradients))
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        for ours, theirs in zip(gradients, results[0][1], strict=True):
            assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resumed_losses_equal_an_uninterrupted_run(dropout, tmp_path):
    examples, options = make_examples(22), TrainerOptions(total_steps=STEPS, learning_rate=5e-3)

    def batches(first):
        return training_batches(examples, 4, seed=2, first_step=first, total_steps=STEPS)

    expected = run(Trainer(make_model(dropout=dropout), options), batches(0))
    first = Trainer(make_model(dropout=dropout), options)
    losses = [first.step(batch).loss for _, batch in zip(range(7), batches(0), strict=False)]
    save_checkpoint(tmp_path, 7, *first.state())
    second = Trainer(make_model(dropout=dropout), options)
    second.load_state(*load_checkpoint(checkpoints(tmp_path)[-1]))
    losses += run(second, batches(second.completed_steps))
    assert losses == expected


def test_the_average_follows_the_steps_and_resumes_exactly(tmp_path):
    examples = make_examples(22)
    options = TrainerOptions(total_steps=STEPS, learning_rate=5e-3, ema_decay=0.5)

    def batches(first):
        return training_batches(examples, 4, seed=2, first_step=first, total_steps=STEPS)

    whole = Trainer(make_model(), options)
    expected = [parameter.detach().clone() for parameter in whole.parameters]
    for batch in batches(0):
        whole.step(batch)
        for value, parameter in zip(expected, whole.parameters, strict=True):
            value.mul_(0.5).add_(parameter.detach(), alpha=0.5)
    torch.testing.assert_close(whole.average.values, expected)

    first = Trainer(make_model(), options)
    for _, batch in zip(range(7), batches(0), strict=False):
        first.step(batch)
    save_checkpoint(tmp_path, 7, *first.state())
    second = Trainer(make_model(), options)
    second.load_state(*load_checkpoint(checkpoints(tmp_path)[-1]))
    run(second, batches(7))
    for one, other in zip(second.average.values, whole.average.values, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(second.parameters, whole.parameters, strict=True):
        assert torch.equal(one, other)


def test_the_average_stands_in_for_the_parameters_within_the_block_alone():
    options = TrainerOptions(total_steps=4, learning_rate=1e-2, ema_decay=0.9)
    trainer, examples = Trainer(make_model(), options), make_examples(8)
    run(trainer, training_batches(examples, 4, 0, 0, 4))
    trained = [parameter.detach().clone() for parameter in trainer.parameters]
    own = trainer.validation_loss(examples)
    with trainer.average.in_place():
        averaged = trainer.validation_loss(examples)
    assert averaged > own, "slower than the steps"
    assert trainer.validation_loss(examples) == own
    with trainer.parameters_of(trainer.state()[0]):
        assert trainer.validation_loss(examples) == averaged, "a checkpoint's best is its average"
    trainer.average.replace_parameters()
    assert trainer.validation_loss(examples) == averaged
    assert not torch.equal(trainer.parameters[1], trained[1])


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_an_average_that_never_or_always_moves_is_refused(decay):
    with pytest.raises(ValueError, match="expected a value between 0 and 1"):
        AdapterAverage([torch.zeros(1)], decay)


def test_training_lowers_the_validation_loss_and_leaves_the_base_alone():
    model = make_model()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    options = TrainerOptions(total_steps=60, learning_rate=1e-2)
    trainer, examples = Trainer(model, options), make_examples(16)
    before = trainer.validation_loss(examples)
    run(trainer, training_batches(examples, 8, 0, 0, 60))
    assert trainer.validation_loss(examples) < before - 1
    assert all(
        torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen
    )


def test_bfloat16_keeps_lora_in_float32_and_follows_float32():
    examples = make_examples(12)
    exact = run(
        Trainer(make_model(), TrainerOptions(12, 5e-3)), training_batches(examples, 6, 0, 0, 12)
    )
    trainer = Trainer(make_model().bfloat16(), TrainerOptions(12, 5e-3, dtype=torch.bfloat16))
    for layer in trainer.model.modules():
        if hasattr(layer, "lora_A"):
            layer.lora_A.data, layer.lora_B.data = (
                layer.lora_A.data.float(),
                layer.lora_B.data.float(),
            )
    losses = run(trainer, training_batches(examples, 6, 0, 0, 12))
    assert losses == pytest.approx(exact, abs=0.15)
    assert losses != exact
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in [*trainer.parameters, *states]} == {torch.float32}


def test_float16_overflow_skips_the_step_and_is_counted():
    trainer = Trainer(make_model(), TrainerOptions(4, 5e-3, dtype=torch.float16))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    examples = make_examples(4)
    before = [p.clone() for p in trainer.parameters]
    trainer.parameters[0].register_hook(lambda grad: grad * math.inf)
    trainer.step(examples)
    assert trainer.skipped_steps == 1
    assert trainer.scaler.get_scale() == 2.0**14
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


def test_gradients_that_are_not_finite_end_a_float32_run():
    trainer = Trainer(make_model(), TrainerOptions(4, 5e-3))
    trainer.parameters[0].register_hook(lambda grad: grad * math.nan)
    with pytest.raises(
        ValueError, match="step 1: the norm of the gradients is nan: the forward pass is finite"
    ):
        trainer.step(make_examples(4))


def test_learning_rate_schedules():
    def factors(schedule):
        return [learning_rate_factor(step, 12, 2, schedule) for step in range(12)]

    assert factors("constant") == pytest.approx([1 / 3, 2 / 3] + [1.0] * 10)
    assert factors("linear") == pytest.approx([1 / 3, 2 / 3] + [1 - i / 10 for i in range(10)])
    assert factors("cosine")[2] == 1.0
    assert factors("cosine")[7] == pytest.approx(0.5)
    assert factors("cosine")[11] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        learning_rate_factor(0, 1, 0, "step")


def test_batches_cover_epochs_and_resume_in_the_middle():
    examples = make_examples(10)
    batches = list(training_batches(examples, 4, seed=0, first_step=0, total_steps=8))
    assert [len(batch) for batch in batches[:3]].count(4) == 2
    for epoch in (batches[:3], batches[3:6]):
        assert sorted(map(id, itertools.chain(*epoch))) == sorted(map(id, examples))
    assert batches[:3] != batches[3:6]
    assert list(training_batches(examples, 4, 0, 5, 8)) == batches[5:]


def test_checkpoints_appear_whole_and_only_the_last_are_kept(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(
            tmp_path, step, {"a": torch.ones(1) * step}, {"completed_steps": step}, keep=2
        )
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-00000015"]
    assert load_checkpoint(checkpoints(tmp_path)[-1])[0]["a"].item() == 15
    assert not list(tmp_path.glob(".*"))
    (tmp_path / ".step-00000020.partial").mkdir()  # what a killed process leaves
    assert checkpoints(tmp_path)[-1].name == "step-00000015"
    (tmp_path / "step-00000015" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"state\.safetensors: not a readable"):
        load_checkpoint(checkpoints(tmp_path)[-1])


def test_a_checkpoint_removed_in_part_is_none(tmp_path, monkeypatch):
    """An old one that was being removed when the process was killed used to stop every resume."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1)}, {"completed_steps": step})
    (tmp_path / "step-00000002" / "state.json").unlink()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]

    def killed(path, ignore_errors=False):
        if any(path.glob("*")):
            next(path.glob("*")).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 3, {"a": torch.ones(1)}, {"completed_steps": 3}, keep=1)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
    save_checkpoint(tmp_path, 4, {"a": torch.ones(1)}, {"completed_steps": 4}, keep=1)
    assert load_checkpoint(checkpoints(tmp_path)[-1])[1] == {"completed_steps": 4}


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, {"completed_steps": 1})

    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("lora.checkpoint.save_file", full)
    message = r"step-00000002: cannot be written \(I/O error: No space left .* MiB free"
    with pytest.raises(UserError, match=message):
        save_checkpoint(tmp_path, 2, {"a": torch.ones(1)}, {"completed_steps": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_warm_up_that_never_reaches_the_peak_is_refused():
    TrainerOptions(total_steps=4, warmup_steps=3)
    with pytest.raises(UserError, match="a warm-up of 4 steps in a training of 4"):
        TrainerOptions(total_steps=4, warmup_steps=4)


def test_trained_weights_that_are_not_finite_are_named():
    trainer = Trainer(make_model(), TrainerOptions(4, 5e-3))
    trainer.parameters[3].data[0, 0] = math.inf
    name = "model.layers.0.self_attn.k_proj are not finite any more; lower --lr"
    with pytest.raises(UserError, match=f"step 1: the loss is nan: the trained weights of {name}"):
        trainer.step(make_examples(4))
    with pytest.raises(UserError, match="the validation loss is nan"):
        trainer.validation_loss(make_examples(4))


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_base_is_told_from_a_learning_rate_too_high(packed):
    model = make_model()
    layer = model.model["layers"][1].mlp.gate_proj
    layer.weight.data[0, 0] = math.nan
    trainer = Trainer(model, TrainerOptions(4, 5e-3))
    place = r"model\.layers\.1\.mlp\.gate_proj is the first layer"
    packing = packed_weights(model) if packed else contextlib.nullcontext()
    with packing, pytest.raises(UserError, match=f"without the adapter already, {place}"):
        trainer.step(make_examples(4))
    layer.weight.data[0, 0] = 0
    trainer.parameters[-1].data.fill_(1e38)
    with pytest.raises(UserError, match=r"with the adapter, model\.layers\.2\.mlp\.down_proj"):
        trainer.step(make_examples(4))


def test_state_of_other_layers_is_refused():
    trainer = Trainer(make_model(), TrainerOptions(1))
    tensors, values = trainer.state()
    tensors["0.parameter"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="other shapes"):
        trainer.load_state(tensors, values)


def test_model_without_lora_is_refused():
    config = ModelConfig.from_dict(tiny_transformers_model("llama").config.to_dict())
    with pytest.raises(ValueError, match="call inject_lora first"):
        Trainer(Decoder(config), TrainerOptions(1))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_nothing_but_memory(dropout):
    """Through a shared prefix as well, whose keys and values leave the blocks sideways."""
    examples = [
        Example([7] * 9 + e.input_ids, [IGNORE_INDEX] * 9 + e.labels) for e in make_examples(6)
    ]
    batches = [examples[:3], examples[3:], examples]
    plain = run(Trainer(make_model(dropout=dropout), TrainerOptions(3, 1e-2)), batches)
    model, blocks = make_model(dropout=dropout), []
    model.model["layers"][1].mlp.register_forward_pre_hook(lambda *_: blocks.append(1))
    checkpointed = run(
        Trainer(model, TrainerOptions(3, 1e-2, checkpoint_activations=True)), batches
    )
    assert checkpointed == plain
    assert len(blocks) == 2 * 2 * 3, (
        "prefix and pass, forward and again in the backward pass, in each of three steps"
    )
