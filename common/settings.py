"""The settings that train.py, generate.py and judge.py have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.defaults import DEFAULT_MODEL, DTYPES
from common.options import (
    Scope,
    non_negative_int,
    option,
    positive_float,
    positive_int,
    seed,
)
from data.few_shot import SELECTIONS
from data.prompts import DEFAULT_WORDING, Wording
from llama.embedding import POOLINGS
from llama.quantization import SCHEMES
from llama.tokenizer import DEFAULT_DATE


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The run, model and device. Scripts give `model`, `batch_size` and their help anew."""

    run: Path = option(
        Path("runs/default"),
        "run folder (%(default)s)",
        parse=Path,
        metavar="DIR",
        scope=Scope.CALL,
    )
    model: str = option(
        DEFAULT_MODEL,
        "checkpoint folder, FILE.gguf, Hugging Face id, or the small model smollm2 (%(default)s)",
    )
    dtype: str = option(
        "auto",
        "float32, bfloat16, float16, or auto: bfloat16 on CUDA (float16 before Ampere), else "
        "float32",
        choices=DTYPES,
        metavar="TYPE",
    )
    quantize: str | None = option(
        None,
        "int8: frozen linears with 8-bit weights, a quarter of float32's memory",
        choices=SCHEMES,
    )
    device: str = option(
        "auto", "cpu, cuda, cuda:1, mps, ...; auto: CUDA or MPS if there is one", scope=Scope.COST
    )
    limit: int | None = option(
        None, "use only N records (all)", parse=positive_int, metavar="N", scope=Scope.COST
    )
    batch_size: int | None = option(
        None,
        "sequences in progress at one time (32; 256 on a GPU, fewer if its memory holds fewer)",
        parse=positive_int,
        metavar="N",
        scope=Scope.COST,
    )
    resume: bool = option(
        True,
        "keep what an earlier, interrupted call finished; --no-resume starts again and keeps the "
        "old files as NAME.1",
        scope=Scope.CALL,
    )
    dry_run: bool = option(
        False, "say what would be done and write nothing", flag=True, scope=Scope.CALL
    )


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Settings of prompts and samples, of train.py and generate.py."""

    seed: int = option(0, "of all that is random (%(default)s)", parse=seed, metavar="N")
    date: str = option(
        DEFAULT_DATE,
        "the date a chat template prints, pinned so results stay (%(default)s)",
    )
    shots: int = option(
        0, "worked examples before each question (0)", parse=non_negative_int, metavar="N"
    )
    shot_selection: str = option(
        "fixed",
        "shots: the first N of the training file, drawn anew for each question, or nearest to it "
        "(%(default)s)",
        choices=SELECTIONS,
    )
    shots_data: str | None = option(
        None,
        "shots from this file, in GSM8K's format, instead of the official training set",
        metavar="FILE",
    )
    question_prefix: str = option(
        DEFAULT_WORDING.question_prefix, "before a question ('%(default)s')", metavar="TEXT"
    )
    answer_prefix: str = option(
        DEFAULT_WORDING.answer_prefix, "before a worked answer ('%(default)s')", metavar="TEXT"
    )
    instruction: str = option(
        DEFAULT_WORDING.instruction,
        "behind the question that is asked (what to think, and to end in '####')",
        metavar="TEXT",
    )
    embedder: str = option(
        "Qwen/Qwen3-Embedding-0.6B",
        "of similar shots (%(default)s)",
        metavar="MODEL",
        when=lambda settings: settings.shot_selection == "similar",
    )
    pooling: str = option(
        "last",
        "what stands for a question: the state at its last token, or, as the original had it, at "
        "the first of the bare question, which has seen no other token (%(default)s)",
        choices=POOLINGS,
        when=lambda settings: settings.shot_selection == "similar",
    )

    def wording(self) -> Wording:
        """The words around questions and answers."""
        return Wording(self.question_prefix, self.answer_prefix, self.instruction)


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """The key/value cache and CUDA graphs, of generate.py and judge.py."""

    memory: float | None = option(
        None,
        "bound on the key/value cache: with less of it fewer sequences are in progress, the tokens "
        "stay (none)",
        parse=positive_float,
        metavar="GIB",
        scope=Scope.COST,
    )
    cache_dtype: str = option(
        "auto",
        "auto is the model's; bfloat16 halves a float32 cache and changes some tokens "
        "(%(default)s)",
        choices=("auto", "bfloat16"),
        metavar="TYPE",
    )
    graphs: bool = option(
        True,
        "on CUDA, launch a decoding step as one graph; --no-graphs launches every kernel by itself",
        scope=Scope.COST,
    )

    def cache_arguments(self) -> dict[str, Any]:
        """The bound in bytes and the dtype, as `llama.generate` takes them."""
        limit = None if self.memory is None else int(self.memory * 2**30)
        dtype = None if self.cache_dtype == "auto" else getattr(torch, self.cache_dtype)
        return {"cache_bytes": limit, "cache_dtype": dtype}
