"""The choice of shots as the command line asks for it; `similar` ones by embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.ranks import rank
from common.settings import PromptSettings
from data.few_shot import FewShotSampler, find_near_duplicates
from data.records import Record, write_json
from llama.embedding import Embedder, instruct

SHOWN = 3  # near-duplicates named on the terminal


def make_selector(
    settings: PromptSettings,
    pool: Sequence[Record],
    records: Sequence[Record],
    device: torch.device,
    dtype: torch.dtype,
) -> FewShotSampler:
    """Return what chooses the shots of `records` from `pool`, of equally near ones the first.

    `device` and `dtype` are those of the embedder of similar shots. UserError if it cannot be
    loaded.
    """
    if settings.shot_selection != "similar" or not settings.shots or not records:
        return FewShotSampler(pool, settings.shots, settings.shot_selection, settings.seed)
    embedder = Embedder(settings.embedder, settings.pooling, dtype, device)
    documents = embedder.embed([record["question"] for record in pool])
    questions = [record["question"] for record in records]
    if settings.pooling == "last":  # "first" compares bare questions, as the original did
        questions = [instruct(question) for question in questions]
    queries = embedder.embed(questions)
    rows = {record["id"]: query for record, query in zip(records, queries, strict=True)}
    # Equal vectors must give equal cosines: then the order of the pool decides.
    distinct, places = documents.unique(dim=0, return_inverse=True)

    def nearest(record: Record, count: int) -> list[int]:
        cosines = (distinct @ rows[record["id"]])[places]
        return cosines.sort(descending=True, stable=True).indices[:count].tolist()

    return FewShotSampler(pool, settings.shots, "similar", nearest=nearest)


def report_near_duplicates(
    settings: PromptSettings, selector: FewShotSampler, records: Sequence[Record], path: Path
) -> None:
    """Say, in `path` and on the terminal, which of `records` have shots that are too similar."""
    if settings.shot_selection != "similar" or not settings.shots or rank() > 0:
        return
    pairs = find_near_duplicates(selector, records)
    write_json(path, {"questions": len(records), "near_duplicates": pairs})
    affected = len({pair["id"] for pair in pairs})
    line = (
        f"similar shots: {affected} of {len(records)} questions have a near-duplicate among theirs"
    )
    for place, pair in enumerate(pairs[:SHOWN]):
        line += f"{', ' if place else ': '}{pair['id']} ~ {pair['shot']} ({pair['overlap']:.0%})"
    print(line, flush=True)
