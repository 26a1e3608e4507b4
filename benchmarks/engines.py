"""One engine in a process of its own: `python -m benchmarks.engines REQUEST.json RESULT.json`.

A request names the engine and holds prompts as token ids; the result holds the new tokens of each
prompt, the seconds and processor seconds they took (loading and a small warm-up excluded) and the
process's peak memory.
Imports are inside the functions, since each engine may live in another Python environment.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
# engine, model, prompts, max_new_tokens, stop_ids, batch_size, threads and the peer's own files
Request = dict[str, Any]
Run = Callable[[Prompts, int], Prompts]  # (prompts, max_new_tokens) -> new tokens with stop ids
OPENVINO_BLOCK = 32  # tokens of a block of OpenVINO's cache on CPU
VLLM_CACHE_GIB = 2  # taken at once, however little is needed


def load_unforget(request: Request, result: dict[str, Any]) -> Run:
    """This project's engine; `result` gets its counts of tokens and passes, and the parameters."""
    import torch

    from llama import generate, load_model
    from llama.decoding import DecodingStats

    torch.set_num_threads(request["threads"])
    model = load_model(request["model"], dtype="float32")
    total, ends = 0, []
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if "embed_tokens" in name or "lm_head" in name:
            ends.append(parameter.numel())
    result["head_parameters"] = ends[0]
    result["body_parameters"] = total - sum(ends)
    result["versions"] = {"torch": torch.__version__}
    stop_ids = frozenset(request["stop_ids"])

    def run(prompts: Prompts, max_new_tokens: int) -> Prompts:
        stats = DecodingStats()
        size = request["batch_size"]
        outputs = generate(model, prompts, max_new_tokens, stop_ids, size, stats=stats)
        result["stats"] = vars(stats).copy()
        return [output.token_ids for output in outputs]

    return run


def load_transformers(request: Request, result: dict[str, Any]) -> Run:
    """`generate` of transformers on left-padded batches in input order."""
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    transformers.utils.logging.disable_progress_bar()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32
    )
    model = loaded.eval()
    result["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    size, stop_ids = request["batch_size"], request["stop_ids"]

    def run_batch(prompts: Prompts, max_new_tokens: int) -> Prompts:
        longest = max(map(len, prompts))
        rows, mask = [], []
        for prompt in prompts:
            padding = longest - len(prompt)
            rows.append([stop_ids[0]] * padding + prompt)
            mask.append([0] * padding + [1] * len(prompt))
        output = model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
        )
        return [until_stop(row, stop_ids) for row in output[:, longest:].tolist()]

    def run(prompts: Prompts, max_new_tokens: int) -> Prompts:
        answers: Prompts = []
        for start in range(0, len(prompts), size):
            answers += run_batch(prompts[start : start + size], max_new_tokens)
        return answers

    return run


def load_llama_cpp(request: Request, result: dict[str, Any]) -> Run:
    """llama.cpp through its C interface; see `benchmarks.llama_cpp`."""
    from benchmarks.llama_cpp import LlamaCpp

    engine = LlamaCpp(request)
    result["versions"] = engine.versions
    return engine.run


def load_openvino(request: Request, result: dict[str, Any]) -> Run:
    """OpenVINO GenAI's continuous batching with prefix caching.

    One request warms the prefix, and its time counts.
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
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": request["threads"],
    }
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        request["openvino_model"], scheduler, "CPU", properties
    )

    def submit(prompts: Prompts, max_new_tokens: int) -> Prompts:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = max_new_tokens, False
        config.stop_token_ids = set(request["stop_ids"])
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        outputs = pipeline.generate(tensors, [config] * len(prompts))
        return [list(output.m_generation_ids[0]) for output in outputs]

    def run(prompts: Prompts, max_new_tokens: int) -> Prompts:
        # Whole blocks only: after a request that ends within a block, 2026.4 gives wrong tokens to
        # those that share it.
        blocks = common_prefix_length(prompts) // OPENVINO_BLOCK
        if blocks:
            submit([prompts[0][: blocks * OPENVINO_BLOCK]], 1)
        return submit(prompts, max_new_tokens)

    return run


def load_vllm(request: Request, result: dict[str, Any]) -> Run:
    """vLLM's offline engine with prefix caching, in this process so that its memory counts."""
    import os

    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(VLLM_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{request['threads'] - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    import vllm

    result["versions"] = {"vllm": vllm.__version__}
    llm = vllm.LLM(
        model=request["model"],
        dtype="float32",
        max_num_seqs=request["batch_size"],
        max_model_len=max(map(len, request["prompts"])) + request["max_new_tokens"],
        enable_prefix_caching=True,
    )

    def run(prompts: Prompts, max_new_tokens: int) -> Prompts:
        sampling = vllm.SamplingParams(
            temperature=0,
            max_tokens=max_new_tokens,
            stop_token_ids=request["stop_ids"],
            detokenize=False,
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return run


ENGINES: dict[str, Callable[[Request, dict[str, Any]], Run]] = {
    "unforget": load_unforget,
    "transformers": load_transformers,
    "llama.cpp": load_llama_cpp,
    "openvino": load_openvino,
    "vllm": load_vllm,
}


def until_stop(tokens: list[int], stop_ids: list[int]) -> list[int]:
    """`tokens` up to the first stop id, which is kept."""
    for position, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: position + 1]
    return tokens


def common_prefix_length(prompts: Prompts) -> int:
    """The number of leading tokens that all prompts share, leaving each one of its own.

    0 for a single prompt.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    for position in range(limit):
        if low[position] != high[position]:
            return position
    return limit


def peak_memory() -> int:
    """The largest resident set of this process in bytes.

    On Linux from VmHWM: ru_maxrss there also counts what the parent held when it started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    request: Request = json.loads(Path(sys.argv[1]).read_text())
    result: dict[str, Any] = {}
    run = ENGINES[request["engine"]](request, result)
    # Reversed prompts share no prefix with the real ones, so no cache is warm but the machine's
    # own.
    run([prompt[::-1][:64] for prompt in request["prompts"][:2]], 4)
    gc.collect()
    start, processor_start = time.perf_counter(), time.process_time()
    result["token_ids"] = run(request["prompts"], request["max_new_tokens"])
    result["seconds"] = time.perf_counter() - start
    result["processor_seconds"] = time.process_time() - processor_start
    result["peak_memory_bytes"] = peak_memory()
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
