"""Log-likelihood of given answers under a model."""

from collections.abc import Sequence

import torch

from data.examples import IGNORE_INDEX, Example
from llama.batching import batches_by_length, pad
from llama.model import Decoder
from lora.non_finite import require_finite

PASS_TOKENS = 4096  # in one forward pass, padding included
CHUNK = 256  # positions whose logits exist at one time


@torch.inference_mode()
def mean_log_likelihoods(model: Decoder, examples: Sequence[Example]) -> list[float]:
    """The mean log-probability of each example's supervised tokens, in nats a token.

    UserError, with the number of the example, if one is not finite.
    """
    means = [0.0] * len(examples)
    for batch in batches_by_length([len(example.input_ids) for example in examples], PASS_TOKENS):
        hidden = model(pad([examples[i].input_ids for i in batch], model.device))
        for row, index in enumerate(batch):
            labels = examples[index].labels
            places = [place for place in range(1, len(labels)) if labels[place] != IGNORE_INDEX]
            states = hidden[row, [place - 1 for place in places]]
            targets = torch.tensor([labels[place] for place in places], device=hidden.device)
            total = 0.0
            for chunk, expected in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
                log_probabilities = model.logits(chunk).float().log_softmax(-1)
                total += log_probabilities.gather(-1, expected[:, None]).sum().item()
            means[index] = total / len(places)
            what = f"the log-likelihood of answer {index + 1}"
            require_finite(what, means[index], model, [examples[index]])
    return means
