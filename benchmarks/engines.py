"""One engine in a process of its own: `python -m benchmarks.engines REQUEST.json RESULT.json`.

A request names the engine and holds prompts as token ids; the result holds the new tokens of each
prompt, the seconds they took (loading and a small warm-up excluded) and the process's peak memory.
Imports are inside the runners, since each engine may live in another Python environment.
"""

import gc
import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

Request = dict[
    str, Any
]  # engine, model, prompts, max_new_tokens, stop_ids, batch_size, threads and the peer's own files
Run = Callable[
    [list[list[int]], int], list[list[int]]
]  # prompts, max_new_tokens -> new tokens, a stop id included
OPENVINO_BLOCK = 32  # tokens of a block of OpenVINO's cache on CPU


def load_unforget(request: Request, result: dict[str, Any]) -> Run:
    """This project's engine. Adds its counts of tokens and passes, and the parameters, to
    `result`.
    """
    import torch

    from llama import generate, load_model
    from llama.decoding import DecodingStats

    torch.set_num_threads(request["threads"])
    model = load_model(request["model"], dtype="float32")
    ends = [
        p.numel()
        for name, p in model.named_parameters()
        if "embed_tokens" in name or "lm_head" in name
    ]
    result["head_parameters"] = ends[0]
    result["body_parameters"] = sum(p.numel() for p in model.parameters()) - sum(ends)
    result["versions"] = {"torch": torch.__version__}

    def run(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        stats = DecodingStats()
        outputs = generate(
            model,
            prompts,
            max_new_tokens,
            frozenset(request["stop_ids"]),
            request["batch_size"],
            stats=stats,
        )
        result["stats"] = vars(stats).copy()
        return [output.token_ids for output in outputs]

    return run


def load_transformers(request: Request, result: dict[str, Any]) -> Run:
    """`generate` of transformers on left-padded batches in input order."""
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32
    ).eval()
    result["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    size, stop_ids = request["batch_size"], request["stop_ids"]

    def run_batch(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        input_ids = torch.tensor(
            [[stop_ids[0]] * (longest - len(prompt)) + prompt for prompt in prompts]
        )
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        output = model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
        )
        return [until_stop(row, stop_ids) for row in output[:, longest:].tolist()]

    def run(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        return [row for batch in batches for row in run_batch(batch, max_new_tokens)]

    return run


def load_llama_cpp(request: Request, result: dict[str, Any]) -> Run:
    """llama.cpp through its C interface: one sequence per row in flight, the common prefix decoded
    once and copied.
    """
    import llama_cpp as c
    import numpy as np

    prompts, max_new_tokens = request["prompts"], request["max_new_tokens"]
    rows, prefix_length = request["batch_size"], common_prefix_length(prompts)
    longest = max(map(len, prompts))
    c.llama_log_set(SILENT := c.llama_log_callback(lambda level, text, data: None), None)
    result["versions"] = {"llama-cpp-python": c.__version__}
    model = c.llama_model_load_from_file(request["gguf"].encode(), c.llama_model_default_params())
    vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    options = c.llama_context_default_params()
    options.n_threads = options.n_threads_batch = request["threads"]
    options.n_seq_max = rows + 1  # the last sequence holds the prefix
    # As its documentation advises: one buffer for all sequences where they share a large prefix,
    # else one for each.
    options.kv_unified = 2 * prefix_length > longest
    shared = prefix_length if options.kv_unified else 0
    cells = longest - shared + max_new_tokens
    options.n_ctx = -(-(shared + cells * options.n_seq_max) // 256) * 256
    if not options.kv_unified:
        options.n_ctx = (
            -(-cells // 256) * 256 * options.n_seq_max
        )  # divided by the number of sequences
    options.n_batch, options.n_ubatch = rows * longest, 512
    options.type_k = options.type_v = 0  # GGML_TYPE_F32; the default is float16
    context = c.llama_init_from_model(model, options)
    memory = c.llama_get_memory(context)
    batch = c.llama_batch_init(rows * longest, 0, 1)

    def decode(entries: list[tuple[int, int, list[int], bool]]) -> list[int]:
        """Read the tokens of each (sequence, position, tokens, wanted); the greedy next token of
        those wanted.
        """
        count, last = 0, []
        for sequence, position, tokens, wanted in entries:
            for i, token in enumerate(tokens):
                batch.token[count], batch.pos[count] = token, position + i
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = wanted and i == len(tokens) - 1
                count += 1
            if wanted:
                last.append(count - 1)
        batch.n_tokens = count
        if status := c.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {status} for {count} tokens")
        logits = (
            np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (vocab_size,)) for i in last
        )
        return [int(row.argmax()) for row in logits]

    def run(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        c.llama_memory_clear(memory, True)
        prefix = prompts[0][: common_prefix_length(prompts)]
        if prefix:
            decode([(rows, 0, prefix, False)])
        new, waiting = [[] for _ in prompts], deque(range(len(prompts)))
        slots = [None] * rows
        while waiting or any(index is not None for index in slots):
            entries, active = [], []
            for slot in range(rows):
                if slots[slot] is None and waiting:
                    slots[slot] = waiting.popleft()
                    c.llama_memory_seq_rm(memory, slot, -1, -1)
                    c.llama_memory_seq_cp(memory, rows, slot, -1, -1)
                    entries.append((slot, len(prefix), prompts[slots[slot]][len(prefix) :], True))
                elif slots[slot] is not None:
                    tokens = new[slots[slot]]
                    entries.append(
                        (slot, len(prompts[slots[slot]]) + len(tokens) - 1, tokens[-1:], True)
                    )
                else:
                    continue
                active.append(slot)
            for slot, token in zip(active, decode(entries), strict=True):
                tokens = new[slots[slot]]
                tokens.append(token)
                if token in request["stop_ids"] or len(tokens) == max_new_tokens:
                    slots[slot] = None
                    c.llama_memory_seq_rm(memory, slot, -1, -1)
        return new

    run.keep = SILENT  # the C library calls it for as long as it is loaded
    return run


def load_openvino(request: Request, result: dict[str, Any]) -> Run:
    """OpenVINO GenAI's continuous batching with prefix caching; one request warms the prefix, and
    its time counts.
    """
    import numpy as np
    import openvino
    import openvino_genai

    result["versions"] = {
        "openvino-genai": openvino_genai.__version__,
        "openvino": openvino.__version__,
    }
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        request["openvino_model"],
        scheduler,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": request["threads"],
        },
    )

    def submit(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = max_new_tokens, False
        config.stop_token_ids = set(request["stop_ids"])
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        outputs = pipeline.generate(tensors, [config] * len(prompts))
        return [list(output.m_generation_ids[0]) for output in outputs]

    def run(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        # Whole blocks only: after a request that ends within a block, 2026.4 gives wrong tokens to
        # those that share it.
        blocks = common_prefix_length(prompts) // OPENVINO_BLOCK
        if blocks:
            submit([prompts[0][: blocks * OPENVINO_BLOCK]], 1)
        return submit(prompts, max_new_tokens)

    return run


ENGINES = {
    "unforget": load_unforget,
    "transformers": load_transformers,
    "llama.cpp": load_llama_cpp,
    "openvino": load_openvino,
}


def until_stop(tokens: list[int], stop_ids: list[int]) -> list[int]:
    """`tokens` up to the first stop id, which is kept."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[: end + 1]


def common_prefix_length(prompts: list[list[int]]) -> int:
    """How many leading tokens all prompts share, leaving each one of its own; 0 for a single
    prompt.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def peak_memory() -> int:
    """Bytes. On Linux VmHWM, since ru_maxrss there also counts what the parent held when it started
    this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    request, result = json.loads(Path(sys.argv[1]).read_text()), {}
    run = ENGINES[request["engine"]](request, result)
    # Reversed prompts share no prefix with the real ones, so no cache is warm but the machine's
    # own.
    run([prompt[::-1][:64] for prompt in request["prompts"][:2]], 4)
    gc.collect()
    start = time.perf_counter()
    token_ids = run(request["prompts"], request["max_new_tokens"])
    result |= {
        "seconds": time.perf_counter() - start,
        "token_ids": token_ids,
        "peak_memory_bytes": peak_memory(),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
