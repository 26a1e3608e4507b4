"""Identify a checkpoint by its content, so that another model under the same path is noticed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from llama.gguf import read_header
from llama.hub import TOKENIZER_FILES, resolve
from llama.weights import StoredTensor, stored_tensors

DIGITS = 12
SAMPLE_BYTES = 4096
SAMPLES = 3  # at the start, in the middle and at the end of a tensor


def model_fingerprint(ref: str | Path) -> str:
    """Return 12 hexadecimal digits that identify the checkpoint `ref` (local folder, GGUF file, Hub
    id or alias) by what is stored in it: weights, configuration, generation configuration,
    tokenizer and chat template.

    The small files, and the header of a GGUF file, count whole. Of every tensor its name, dtype
    and shape count, and three blocks of 4 KiB (all of it if it is no larger): some hundred reads
    whatever the size of the model. A change to a few values between the blocks goes unnoticed; a
    training step, a merged adapter or a conversion does not. Path, file names and sharding do not
    count.

    Raises UserError if the checkpoint cannot be resolved or has no readable weights.
    """
    source = resolve(ref)
    digest = hashlib.sha256()
    for name, content in _small_files(source):
        _add(digest, name, hashlib.sha256(content).hexdigest())
    for tensor in sorted(stored_tensors(source), key=lambda tensor: tensor.name):
        _add(digest, tensor.name, tensor.dtype, str(tensor.shape), _sample(tensor))
    return digest.hexdigest()[:DIGITS]


def _small_files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_file():
        with open(source, "rb") as file:
            yield "GGUF header", file.read(read_header(source).header_size)
        return
    for name in sorted(TOKENIZER_FILES):
        path = source / name
        if path.is_file():
            yield name, path.read_bytes()


def _add(digest: "hashlib._Hash", *fields: str) -> None:
    """Hash `fields` so that no two lists of them give the same bytes."""
    for field in fields:
        content = field.encode()
        digest.update(len(content).to_bytes(8, "little") + content)


def _sample(tensor: StoredTensor) -> str:
    """Return the hash of a few blocks of the tensor's bytes, spread over it."""
    digest = hashlib.sha256()
    with open(tensor.path, "rb") as file:
        if tensor.nbytes <= SAMPLES * SAMPLE_BYTES:
            file.seek(tensor.offset)
            digest.update(file.read(tensor.nbytes))
            return digest.hexdigest()
        for index in range(SAMPLES):
            start = (tensor.nbytes - SAMPLE_BYTES) * index // (SAMPLES - 1)
            file.seek(tensor.offset + start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
