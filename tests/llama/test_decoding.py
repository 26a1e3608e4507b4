"""Batched decoding gives the tokens of transformers, whatever the batch, prefix or chunk."""

import dataclasses
import math
import os

import pytest
import torch

from data.few_shot import FewShotSampler
from data.gsm8k import GSM8K
from llama import cached_attention, generate, load_model, load_tokenizer, prompt_lookup, scheduler
from llama.cache import bytes_per_token
from llama.engine import DecodingStats
from llama.sequence import common_prefix_length
from tests.tiny import save_transformers_model, tiny_transformers_model

# So much of the vocabulary that some sequences stop and some do not.
STOP_IDS = frozenset(range(3, 60, 7))


def ragged_prompts(seed: int, prefix: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(12, 199, (prefix,), generator=generator).tolist()
    lengths = torch.randint(1, 30, (9,), generator=generator).tolist()
    return [shared + torch.randint(12, 199, (n,), generator=generator).tolist() for n in lengths]


def transformers_tokens(
    model, prompt: list[int], max_new_tokens: int, stop_ids=STOP_IDS
) -> list[int]:
    input_ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=["llama3-scaled", "qwen3"])
def models(request, tmp_path_factory):
    theirs = tiny_transformers_model(request.param)
    return theirs, load_model(
        save_transformers_model(theirs, tmp_path_factory.mktemp(request.param))
    )


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 17])
def test_greedy_tokens_equal_transformers(models, prefix):
    theirs, ours = models
    reasons = set()
    for seed in range(5):
        prompts = ragged_prompts(seed, prefix)
        expected = [transformers_tokens(theirs, prompt, 40) for prompt in prompts]
        for batch_size in (1, 4, 32):
            outputs = generate(ours, prompts, 40, STOP_IDS, batch_size)
            assert [output.token_ids for output in outputs] == expected
        stopped = [tokens[-1] in STOP_IDS for tokens in expected]
        assert [output.finish_reason == "stop" for output in outputs] == stopped
        reasons |= {output.finish_reason for output in outputs}
    assert reasons == {"stop", "length"}, "both endings must occur for this to mean anything"


@pytest.mark.parametrize("variant", ["qwen2", "mistral", "smollm3"])
def test_other_families_decode_as_transformers_does(variant, tmp_path):
    """Biases on q, k and v, and layers without rotation, through the cache and packed weights."""
    theirs = tiny_transformers_model(variant)
    ours = load_model(save_transformers_model(theirs, tmp_path))
    prompts = ragged_prompts(seed=1, prefix=9)[:3]
    expected = [transformers_tokens(theirs, prompt, 12) for prompt in prompts]
    assert len(set(map(tuple, expected))) > 1
    for batch_size in (1, 3):
        outputs = generate(ours, prompts, 12, STOP_IDS, batch_size)
        assert [output.token_ids for output in outputs] == expected


def test_smollm2_answers_50_questions_as_transformers_does_one_by_one(smollm2_folder):
    """A real model in float32 on real prompts: official questions if UNFORGET_DATA has them, else
    the demo's.
    """
    import transformers

    source = "gsm8k" if os.environ.get("UNFORGET_DATA") else "demo"
    records, pool = GSM8K().load(source, "test")[:50], GSM8K().load(source, "train")
    tokenizer, ours = load_tokenizer(smollm2_folder), load_model(smollm2_folder)
    prompts = [
        tokenizer.encode_chat(
            GSM8K().messages(record, FewShotSampler(pool, i % 3, "random").select(record))
        )
        for i, record in enumerate(records)
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    expected = [transformers_tokens(theirs, prompt, 24, tokenizer.stop_ids) for prompt in prompts]
    for batch_size in (50, 7):
        outputs = generate(ours, prompts, 24, tokenizer.stop_ids, batch_size)
        assert [output.token_ids for output in outputs] == expected


def test_small_chunks_change_nothing(models, monkeypatch):
    _, ours = models
    prompts = ragged_prompts(5, prefix=40)
    whole = generate(ours, prompts, 20, STOP_IDS, batch_size=4)
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 7)
    assert generate(ours, prompts, 20, STOP_IDS, batch_size=4) == whole


