"""Load the weights of a `Decoder` from safetensors (one file or shards) or GGUF, and save them."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llama import gguf, gguf_model
from llama.atomic_files import usual_permissions
from llama.config import ModelConfig
from llama.errors import UserError
from llama.hub import resolve
from llama.json_files import read_json_object
from llama.model import Decoder
from llama.quantization import SCHEMES, QuantizedLinear, quantize_linears, quantize_weight

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STORED_DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors spells them
# Llama checkpoints of 2023 store the rotary frequencies, which are computed from config.json.
COMPUTED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
SCALE_SUFFIX = ".weight_scale"  # the second tensor of a quantised linear; checkpoints have none


def load_model(
    ref: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    head: bool = True,
) -> Decoder:
    """Load the decoder at `ref` (local folder, GGUF file, Hub id or alias): in eval mode, frozen.

    `dtype` is that of the weights. With `quantize="int8"` the linears of the blocks hold 8-bit
    weights, rounded one tensor at a time. Without `head`, for hidden states alone, no output head
    is needed or read. A checkpoint saved from the bare model, whose names lack the leading
    "model." (Qwen3-Embedding), is read as well. A head that differs from the embedding it is said
    to be tied to is used, untied, with a notice on stderr. Raises UserError for tensors of another
    kind than floating point, a tensor in two shards, and, in one list, every missing, unexpected or
    misshapen tensor.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if quantize not in (None, *SCHEMES):
        raise UserError(f"quantize = {quantize!r}: expected None or one of {', '.join(SCHEMES)}")
    source = resolve(ref)
    config = ModelConfig.load(source)
    if source.is_dir():
        _check_stored_tensors(source)
    tied = config.tie_word_embeddings or not head
    model = _build_on_meta(config, tied, quantize)
    read_head = head or config.tie_word_embeddings
    state, problems = _read_state(model, source, dtype, torch.device(device), read_head)
    stored_head = _take_head(state, config, head)
    problems += [f"missing {name}" for name in _stored_shapes(model) if name not in state]
    if problems:
        raise UserError(f"{source}: weights do not fit config.json: " + "; ".join(problems))
    model.load_state_dict(state, strict=False, assign=True)
    if tied:
        model.lm_head.weight = _embedding(model).weight
    if stored_head is not None and not torch.equal(stored_head, model.lm_head.weight):
        print(
            f"{source}: lm_head.weight differs from the embedding, although config.json says "
            "tie_word_embeddings: the stored head is used",
            file=sys.stderr,
        )
        model.config = replace(config, tie_word_embeddings=False)
        model.lm_head.weight = nn.Parameter(stored_head)
    return model.requires_grad_(False).eval()


def _take_head(state: dict[str, Tensor], config: ModelConfig, head: bool) -> Tensor | None:
    """Remove a tied output head from `state`; return it if the head is asked for.

    A tied checkpoint may store the shared matrix as the head alone.
    """
    if not config.tie_word_embeddings or HEAD not in state:
        return None
    stored_head = state.pop(HEAD)
    state.setdefault(EMBEDDING, stored_head)
    return stored_head if head else None


def _check_stored_tensors(folder: Path) -> None:
    """Refuse, before weights are read, tensors that are not floating point or stored twice."""
    paths: dict[str, Path] = {}
    for tensor in stored_tensors(folder):
        if tensor.name in paths:
            raise UserError(
                f"{folder}: {tensor.name} is stored in {paths[tensor.name].name} and again in "
                f"{tensor.path.name}; remove one"
            )
        paths[tensor.name] = tensor.path
        if tensor.dtype not in STORED_DTYPES and not COMPUTED.search(tensor.name):
            raise UserError(
                f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}, only "
                f"{', '.join(STORED_DTYPES)} are read; use a checkpoint that is not quantised"
            )


def _build_on_meta(config: ModelConfig, tied: bool, quantize: str | None) -> Decoder:
    with torch.device("meta"):
        model = Decoder(config)
    if tied:
        model.lm_head.weight = _embedding(model).weight
    if quantize:
        quantize_linears(model)
    return model


def _embedding(model: Decoder) -> nn.Embedding:
    embedding = model.model["embed_tokens"]
    assert isinstance(embedding, nn.Embedding)
    return embedding


