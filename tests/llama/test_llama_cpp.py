"""llama.cpp reads the GGUF files that are written here and answers as our decoder does.

Skipped where llama-cpp-python is not installed, which has to be compiled.
"""

import random

import pytest

from llama import generate, load_model
from tests.tiny import tiny_transformers_model

pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from llama.gguf_writer import write_gguf  # noqa: E402 - needs gguf
from tests.tiny_gguf import save_gguf  # noqa: E402

FLOAT32 = 0  # ggml's number for the type; the default of its key/value cache is float16
NEW_TOKENS = 24


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "architecture"), [("llama", "llama"), ("qwen2", "qwen2")])
def test_greedy_answers_are_the_same(variant, architecture, tmp_path):
    model = tiny_transformers_model(variant, vocab_size=300)
    source = save_gguf(model, tmp_path / "theirs.gguf", architecture)
    path = tmp_path / "ours.gguf"
    write_gguf(load_model(source), source, path, "F32", name="tiny")
    generator = random.Random(0)
    prompts = [[generator.randrange(10, 290) for _ in range(12)] for _ in range(20)]
    outputs = generate(load_model(path), prompts, NEW_TOKENS, frozenset())
    theirs = llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, type_k=FLOAT32, type_v=FLOAT32, verbose=False
    )
    different = []
    for prompt, output in zip(prompts, outputs, strict=True):
        theirs.reset()
        found: list[int] = []
        for token in theirs.generate(prompt, temp=0.0):
            found.append(token)
            if len(found) == NEW_TOKENS:
                break
        if found != output.token_ids:
            different.append((found, output.token_ids))
    assert not different
