"""Embeddings of texts from a decoder, to find the shots that are most like a question.

`pooling="last"` takes the state at a text's last token, which has seen all of it: what
Qwen3-Embedding is trained to be compared by (Zhang et al. 2025, https://arxiv.org/abs/2506.05176).

`pooling="first"` takes position 0 of batches of eight that are padded as the checkpoint's tokenizer
pads. There a causal model has seen one token: texts that begin with the same token are equally
near, whatever follows. Where the tokenizer pads on the left, position 0 of all but the longest
texts of a batch is padding. That is what the original work compared; it is here to be reproduced.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from llama.atomic_files import usual_permissions
from llama.batching import batches_by_length, pad
from llama.checkpoint_files import locate, read_json
from llama.decoding import check_prompts
from llama.errors import UserError
from llama.finite import non_finite_error
from llama.hub import cache_folder, resolve
from llama.model import Decoder
from llama.onednn import prepacked
from llama.tokenizer import load_tokenizer
from llama.weights import load_model, weight_files

POOLINGS = ("last", "first")
FIRST_BATCH = 8  # texts that "first" pads together
TASK = "Given a math word problem, retrieve problems that are solved in the same way"
PASS_TOKENS = 4096  # in one forward pass, padding included
SECONDS_BETWEEN_SAVES = 60


def instruct(query: str) -> str:
    """A query as the model card of Qwen3-Embedding has it; what is searched goes in as it is."""
    return f"Instruct: {TASK}\nQuery:{query}"


@torch.inference_mode()
def embed_tokens(model: Decoder, rows: Sequence[Sequence[int]], pooling: str = "last") -> Tensor:
    """Unit vectors [N, E] float32 on the CPU for token ids, one forward pass over all of them."""
    if pooling not in POOLINGS:
        raise UserError(f"unknown pooling {pooling!r}: expected one of {', '.join(POOLINGS)}")
    if pooling == "first":  # position 0 sees no other token, so the others need not be computed
        rows = [row[:1] for row in rows]
    hidden = model(pad(rows, model.device))
    places = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
    pooled = hidden[torch.arange(len(rows), device=hidden.device), places]
    return F.normalize(pooled.float(), dim=-1).cpu()


class Embedder:
    """The decoder at `ref` as an embedder whose results are kept, by content, in the cache folder.

    A file there belongs to one model, dtype and pooling and holds vectors by the hash of their
    tokens. The model is loaded when a text comes up that is not in it.
    """

    def __init__(
        self,
        ref: str | Path,
        pooling: str = "last",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.ref, self.pooling, self.dtype, self.device = ref, pooling, dtype, device
        self.tokenizer = load_tokenizer(ref)
        self.key = f"{model_sha256(resolve(ref))}-{pooling}-{str(dtype).removeprefix('torch.')}"
        self.path = cache_folder() / "embeddings" / f"{self.key}.safetensors"

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, E] float32 of `texts`.

        UserError for a text beyond the context, a vector that is not finite, or a cache that is
        broken or of another model.
        """
        rows = [self.tokenizer.encode_framed(text) for text in texts]
        if self.pooling == "first":
            rows = first_positions(rows, left_padding_id(resolve(self.ref)))
        names = [hashlib.sha256(str(row).encode()).hexdigest() for row in rows]
        known = self._read()
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in known}
        if missing:
            self._compute(missing, known)
        return torch.stack([known[name] for name in names])

    def _compute(self, missing: dict[str, list[int]], known: dict[str, Tensor]) -> None:
        """Add the vectors of `missing` to `known` and to the file, now and then on the way."""
        names, rows = list(missing), list(missing.values())
        model = load_model(self.ref, dtype=self.dtype, device=self.device, head=False)
        check_prompts(model.config, rows, [f"text {name[:8]} to embed" for name in names])
        saved = time.monotonic()
        progress = tqdm(total=len(rows), desc="embedding", unit="text", leave=False, disable=None)
        with prepacked(model), progress as bar:
            for batch in batches_by_length(list(map(len, rows)), PASS_TOKENS):
                vectors = embed_tokens(model, [rows[i] for i in batch], self.pooling)
                for index, finite in zip(batch, vectors.isfinite().all(-1).tolist(), strict=True):
                    if not finite:  # before anything of the batch is kept
                        name = f"{self.ref}: text {names[index][:8]}"
                        raise non_finite_error(model, rows[index], name, "the embedding", "is")
                known.update(zip((names[i] for i in batch), vectors, strict=True))
                bar.update(len(batch))
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._write(known)
                    saved = time.monotonic()
        self._write(known)

    def _read(self) -> dict[str, Tensor]:
        if not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                key = (file.metadata() or {}).get("key")
                if key != self.key:
                    raise UserError(
                        f"{self.path}: holds embeddings of {key}, not of {self.key}: of another "
                        "model or pooling; delete the file"
                    )
                names, vectors = file.get_tensor("sha256"), file.get_tensor("embeddings")
        except SafetensorError as error:
            raise UserError(
                f"{self.path}: not a readable embedding cache ({error}); delete the file"
            ) from None
        if len(names) != len(vectors) or not vectors.isfinite().all():
            raise UserError(f"{self.path}: a damaged embedding cache; delete the file")
        return {
            bytes(name.tolist()).hex(): vector for name, vector in zip(names, vectors, strict=True)
        }

    def _write(self, known: dict[str, Tensor]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = torch.tensor([list(bytes.fromhex(name)) for name in known], dtype=torch.uint8)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        tensors = {"sha256": names, "embeddings": torch.stack(list(known.values()))}
        with usual_permissions(partial):
            save_file(tensors, partial, metadata={"key": self.key})
        os.replace(partial, self.path)


def first_positions(
    rows: Sequence[Sequence[int]], left_padding: int | None = None
) -> list[list[int]]:
    """The token at position 0 of each of `rows` in batches of FIRST_BATCH, as one token each.

    That is the row's first token, or the id `left_padding`, if given, in rows that are shorter than
    the longest of their batch.
    """
    tokens = []
    for start in range(0, len(rows), FIRST_BATCH):
        batch = rows[start : start + FIRST_BATCH]
        longest = max(map(len, batch))
        for row in batch:
            if left_padding is not None and len(row) < longest:
                tokens.append([left_padding])
            else:
                tokens.append(list(row[:1]))
    return tokens


def left_padding_id(source: Path) -> int | None:
    """The id that the checkpoint's tokenizer pads with on the left; None if it pads on the right.

    As transformers reads it: `padding_side` of tokenizer_config.json, else `padding` of
    tokenizer.json, else right. UserError if there is no padding token for the left.
    """
    config = read_json(source, "tokenizer_config.json") or {}
    stored = read_json(source, "tokenizer.json", required=True) or {}
    padding = stored.get("padding") or {}
    side = config.get("padding_side") or str(padding.get("direction", "right"))
    if side.lower() != "left":
        return None
    name = config.get("pad_token")
    name = name.get("content") if isinstance(name, dict) else name
    for token in stored.get("added_tokens") or []:
        if token.get("content") == name:
            return token["id"]
    if "pad_id" not in padding:
        raise UserError(
            f"{locate(source, 'tokenizer_config.json')}: the tokenizer pads on the left, but its "
            f"pad_token {name!r} is no token of its own"
        )
    return padding["pad_id"]


def model_sha256(source: Path) -> str:
    """The first 16 hexadecimal digits of the hash of a checkpoint's configuration and weights."""
    digest = hashlib.sha256()
    paths = [source] if source.is_file() else [source / "config.json", *weight_files(source)]
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
