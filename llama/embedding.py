"""Embeddings of texts from a decoder, and the shots that are most like a question.

The state at a text's last token has seen all of it, so that is what Qwen3-Embedding is trained to
be compared by (Zhang et al. 2025, https://arxiv.org/abs/2506.05176). At position 0 a causal model
has seen one token: what `pooling="first"` finds alike begins alike and nothing more. It is here to
show what that mistake costs.
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

from llama.batching import batches_by_length, pad
from llama.decoding import check_prompts
from llama.errors import UserError
from llama.hub import cache_folder, resolve
from llama.model import Decoder
from llama.onednn import prepacked
from llama.tokenizer import load_tokenizer
from llama.weights import load_model, weight_files

POOLINGS = ("last", "first")
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
    if (
        pooling == "first"
    ):  # which sees no other token, so the others need not be computed: just what is wrong with it
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
        """Unit vectors [N, E] float32 of `texts`. UserError for a text beyond the context, or a
        cache that is broken or of another model.
        """
        rows = [self.tokenizer.encode_framed(text) for text in texts]
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
                        f"{self.path}: holds embeddings of {key}, not of {self.key}: of another model or pooling; "
                        "delete the file"
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
        save_file(tensors, partial, metadata={"key": self.key})
        os.replace(partial, self.path)


def model_sha256(folder: Path) -> str:
    """The first 16 hexadecimal digits of the hash of a checkpoint's configuration and weights."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
