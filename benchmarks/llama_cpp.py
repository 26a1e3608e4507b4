"""llama.cpp through its C interface, scheduled as this project's engine is.

One sequence for each prompt in progress; the common prefix is decoded once and copied.
"""

from collections import deque
from typing import Any, NamedTuple

import llama_cpp as c
import numpy as np

from benchmarks.engines import Prompts, Request, common_prefix_length

FLOAT32 = 0  # GGML_TYPE_F32
PAGE = 256  # a context's cells come in multiples of this


class Entry(NamedTuple):
    """Tokens of one sequence to be read in a pass."""

    sequence: int
    position: int
    tokens: list[int]
    needs_logits: bool


class LlamaCpp:
    """A loaded model with a context for `batch_size` prompts in progress."""

    def __init__(self, request: Request) -> None:
        # The C library calls it for as long as it is loaded.
        self._silent = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._silent, None)
        self.versions = {"llama-cpp-python": c.__version__}
        self.stop_ids = request["stop_ids"]
        self.batch_size: int = request["batch_size"]
        self.prefix_sequence = self.batch_size  # the last sequence holds the prefix
        options = context_options(request)
        self.model = c.llama_model_load_from_file(
            request["gguf"].encode(), c.llama_model_default_params()
        )
        self.vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.context = c.llama_init_from_model(self.model, options)
        self.memory = c.llama_get_memory(self.context)
        self.batch = c.llama_batch_init(options.n_batch, 0, 1)

    def decode(self, entries: list[Entry]) -> list[int]:
        """Read the tokens of each entry; return the greedy next token of those that need logits."""
        count = 0
        last: list[int] = []
        for entry in entries:
            for i, token in enumerate(entry.tokens):
                self.batch.token[count] = token
                self.batch.pos[count] = entry.position + i
                self.batch.n_seq_id[count] = 1
                self.batch.seq_id[count][0] = entry.sequence
                self.batch.logits[count] = entry.needs_logits and i == len(entry.tokens) - 1
                count += 1
            if entry.needs_logits:
                last.append(count - 1)
        self.batch.n_tokens = count
        status = c.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {count} tokens")
        return [self.greedy_token(index) for index in last]

    def greedy_token(self, index: int) -> int:
        """The likeliest token behind position `index` of the batch that was read last."""
        pointer = c.llama_get_logits_ith(self.context, index)
        return int(np.ctypeslib.as_array(pointer, (self.vocab_size,)).argmax())

    def run(self, prompts: Prompts, max_new_tokens: int) -> Prompts:
        """The new tokens of each prompt, a stop id included."""
        c.llama_memory_clear(self.memory, True)
        prefix = prompts[0][: common_prefix_length(prompts)]
        if prefix:
            self.decode([Entry(self.prefix_sequence, 0, prefix, False)])
        answers: Prompts = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        running: dict[int, int] = {}  # the prompt in each slot that is in use
        while waiting or running:
            entries = []
            for slot in range(self.batch_size):
                if slot in running:
                    prompt = prompts[running[slot]]
                    tokens = answers[running[slot]]
                    position = len(prompt) + len(tokens) - 1
                    entries.append(Entry(slot, position, tokens[-1:], True))
                elif waiting:
                    running[slot] = waiting.popleft()
                    self.copy_prefix(slot)
                    suffix = prompts[running[slot]][len(prefix) :]
                    entries.append(Entry(slot, len(prefix), suffix, True))
            for entry, token in zip(entries, self.decode(entries), strict=True):
                tokens = answers[running[entry.sequence]]
                tokens.append(token)
                if token in self.stop_ids or len(tokens) == max_new_tokens:
                    del running[entry.sequence]
                    c.llama_memory_seq_rm(self.memory, entry.sequence, -1, -1)
        return answers

    def copy_prefix(self, slot: int) -> None:
        c.llama_memory_seq_rm(self.memory, slot, -1, -1)
        c.llama_memory_seq_cp(self.memory, self.prefix_sequence, slot, -1, -1)


def context_options(request: Request) -> Any:
    """The context's parameters: float32 cache, large enough for all sequences."""
    prompts: Prompts = request["prompts"]
    batch_size: int = request["batch_size"]
    prefix_length, longest = common_prefix_length(prompts), max(map(len, prompts))
    options = c.llama_context_default_params()
    options.n_threads = options.n_threads_batch = request["threads"]
    options.n_seq_max = batch_size + 1
    # As its documentation advises: one buffer for all sequences where they share a large prefix,
    # else one for each.
    options.kv_unified = 2 * prefix_length > longest
    shared = prefix_length if options.kv_unified else 0
    cells = longest - shared + request["max_new_tokens"]
    if options.kv_unified:
        options.n_ctx = round_up(shared + cells * options.n_seq_max)
    else:  # divided by the number of sequences
        options.n_ctx = round_up(cells) * options.n_seq_max
    options.n_batch, options.n_ubatch = batch_size * longest, 512
    options.type_k = options.type_v = FLOAT32  # the default is float16
    return options


def round_up(cells: int) -> int:
    """The next multiple of PAGE."""
    return -(-cells // PAGE) * PAGE