def _read_state(
    model: Decoder, source: Path, dtype: torch.dtype, device: torch.device, read_head: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict for `model` on the meta device, and what is wrong with it, in words.

    A misshapen tensor is in both.
    """
    shapes = _stored_shapes(model)
    shapes.setdefault(HEAD, shapes[EMBEDDING])  # a tied head may be stored as well
    quantized = _quantized_weights(model)
    state: dict[str, Tensor] = {}
    problems = []
    for name, tensor in read_tensors(source):
        if COMPUTED.search(name) or (name == HEAD and not read_head):
            continue
        if name not in shapes and f"model.{name}" in shapes:
            name = f"model.{name}"
        shape = list(tensor.shape)
        if name in state:
            problems.append(f"{name} is stored with and without the leading 'model.'")
        if name not in shapes:
            problems.append(f"unexpected {name} {shape}")
        elif shape != shapes[name]:
            problems.append(f"{name} is {shape}, config.json asks for {shapes[name]}")
            state[name] = tensor
        elif name in quantized:
            weight, scale = quantize_weight(tensor.to(device))
            state[name] = weight
            state[name.removesuffix(".weight") + SCALE_SUFFIX] = scale
        else:
            state[name] = tensor.to(device=device, dtype=dtype)
            if state[name] is tensor and (name == EMBEDDING or tensor.dim() == 1):
                # Linears may be packed; then nothing is to keep the file in memory.
                state[name] = tensor.clone()
    return state, problems


def _stored_shapes(model: Decoder) -> dict[str, list[int]]:
    """Return the shape of every tensor that a checkpoint of `model` stores, by name."""
    shapes = {}
    for name, parameter in model.named_parameters():
        if not name.endswith(SCALE_SUFFIX):
            shapes[name] = list(parameter.shape)
    return shapes


def _quantized_weights(model: Decoder) -> set[str]:
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            names.add(f"{name}.weight")
    return names


def read_tensors(source: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the folder or GGUF file with its name, one at a time: peak memory stays
    near the model's own size. Those of a GGUF file are dequantised to float32.
    """
    if source.is_file():
        for name, weight in gguf_model.read_tensors(gguf.read_header(source)):
            yield name, torch.from_numpy(weight)
        return
    for path in weight_files(source):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); download it again"
            ) from None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a weights file: `nbytes` bytes from `offset`. `dtype` is spelled as in
    the file ("BF16").
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


def stored_tensors(source: Path) -> list[StoredTensor]:
    """List every tensor of the checkpoint from the headers of its files, reading no weights.

    UserError names a file that is damaged or shorter than its header says.
    """
    if source.is_file():
        return _gguf_tensors(gguf.read_header(source))
    tensors = []
    for path in weight_files(source):
        try:
            tensors += _read_header(path)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); download it again"
            ) from None
    return tensors


def _gguf_tensors(file: gguf.GGUFFile) -> list[StoredTensor]:
    tensors = []
    for tensor in file.tensors.values():
        layout = gguf.tensor_layout(file, tensor)
        dtype = layout.quantisation.name
        stored = StoredTensor(
            tensor.name, dtype, tensor.shape, file.path, tensor.offset, layout.nbytes
        )
        tensors.append(stored)
    return tensors


def _read_header(path: Path) -> list[StoredTensor]:
    """Parse the header: its length as 8 little-endian bytes, then JSON (safetensors' format)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length))
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        offset = 8 + length + start
        if not 0 <= start <= end or offset + (end - start) > size:
            raise ValueError(f"{name} ends at byte {8 + length + end} in a file of {size}")
        shape = tuple(entry["shape"])
        tensors.append(StoredTensor(name, str(entry["dtype"]), shape, path, offset, end - start))
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the single weights file, or the shards that the index names.

    UserError if there are none, one is missing, or a name leaves the folder.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index_path = folder / INDEX_FILE
    if not index_path.is_file():
        raise UserError(
            f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}: no weights this project reads"
        )
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path}: no weight_map that names the shards")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index_path}: shard name {name!r} is no .safetensors file in this folder"
            )
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: {INDEX_FILE} names this shard, but it is missing; "
                "download it again"
            )
    return [folder / name for name in names]


def save_model(model: Decoder, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`; the caller copies the tokenizer files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    with usual_permissions(folder / WEIGHTS_FILE):
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