@pytest.mark.slow
def test_drafts_change_nothing_but_the_number_of_passes(models, monkeypatch):
    _, ours = models
    # Text that repeats itself invites good and bad drafts; no stop id cuts it short.
    prompts = [prompt * 3 for prompt in ragged_prompts(7)]
    results, passes = [], []
    no_drafts, few_sequences = (1, ()), (24, ())
    streaks, both = (1, ((2, 5),)), (64, ((1, 7),))
    for verified, lengths in (no_drafts, few_sequences, streaks, both):
        monkeypatch.setattr(scheduler, "VERIFIED_TOKENS", verified)
        monkeypatch.setattr(prompt_lookup, "STREAK_TO_DRAFT_LENGTH", lengths)
        stats = DecodingStats()
        results.append(generate(ours, prompts, 60, frozenset(), batch_size=2, stats=stats))
        passes.append(stats.forward_passes)
    assert results[0] == results[1] == results[2] == results[3]
    assert passes[1] < passes[0] and passes[2] < passes[0] and passes[3] < passes[0]


def test_shared_prefix_is_computed_once(models):
    _, ours = models
    prompts = ragged_prompts(1, prefix=17)
    stats = DecodingStats()
    outputs = generate(ours, prompts, 5, STOP_IDS, batch_size=3, stats=stats)
    total = sum(map(len, prompts))
    assert stats.prompt_tokens == total
    assert stats.prefill_tokens == total - 17 * (len(prompts) - 1)
    assert stats.new_tokens == sum(len(output.token_ids) for output in outputs)


def test_prompts_that_begin_alike_in_groups_copy_what_another_slot_holds(models):
    theirs, ours = models
    generator = torch.Generator().manual_seed(9)
    starts = torch.randint(12, 199, (3, 40), generator=generator).tolist()
    prompts = [
        starts[i % 3] + torch.randint(12, 199, (5 + i,), generator=generator).tolist()
        for i in range(9)
    ]
    expected = [transformers_tokens(theirs, prompt, 12) for prompt in prompts]
    for batch_size in (
        1,
        4,
        9,
    ):  # the last one sees a group's prompts while the first of them is being read
        stats = DecodingStats()
        outputs = generate(ours, prompts, 12, STOP_IDS, batch_size, stats=stats)
        assert [output.token_ids for output in outputs] == expected
        if batch_size == 9:
            assert stats.prefill_tokens == sum(map(len, prompts)) - 6 * 40, (
                "each group's beginning is read once"
            )


