"""Sizes of published models, as their config.json has them: Llama-3.2-1B and Qwen3-4B."""

from benchmarks.gpu_machine import LLAMA_1B

LLAMA = LLAMA_1B | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
QWEN = LLAMA | {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
