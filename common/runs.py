"""An earlier call's summary in a run folder, and the costs of the work."""

import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import torch

from common.errors import UserError
from common.options import Settings, may_change, options, recorded_defaults
from common.ranks import world_size
from common.run_folder import free_run, other_run, prepare_run
from common.version import code_version
from data.checked import checked
from data.records import read_json
from llama.decoding import DecodingStats

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows has none
    resource = None

__all__ = [
    "RunCosts",
    "environment",
    "load_previous_summary",
    "peak_memory_bytes",
    "prepare_run",
    "refuse_overwriting",
]

# Settings that may change between calls that add to the same answers.
RESUMABLE_SETTINGS = ("limit", "batch_size", "device", "memory")


def load_previous_summary(
    records: Path,
    summary: Path,
    settings: dict[str, Any],
    resume: bool,
    declared: type[Settings] | None = None,
) -> dict[str, Any]:
    """Read the summary an earlier call left; empty if there is none, or to start again.

    `settings` are those that are recorded now, `declared` is the dataclass of the script's options:
    which of them may change, and what a summary was made with that is older than an option. Raises
    one UserError that lists every other setting that differs, the model first, and one if
    `records` have no summary beside them: then they are not ours, and nothing may be overwritten.
    """
    if not summary.exists():
        if records.exists():
            raise UserError(
                f"{records} is there without {summary.name}: no run of this script; "
                f"choose another, --run {free_run(records.parent)}"
            )
        return {}
    if not resume:
        return {}
    earlier = read_json(summary)
    before = earlier.get("settings")
    if not isinstance(before, dict):
        raise UserError(f"{summary}: no settings in it; {other_run(summary.parent)}")
    if changes := _changed_settings(before, settings, declared):
        raise UserError(
            f"{summary} was made with {'; '.join(changes)}: {other_run(summary.parent)}"
        )
    return earlier


def _changed_settings(
    before: dict[str, Any], now: dict[str, Any], declared: type[Settings] | None
) -> list[str]:
    """Say of each setting that differs and must not what it was and is, the model first."""
    names = sorted({*before, *now}, key=lambda name: (not name.startswith("model"), name))
    defaults = recorded_defaults(declared) if declared else {}
    changeable = may_change(declared) if declared else RESUMABLE_SETTINGS
    known_options = options(declared) if declared else {}
    changes = []
    for name in names:
        old, new = before.get(name, defaults.get(name)), now.get(name)
        if name not in changeable and old != new:
            about = known_options.get(name)
            label = f"--{name.replace('_', '-')}" if about and about.shown else name
            changes.append(f"{label} = {old!r}, now it is {new!r}")
    return changes


def refuse_overwriting(source: str | Path, *outputs: Path) -> None:
    """UserError if the data to read is a file that the script is about to write."""
    for output in outputs:
        if Path(source).resolve() == output.resolve():
            raise UserError(
                f"--data {source} is where this run writes its records; choose another, "
                f"--run {free_run(output.parent)}"
            )


class Costs(TypedDict, total=False):
    """The part of a summary that `RunCosts.summary` writes and a later call reads."""

    seconds: float
    decoding: dict[str, int]
    peak_memory_bytes: int
    environment: dict[str, Any]


class RunCosts:
    """Seconds, tokens and peak memory of a job, over all the calls that worked on it.

    `earlier` is the summary in the file `path`, empty if there is none. UserError, naming file and
    field, if it is damaged.
    """

    def __init__(self, earlier: dict[str, Any], device: torch.device, path: Path) -> None:
        costs = checked(earlier, Costs, str(path))
        tokens = costs.get("decoding", {})
        known = {name: count for name, count in tokens.items() if name in vars(DecodingStats())}
        self.device, self.path = device, path
        self.stats = DecodingStats(**known)
        self._begin: float | None = None
        self._seconds = costs.get("seconds", 0.0)
        self._peak = costs.get("peak_memory_bytes", 0)
        self._environment = costs.get("environment", {})

    def add_parallel(self, parts: Mapping[Path, dict[str, Any]]) -> None:
        """Merge the costs of parallel ranks, by their files: tokens are summed, seconds are the
        maximum.
        """
        costs = [RunCosts(part, self.device, path) for path, part in parts.items()]
        self._seconds += max((part._seconds for part in costs), default=0.0)
        self._peak = max([self._peak, *(part._peak for part in costs)])
        for part in costs:
            self._environment = part._environment or self._environment
            for name, count in vars(part.stats).items():
                setattr(self.stats, name, getattr(self.stats, name) + count)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds and the peak memory of the block."""
        if self.device.type == "cuda" and torch.cuda.is_initialized():  # else nothing is held
            torch.cuda.reset_peak_memory_stats(self.device)
        self._environment = both_environments(self._environment, environment(self.device))
        self._begin = time.perf_counter()
        try:
            yield
        finally:
            self._peak = self.peak
            self._seconds, self._begin = self.seconds, None

    @property
    def seconds(self) -> float:
        if self._begin is None:
            return self._seconds
        return self._seconds + time.perf_counter() - self._begin

    @property
    def peak(self) -> int:
        """In bytes."""
        if self._begin is None:
            return self._peak
        return max(self._peak, peak_memory_bytes(self.device))

    def summary(self) -> dict[str, Any]:
        seconds, stats = round(self.seconds, 3), self.stats
        speed = stats.new_tokens / seconds if seconds and stats.new_tokens else None
        return {
            "seconds": seconds,
            "prefill_tokens": stats.prefill_tokens,
            "new_tokens_per_second": speed,
            "decoding": dict(vars(stats)),
            "peak_memory_bytes": self.peak,
            "environment": self._environment,
        }


def peak_memory_bytes(device: torch.device) -> int:
    """The process's largest resident set so far; on a CUDA device the largest allocation."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if torch.cuda.is_initialized() else 0
    status = Path("/proc/self/status")
    # On Linux getrusage also counts what the process had that started this one.
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if resource is None:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS already counts bytes


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, this project's first, and hardware, for the summaries."""
    device_name = platform.processor() or platform.machine()
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    libraries = {name: version(name) for name in ("tokenizers", "safetensors", "numpy", "jinja2")}
    return {
        **code_version(),
        "device": str(device),
        "device_name": device_name,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **libraries,
        "platform": platform.platform(),
    }


def both_environments(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """`now`, with "2.9.0, then 2.13.0" where calls that worked on one file had something else.

    So it differs from the environment of a run that had one of them throughout.
    """
    merged = {}
    for name, value in now.items():
        before = earlier.get(name, value)
        is_known = before == value or str(before).endswith(f", then {value}")
        merged[name] = before if is_known else f"{before}, then {value}"
    return merged
