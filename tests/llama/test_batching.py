import pytest
import torch

from llama.batching import batches_by_length, pad


@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_in_one_batch_within_the_bound(seed):
    lengths = torch.randint(1, 40, (57,), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = list(batches_by_length(lengths, 64))
    assert sorted(index for batch in batches for index in batch) == list(range(57))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 64 for batch in batches)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.2 * sum(lengths)  # in the given order it would be half as much again


def test_a_text_beyond_the_bound_goes_alone():
    assert list(batches_by_length([3, 100, 3], 10)) == [[1], [0, 2]]
    assert list(batches_by_length([], 10)) == []


def test_padding_stands_to_the_right():
    assert pad([[7], [8, 9, 5]], "cpu").tolist() == [[7, 0, 0], [8, 9, 5]]
