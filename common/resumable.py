"""One task of a run: its records in the run folder, finished earlier or still to come, and its
summary.

Alone, a process appends to RUN/NAME.jsonl. Of several that work side by side, each appends to a
part of its own, RUN/NAME.rankN.jsonl, with its costs in RUN/NAME.rankN.json. Rank 0 joins the parts
into the one file, in the task's order, as soon as all are done; parts that a killed run has left
are joined when the next call starts, however many processes that one has.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import runs
from common.distributed import barrier_or_exit
from common.ranks import rank, world_size
from data.records import (
    append_record,
    open_records,
    read_json,
    read_jsonl,
    repair_jsonl,
    rewrite_records,
    write_json,
)

Record = dict[str, Any]


class Task:
    """What an earlier call finished, what is to do, records and summary. Subclasses say what
    records are and mean.

    `planned` are the things to make a record of, each with its `id`. UserError if an earlier call
    left records that this one must not add to.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        summary_path: Path,
        planned: Sequence[Record],
        settings: Record,
        resume: bool,
        device: torch.device,
    ) -> None:
        self.name, self.path, self.summary_path = name, path, summary_path
        self.planned, self.settings, self.resume, self.device = planned, settings, resume, device
        parts = self._parts()
        found = parts[0] if parts and not path.exists() else path
        earlier = runs.load_previous_summary(found, summary_path, settings, resume)
        self.costs = runs.RunCosts(earlier, device)
        if earlier and rank() == 0:
            self._join(parts)
        self.finished: dict[str, Record] = self.read() if earlier else {}
        self.to_do = [thing for thing in planned if thing["id"] not in self.finished]

    def read(self) -> dict[str, Record]:
        """Finished records by id, from `path`. UserError for one that does not belong here."""
        raise NotImplementedError

    def result(self, done: list[Record]) -> Record:
        """What the summary says of the finished records."""
        raise NotImplementedError

    def new_tokens(self, record: Record) -> int:
        """How many tokens were generated for a record."""
        raise NotImplementedError

    def progress(self) -> str:
        """What the progress bar says."""
        return ""

    @contextmanager
    def recording(self, count: int) -> Iterator[Callable[[Record], None]]:
        """Yield the function that adds a finished record, of which `count` are to come from this
        process.

        What happens within the block is what the task costs. If it is interrupted, what is on disk
        is true.
        """
        self._begin()
        alone, written = world_size() == 1, time.monotonic()
        title = self.name if alone else f"{self.name}, rank 0 of {world_size()}"
        initial = len(self.done()) if alone else 0
        file = open_records(self.path if alone else self._own_part(), resume=True)
        silent = True if rank() else None  # None: where there is no terminal
        with file, tqdm(total=initial + count, initial=initial, desc=title, disable=silent) as bar:

            def add(record: Record) -> None:
                nonlocal written
                append_record(file, record)
                self.finished[record["id"]] = record
                bar.set_postfix_str(self.progress(), refresh=False)
                bar.update()
                if (
                    time.monotonic() - written > 30
                ):  # so that a kill loses no more of the costs than that
                    self._save()
                    written = time.monotonic()

            try:
                with self.costs.measured():
                    yield add
            finally:
                self._save()
        self._end()

    def done(self) -> list[Record]:
        return [
            self.finished[thing["id"]] for thing in self.planned if thing["id"] in self.finished
        ]

    def write_summary(self, finished: bool) -> Record:
        done = self.done()
        summary = {
            "task": self.name,
            "finished": finished,
            "planned": len(self.planned),
            **self.result(done),
            "settings": self.settings,
            "prompt_tokens": sum(record["prompt_tokens"] for record in done),
            "new_tokens": sum(map(self.new_tokens, done)),
            **self.costs.summary(),
        }
        write_json(self.summary_path, summary)
        return summary

    def _begin(self) -> None:
        # only with everything in order, in every process, what an earlier call left is replaced
        barrier_or_exit()
        if rank() == 0:
            if not self.resume:
                for path in (self.path, *self._parts()):
                    path.unlink(missing_ok=True)
                    _costs_of(path).unlink(missing_ok=True)
            self.write_summary(finished=False)
        barrier_or_exit()
        if world_size() > 1:
            self.costs = runs.RunCosts(
                {}, self.device
            )  # of this process; earlier ones are in the summary

    def _end(self) -> None:
        barrier_or_exit()
        if world_size() > 1 and rank() == 0:
            self.costs = runs.RunCosts(read_json(self.summary_path), self.device)
            self._join(self._parts())
            self.finished = self.read()

    def _save(self) -> None:
        if world_size() == 1:
            self.write_summary(finished=False)
        else:
            write_json(_costs_of(self._own_part()), self.costs.summary())

    def _own_part(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.rank{rank()}.jsonl")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.rank*.jsonl"))

    def _join(self, parts: Sequence[Path]) -> None:
        """Move the records of the parts into the one file, and their costs into the summary."""
        if not parts:
            return
        # by id: parts that were joined and not yet removed when a call was killed change nothing
        records = {}
        for path in (self.path, *parts):
            repair_jsonl(path)
            records |= (
                {record["id"]: record for record in read_jsonl(path)} if path.exists() else {}
            )
        places = {thing["id"]: place for place, thing in enumerate(self.planned)}
        rewrite_records(
            self.path, sorted(records.values(), key=lambda r: places.get(r["id"], len(places)))
        )
        costs = [_costs_of(part) for part in parts]
        self.costs.add_side_by_side([read_json(path) for path in costs if path.exists()])
        write_json(self.summary_path, read_json(self.summary_path) | self.costs.summary())
        for path in (*parts, *costs):
            path.unlink(missing_ok=True)


def _costs_of(part: Path) -> Path:
    return part.with_suffix(".json")
