"""Read GGUF, llama.cpp's file format: metadata, tensor descriptions and dequantised tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is parsed here, for
speed (a vocabulary of 150,000 tokens takes the reader of the package `gguf` many seconds) and to
check every length in it. Dequantisation is that package's, imported when a tensor is read.
"""

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from llama.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
SCALAR_FORMATS |= {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_ITEMS = 2**24  # of an array, and bytes of a string: far above any vocabulary or chat template
ROWS_AT_ONCE = 4096  # dequantised together: temporary arrays stay small beside the tensor


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in a GGUF file: its type by GGML's number, its shape as torch writes it, and where
    its data begin.
    """

    name: str
    ggml_type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file."""

    path: Path
    size: int
    header_size: int
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def hyperparameter(self, name: str, default: Any = None) -> Any:
        """Return the metadata field `name` below the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


def is_gguf(path: Path) -> bool:
    """Return True for a file that begins as GGUF files do or is named like one."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> GGUFFile:
    """Read metadata and tensor descriptions. UserError for a file that is damaged, cut short, of
    another version, or one part of several.
    """
    status = path.stat()
    return _read_header(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _read_header(path: Path, mtime_ns: int, size: int) -> GGUFFile:
    with open(path, "rb") as file:
        header = _HeaderReader(path, file, size).read()
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise UserError(
            f"{path}: one of {header.metadata['split.count']} parts; "
            "join them with `llama-gguf-split --merge`"
        )
    return header


class _HeaderReader:
    """Parses the header and checks every size against the file's before it reads."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def read(self) -> GGUFFile:
        if self.file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{self.path}: not a GGUF file")
        format_version = self.scalar("I")
        if format_version not in VERSIONS:
            raise UserError(
                f"{self.path}: GGUF version {format_version} is not supported, only 2 and 3 in "
                "little-endian byte order"
            )
        num_tensors, num_fields = self.scalar("Q"), self.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(self.count(num_fields)):
            key = self.string()
            if key in metadata:
                raise self.damaged(f"metadata field {key!r} is there twice")
            metadata[key] = self.value(self.scalar("I"))
        descriptions = [self.tensor() for _ in range(self.count(num_tensors))]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0:
            raise self.damaged(f"general.alignment = {alignment!r}")
        header_size = self.file.tell()
        data_start = (header_size + alignment - 1) // alignment * alignment
        tensors = {}
        for name, ggml_type, shape, offset in descriptions:
            if name in tensors:
                raise self.damaged(f"tensor {name} is there twice")
            tensors[name] = GGUFTensor(name, ggml_type, shape, data_start + offset)
        return GGUFFile(self.path, self.size, header_size, metadata, tensors)

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string()
        num_dimensions = self.scalar("I")
        if num_dimensions > 4:
            raise self.damaged(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(num_dimensions))
        return name, self.scalar("I"), shape[::-1], self.scalar("Q")

    def value(self, kind: int) -> Any:
        if kind in SCALAR_FORMATS:
            return self.scalar(SCALAR_FORMATS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise self.damaged(f"metadata of type {kind}")
        item_kind, count = self.scalar("I"), self.count(self.scalar("Q"))
        if item_kind in SCALAR_FORMATS:
            item_format = f"<{count}{SCALAR_FORMATS[item_kind]}"
            return list(struct.unpack(item_format, self.bytes(struct.calcsize(item_format))))
        if item_kind != STRING:
            raise self.damaged(f"metadata array of type {item_kind}")
        return [self.string() for _ in range(count)]

    def string(self) -> str:
        content = self.bytes(self.count(self.scalar("Q")))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{content[:40]!r} is no UTF-8 text") from None

    def scalar(self, item_format: str) -> Any:
        item_format = f"<{item_format}"
        return struct.unpack(item_format, self.bytes(struct.calcsize(item_format)))[0]

    def count(self, number: int) -> int:
        if number > min(MAX_ITEMS, self.size):
            raise self.damaged(f"a length of {number} in a header")
        return number

    def bytes(self, count: int) -> bytes:
        content = self.file.read(count)
        if len(content) != count:
            raise self.damaged("it ends within its header")
        return content

    def damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self.path}: a damaged GGUF file, or cut short ({reason}); download it again"
        )


def read_tensor(file: GGUFFile, name: str) -> np.ndarray:
    """Read one tensor: dequantised to float32, in its shape. Raises UserError as `tensor_layout`
    does, and for a type that the package cannot dequantise.
    """
    tensor = file.tensors[name]
    layout = tensor_layout(file, tensor)
    with open(file.path, "rb") as stream:
        stream.seek(tensor.offset)
        data = np.frombuffer(stream.read(layout.nbytes), dtype=np.uint8)
    if len(data) != layout.nbytes:
        raise _cut_short(file, tensor, layout.nbytes)
    rows = data.reshape(-1, layout.row_nbytes)
    weight = np.empty((len(rows), tensor.shape[-1]), dtype=np.float32)
    package = gguf_package()
    try:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            weight[start : start + ROWS_AT_ONCE] = package.dequantize(part, layout.quantisation)
    except NotImplementedError:
        raise UserError(
            f"{file.path}: tensor {name} is of type {layout.quantisation.name}, which gguf "
            f"{version('gguf')} cannot dequantise; use a file with another quantisation"
        ) from None
    return weight.reshape(tensor.shape)


@dataclass(frozen=True)
class TensorLayout:
    """The quantisation of a tensor (a `gguf.GGMLQuantizationType`) and its size in the file."""

    quantisation: Any
    nbytes: int
    row_nbytes: int


def tensor_layout(file: GGUFFile, tensor: GGUFTensor) -> TensorLayout:
    """Return how the tensor is stored. UserError if the package does not know its type, its rows
    are no whole blocks, or the file ends before it does.
    """
    package = gguf_package()
    try:
        quantisation = package.GGMLQuantizationType(tensor.ggml_type)
    except ValueError:
        raise UserError(
            f"{file.path}: tensor {tensor.name} is of type {tensor.ggml_type}, which gguf "
            f"{version('gguf')} does not know; upgrade gguf or use another quantisation"
        ) from None
    block_size, block_nbytes = package.GGML_QUANT_SIZES[quantisation]
    row_size = tensor.shape[-1] if tensor.shape else 0
    if row_size == 0 or row_size % block_size:
        raise UserError(
            f"{file.path}: tensor {tensor.name} has rows of {row_size}, no multiple of "
            f"{quantisation.name}'s blocks of {block_size}"
        )
    row_nbytes = row_size // block_size * block_nbytes
    nbytes = math.prod(tensor.shape[:-1]) * row_nbytes
    if tensor.offset + nbytes > file.size:
        raise _cut_short(file, tensor, nbytes)
    return TensorLayout(quantisation, nbytes, row_nbytes)


def _cut_short(file: GGUFFile, tensor: GGUFTensor, nbytes: int) -> UserError:
    return UserError(
        f"{file.path}: cut short: tensor {tensor.name} ends at byte {tensor.offset + nbytes} of "
        f"{file.size}; download it again"
    )


def gguf_package() -> ModuleType:
    """Import the package `gguf`. UserError names the extra that installs it."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "the weights of a GGUF file need the package gguf: pip install 'gguf>=0.18'"
        ) from None
    return gguf
