"""Load and save checkpoints: safetensors, in one file or in shards, into a `Decoder` built on the
meta device.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llama.config import ModelConfig
from llama.errors import UserError
from llama.hub import resolve
from llama.json_files import read_json_object
from llama.model import Decoder
from llama.quantization import SCHEMES, QuantizedLinear, quantize_linears, quantize_weight

SINGLE = "model.safetensors"
SCALE = ".weight_scale"  # the second tensor of a quantised linear; checkpoints have none
INDEX = "model.safetensors.index.json"


def load_model(
    ref: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    head: bool = True,
) -> Decoder:
    """The decoder at `ref` (local folder, Hub id or alias), in eval mode with frozen weights of
    `dtype` on `device`.

    With `quantize="int8"` the linears of its blocks hold 8-bit weights, rounded one tensor at a
    time. Without `head`, for hidden states alone, an output head is neither needed nor read. A
    checkpoint saved from the bare model, whose names lack the leading "model." (Qwen3-Embedding),
    is read as well. Raises one UserError that lists every missing, unexpected or misshapen tensor.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if quantize not in (None, *SCHEMES):
        raise UserError(f"quantize = {quantize!r}: expected None or one of {', '.join(SCHEMES)}")
    folder = resolve(ref)
    config = ModelConfig.load(folder)
    tied = config.tie_word_embeddings or not head
    with torch.device("meta"):
        model = Decoder(config)
    if tied:
        model.lm_head.weight = model.model["embed_tokens"].weight
    if quantize:
        quantize_linears(model)
    small = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    wanted = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not name.endswith(SCALE)
    }
    found: dict[str, Tensor] = {}
    problems = []
    for name, tensor in read_tensors(folder):
        if name == "lm_head.weight" and tied:
            continue  # some exports store the shared matrix twice
        if name not in wanted and f"model.{name}" in wanted:
            name = f"model.{name}"
        if name not in wanted:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif tuple(tensor.shape) != wanted[name]:
            problems.append(
                f"{name} is {list(tensor.shape)}, config.json asks for {list(wanted[name])}"
            )
        elif name in small:
            weight, scale = quantize_weight(tensor.to(device))
            found[name], found[name.removesuffix(".weight") + SCALE] = weight, scale
            continue
        else:
            found[name] = tensor.to(device=device, dtype=dtype)
            continue
        wanted.pop(name, None)  # reported once
    problems += [f"missing {name}" for name in wanted if name not in found]
    if problems:
        raise UserError(f"{folder}: weights do not fit config.json: " + "; ".join(problems))
    model.load_state_dict(found, strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.model["embed_tokens"].weight
    return model.requires_grad_(False).eval()


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, one at a time, so that peak memory stays near the model's own
    size.
    """
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); download it again"
            ) from None


def weight_files(folder: Path) -> list[Path]:
    """The single file or the shards the index names. UserError if there are none or a name leaves
    the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}: no weights this project reads")
    weight_map = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX}: no weight_map that names the shards")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{folder / INDEX}: shard name {name!r} is no .safetensors file in this folder"
            )
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: {INDEX} names this shard, but it is missing; download it again"
            )
    return [folder / name for name in names]


def save_model(model: Decoder, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`; the tokenizer files are the caller's to copy."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8"
    )
    tensors = {
        name: parameter.detach().contiguous() for name, parameter in model.named_parameters()
    }
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