def test_more_groups_than_slots_are_still_prefilled_once_each(models):
    """They are answered in the order they come in: any other tears groups apart."""
    _, ours = models
    generator = torch.Generator().manual_seed(10)
    starts = torch.randint(12, 199, (6, 40), generator=generator).tolist()
    lengths = torch.randint(5, 30, (24,), generator=generator).tolist()
    ends = [torch.randint(12, 199, (length,), generator=generator).tolist() for length in lengths]
    prompts = [[*starts[i // 4], 12 + i, *end] for i, end in enumerate(ends)]  # no two go on alike
    stats = DecodingStats()
    generate(ours, prompts, 4, frozenset(), 4, stats=stats)
    assert stats.prefill_tokens == sum(map(len, prompts)) - 6 * 3 * 40


def test_memory_bounds_the_sequences_in_flight_not_the_tokens(models):
    _, ours = models
    prompts = ragged_prompts(4, prefix=17)
    passes, outputs = [], []
    token = bytes_per_token(ours.config, torch.float32)
    for cache_bytes in (None, 250 * token):
        stats = DecodingStats()
        outputs.append(
            generate(ours, prompts, 20, STOP_IDS, 9, cache_bytes=cache_bytes, stats=stats)
        )
        passes.append(stats.forward_passes)
    assert outputs[0] == outputs[1]
    assert passes[1] > passes[0], "fewer sequences at a time"
    with pytest.raises(ValueError, match="GiB of key/value cache, but its memory is bounded by"):
        generate(ours, prompts, 20, cache_bytes=20 * token)


def test_attention_without_the_flash_kernel_is_the_same(models, monkeypatch):
    """Other devices always form the scores themselves; here that way runs on the CPU."""
    _, ours = models
    prompts = ragged_prompts(8, prefix=17)
    expected = generate(ours, prompts, 20, STOP_IDS, 4)
    monkeypatch.setattr(cached_attention, "FEW_QUERIES", 10**9)
    monkeypatch.setattr(cached_attention.Part, "_can_gather", lambda *_: False)
    assert generate(ours, prompts, 20, STOP_IDS, 4) == expected


def test_a_bfloat16_cache_stays_close(models):
    _, ours = models
    prompts = ragged_prompts(8, prefix=17)
    exact, rounded = (
        generate(ours, prompts, 1, STOP_IDS, 4, cache_dtype=dtype)
        for dtype in (None, torch.bfloat16)
    )
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) >= len(prompts) - 2


def test_every_prompt_token_computed_is_counted(models, monkeypatch):
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", 4)
    stats = DecodingStats()
    generate(
        models[1], [[5], [20, 21, 22, 23, 24]], 3, stats=stats
    )  # read at once, and with one token left over
    assert stats.prefill_tokens == stats.prompt_tokens == 6


def test_equal_prompts_and_a_prompt_that_begins_another(models):
    theirs, ours = models
    prompt = ragged_prompts(2)[0] * 3
    prompts = [prompt, prompt, prompt[:-2], [*prompt, 50]]
    expected = [transformers_tokens(theirs, p, 15) for p in prompts]
    assert [output.token_ids for output in generate(ours, prompts, 15, STOP_IDS)] == expected


def test_finished_sequences_are_reported_at_once(models):
    _, ours = models
    prompts, seen = ragged_prompts(0), {}
    outputs = generate(
        ours, prompts, 40, STOP_IDS, 3, on_finish=lambda i, output: seen.update({i: output})
    )
    assert [seen[i] for i in range(len(prompts))] == outputs
    assert list(seen) != sorted(seen), "sequences end at different times"


def test_context_end_cuts_generation(models):
    _, ours = models
    short = dataclasses.replace(ours.config, max_position_embeddings=20)
    ours.config, full = short, ours.config
    try:
        (output,) = generate(ours, [[5] * 15], 40)
        assert (len(output.token_ids), output.finish_reason) == (5, "length")
        with pytest.raises(
            ValueError, match="prompt 1: 20 tokens leave no room in the model's context of 20"
        ):
            generate(ours, [[5], [5] * 20], 40)
    finally:
        ours.config = full


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": [[5], []]}, "prompt 1: the prompt is empty"),
        ({"prompts": [[199]]}, "token id 199 is outside the vocabulary of 199"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0.0"),
    ],
)
def test_bad_calls_are_refused(models, call, message):
    with pytest.raises(ValueError, match=message):
        generate(models[1], **{"prompts": [[5]], **call})


def test_no_prompts_no_outputs(models):
    assert generate(models[1], []) == []


def test_samples_depend_on_seed_and_index_only(models):
    _, ours = models
    prompts = ragged_prompts(3)
    settings = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    together = generate(ours, prompts, **settings, seed=1)
    assert generate(ours, prompts, **settings, seed=1, batch_size=2) == together
    assert generate(ours, prompts[4:5], **settings, seed=1, indices=[4]) == together[4:5]
    assert generate(ours, prompts, **settings, seed=2) != together
    twice = generate(ours, [prompts[0]] * 2, **settings, seed=1)
    assert twice[0] != twice[1], "equal prompts draw from different generators"
    several = {"indices": [(0, 0), (0, 1), (1, 0)]}
    samples = generate(ours, [prompts[0]] * 3, **settings, seed=1, **several)
    assert [samples[0], samples[2]] == twice and samples[1] not in twice


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1, 2, 3]], 0),
        ([[1, 2], [1, 2]], 1),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1], [1, 2]], 0),
        ([[2, 1], [3, 1]], 0),
    ],
)
def test_common_prefix_leaves_each_prompt_a_token(prompts, length):
    assert common_prefix_length(prompts) == length
