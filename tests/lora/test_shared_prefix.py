"""A prefix that a step's examples share: computed apart always on a CPU, where it pays on CUDA."""

import torch

from data.examples import Example
from lora.loss import WORTH_SHARING, shared_prefix_length


def examples(count: int, prefix: int) -> list[Example]:
    return [Example([7] * prefix + [100 + i, 1], [7] * (prefix + 2)) for i in range(count)]


def test_a_short_prefix_of_few_examples_is_not_worth_a_pass_on_cuda():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert shared_prefix_length(examples(4, 40), cpu) == 40
    assert shared_prefix_length(examples(4, 40), cuda) == 0
    assert shared_prefix_length(examples(4, WORTH_SHARING // 3), cuda) == 0
    assert shared_prefix_length(examples(4, WORTH_SHARING // 3 + 1), cuda) == WORTH_SHARING // 3 + 1
    assert shared_prefix_length(examples(1, 5000), cuda) == 0, "nothing to share it with"
