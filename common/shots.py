"""The choice of shots as the command line asks for it; `similar` ones by embeddings."""

import argparse
from collections.abc import Sequence
from typing import Any

from common import cli
from common.ranks import rank
from data.few_shot import FewShotSampler, find_near_duplicates
from data.records import write_json
from llama.embedding import Embedder, instruct

SHOWN = 3  # near-duplicates named on the terminal


def make_selector(
    arguments: argparse.Namespace, pool: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]
) -> FewShotSampler:
    """What chooses the shots of `records` from `pool`. UserError for an embedder that cannot be
    loaded.
    """
    if arguments.shot_selection != "similar" or not arguments.shots or not records:
        return FewShotSampler(pool, arguments.shots, arguments.shot_selection, arguments.seed)
    device = cli.resolve_device(arguments.device)
    embedder = Embedder(
        arguments.embedder, arguments.pooling, cli.resolve_dtype(arguments.dtype, device), device
    )
    documents = embedder.embed([record["question"] for record in pool])
    queries = embedder.embed([instruct(record["question"]) for record in records])
    rows = {record["id"]: query for record, query in zip(records, queries, strict=True)}

    def nearest(record: dict[str, Any], wanted: int) -> list[int]:
        return (documents @ rows[record["id"]]).topk(wanted).indices.tolist()

    return FewShotSampler(pool, arguments.shots, "similar", nearest=nearest)


def report_near_duplicates(
    arguments: argparse.Namespace,
    selector: FewShotSampler,
    records: Sequence[dict[str, Any]],
    name: str,
) -> None:
    """RUN/NAME.duplicates.json, and a line on the terminal: which of `records` have shots that are
    too similar.
    """
    if arguments.shot_selection != "similar" or not arguments.shots or rank() > 0:
        return
    found = find_near_duplicates(selector, records)
    write_json(
        arguments.run / f"{name}.duplicates.json",
        {"questions": len(records), "near_duplicates": found},
    )
    shown = ", ".join(
        f"{pair['id']} ~ {pair['shot']} ({pair['overlap']:.0%})" for pair in found[:SHOWN]
    )
    print(
        f"similar shots: {len({pair['id'] for pair in found})} of {len(records)} questions have a near-duplicate among "
        f"theirs{': ' * bool(found)}{shown}",
        flush=True,
    )


def shot_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that shots depend on, for a summary."""
    settings = {"shots": arguments.shots, "shot_selection": arguments.shot_selection}
    if arguments.shot_selection == "similar":
        settings |= {"embedder": str(arguments.embedder), "pooling": arguments.pooling}
    return settings
