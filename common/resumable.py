"""A job whose finished records survive an interruption: generate.py's answers, judge.py's verdicts.

Alone, a process appends to RUN/STEM.jsonl. Of several processes each appends to a part of its own,
RUN/STEM.rankN.jsonl, and keeps its costs in RUN/STEM.rankN.json. When all are done, rank 0 joins
the parts into the one file, in the order of the job. Parts that a killed run left behind are joined
when the next call starts, however many processes that one has.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import runs
from common.distributed import barrier_or_exit
from common.options import Settings
from common.ranks import rank, world_size
from common.run_folder import set_aside
from data.records import (
    Record,
    append_record,
    open_records,
    read_json,
    read_jsonl,
    repair_jsonl,
    rewrite_records,
    write_json,
)

JOINED = "joined_parts"  # in the summary: whose costs it holds, as long as these are there
SAVE_INTERVAL = 30.0  # seconds between two summaries: a kill loses no more of the costs than that
SAVE_SHARE = 0.05  # of the time that summaries may take: those of many records come more seldom


class ResumableJob(ABC):
    """Records to make, one for each of `planned`, in RUN/STEM.jsonl with RUN/STEM.summary.json.

    `finished` holds, by id, the facts of the records that an earlier call or this one made, `to_do`
    what of `planned` has none. `settings` are recorded in the summary; `declared`, the dataclass of
    the script's options, says which of them may differ from an earlier call's. A subclass sets what
    its `read` needs before it calls `super().__init__`, which writes nothing. UserError if an
    earlier call left records that this one must not add to.
    """

    counted = ""  # on the progress bar, in front of the share of records that `counts` counts

    def __init__(
        self,
        run: Path,
        stem: str,
        planned: Sequence[Record],
        settings: Record,
        resume: bool,
        device: torch.device,
        declared: type[Settings] | None = None,
    ) -> None:
        self.stem, self.planned, self.settings = stem, planned, settings
        self.path, self.summary_path = run / f"{stem}.jsonl", run / f"{stem}.summary.json"
        self.resume, self.device = resume, device
        parts = self._parts()
        records_path = parts[0] if parts and not self.path.exists() else self.path
        earlier: Record = {}
        if records_path.exists():  # else nothing can be mixed, whatever a summary alone says
            earlier = runs.load_previous_summary(
                records_path, self.summary_path, settings, resume, declared
            )
        self.costs = runs.RunCosts(earlier, device, self.summary_path)
        self._part_name = uuid.uuid4().hex  # of this process's part, should it write one
        self.finished: dict[str, Record] = {}
        self._shared: dict[tuple[object, ...], Record] = {}
        if earlier:
            self.costs.add_parallel(self._costs_of_parts(earlier))
            for path in self.files():
                self._keep_all(self.read(path))
        self.to_do = [record for record in planned if record["id"] not in self.finished]

    @abstractmethod
    def read(self, path: Path) -> Iterable[Record]:
        """The finished records in a file. UserError for one that does not belong here.

        There may be no such file, and its last line may be half written. Writes nothing.
        """

    @abstractmethod
    def facts(self, record: Record) -> Record:
        """The values of a finished record that are needed until the job is done.

        They are hashable and under the same names for all records, which are on the disk alone.
        """

    @abstractmethod
    def result(self, done: list[Record]) -> Record:
        """The fields of the summary that depend on the facts of the finished records."""

    def counts(self, facts: Mapping[str, Any]) -> bool | None:
        """True if a record counts on the progress bar; None if it says nothing about that."""
        return None

    def _keep(self, record: Record) -> Record:
        """Keep the facts of a record, as one object of all that are equal, and return them."""
        facts = self.facts(record)
        shared = self._shared.setdefault(tuple(facts.values()), facts)
        self.finished[record["id"]] = shared
        return shared

    def _keep_all(self, records: Iterable[Record]) -> None:
        for record in records:
            self._keep(record)

    def files(self) -> list[Path]:
        """The file of records, and those of processes that are not joined yet."""
        return [self.path, *self._parts()]

    @contextmanager
    def recording(self, count: int) -> Iterator[Callable[[Record], None]]:
        """Yield the function that adds a finished record; this process is to add `count` of them.

        The costs of the job are those of the block. After an interruption records and summary are
        true.
        """
        self._begin()
        done = self.done() if world_size() == 1 else []
        share = _Share(self.counted)
        for record in done:
            share.add(self.counts(record))
        file = open_records(self.path if world_size() == 1 else self._own_part(), resume=True)
        saved, interval = time.monotonic(), SAVE_INTERVAL
        with file, self._progress_bar(len(done), count) as bar:

            def add(record: Record) -> None:
                nonlocal saved, interval
                append_record(file, record)
                share.add(self.counts(self._keep(record)))
                bar.set_postfix_str(share.text(), refresh=False)
                bar.update()
                begun = time.monotonic()
                if begun - saved > interval:
                    self._save()
                    saved = time.monotonic()
                    interval = max(SAVE_INTERVAL, (saved - begun) / SAVE_SHARE)

            try:
                with self.costs.timed():
                    yield add
            finally:
                self._save()
        self._end()

    def done(self) -> list[Record]:
        """The facts of the finished records of those that are planned, in the plan's order."""
        ids = [record["id"] for record in self.planned]
        return [self.finished[name] for name in ids if name in self.finished]

    def write_summary(self, finished: bool) -> Record:
        """Replace the summary by what is true now, and return it."""
        if finished:
            self._join_parts()  # of a call that was killed before it did
        done = self.done()
        summary = {
            "task": self.stem,
            "finished": finished,
            "planned": len(self.planned),
            **self.result(done),
            "settings": self.settings,
            "prompt_tokens": sum(record["prompt_tokens"] for record in done),
            "new_tokens": sum(record["new_tokens"] for record in done),
            **self.costs.summary(),
        }
        write_json(self.summary_path, summary)
        return summary

    def _progress_bar(self, initial: int, count: int) -> "tqdm[Any]":
        alone = world_size() == 1
        title = self.stem if alone else f"{self.stem}, rank 0 of {world_size()}"
        hidden = True if rank() else None  # None: where there is no terminal
        return tqdm(total=initial + count, initial=initial, desc=title, disable=hidden)

    def _begin(self) -> None:
        # Replace the previous call's files only after every rank has passed its checks.
        barrier_or_exit()
        if rank() == 0:
            if self.resume:
                self._join_parts()
            else:
                self._set_aside()
            self.write_summary(finished=False)
        barrier_or_exit()
        if world_size() > 1:  # of this process alone: those of earlier calls are in the summary
            self.costs = runs.RunCosts({}, self.device, self.summary_path)

    def _end(self) -> None:
        barrier_or_exit()
        if world_size() > 1 and rank() == 0:
            earlier = read_json(self.summary_path)
            self.costs = runs.RunCosts(earlier, self.device, self.summary_path)
            self.costs.add_parallel(self._costs_of_parts(earlier))
            self._join_parts()
            self._keep_all(self.read(self.path))

    def _save(self) -> None:
        if world_size() == 1:
            self.write_summary(finished=False)
        else:
            costs = {"part": self._part_name, **self.costs.summary()}
            write_json(_costs_path(self._own_part()), costs)

    def _own_part(self) -> Path:
        return self.path.with_name(f"{self.stem}.rank{rank()}.jsonl")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.stem}.rank*.jsonl"))

    def _costs_of_parts(self, summary: Record) -> dict[Path, Record]:
        """The costs of the parts that `summary` does not hold already."""
        joined = summary.get(JOINED)
        costs = {}
        for path in map(_costs_path, self._parts()):
            values = read_json(path) if path.exists() else {}
            if values and not (isinstance(joined, list) and values.get("part") in joined):
                costs[path] = values
        return costs

    def _join_parts(self) -> None:
        """Move the records of the parts into the one file; `costs` holds theirs already."""
        parts = self._parts()
        if not parts:
            return
        # By id: parts that were joined but not yet removed when a call was killed change nothing.
        records: dict[str, Record] = {}
        for path in (self.path, *parts):
            repair_jsonl(path)
            if path.exists():
                records |= {record["id"]: record for record in read_jsonl(path)}
        places = {record["id"]: place for place, record in enumerate(self.planned)}
        in_order = sorted(records.values(), key=lambda r: places.get(r["id"], len(places)))
        rewrite_records(self.path, in_order)
        # Until the parts are gone, so that a call that is killed here counts their costs once.
        joined = [read_json(path).get("part") for path in map(_costs_path, parts) if path.exists()]
        summary = read_json(self.summary_path) | self.costs.summary()
        write_json(self.summary_path, {**summary, JOINED: joined})
        for path in parts:  # costs without records count for nothing, records twice do no harm
            _costs_path(path).unlink(missing_ok=True)
            path.unlink()

    def _set_aside(self) -> None:
        """Keep what an earlier call left under another name, and say so."""
        self._join_parts()
        count = len(read_jsonl(self.path)) if self.path.exists() else 0
        if count:  # the records first: a summary alone stands in nobody's way
            kept = [path.name for path in set_aside(self.path, self.summary_path)]
            print(f"{self.path}: {count} records kept as {' and '.join(kept)}", flush=True)


class _Share:
    """A share that is kept up record by record, so that a progress bar costs the same for any n."""

    def __init__(self, title: str) -> None:
        self.title, self.count, self.total = title, 0, 0

    def add(self, counts: bool | None) -> None:
        if counts is not None:
            self.count += counts
            self.total += 1

    def text(self) -> str:
        return f"{self.title} {self.count / self.total:.1%}" if self.total else ""


def _costs_path(part: Path) -> Path:
    return part.with_suffix(".json")
