"""What this machine can do at most, measured: `python -m benchmarks.machine THREADS` prints it as
one line of JSON.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

READ_BYTES = 2**29  # far beyond any cache


def best_seconds(function: Callable[[], Tensor], seconds: float = 0.5) -> float:
    """The fastest of as many calls as fit into `seconds`, after one unmeasured."""
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def measure_limits() -> dict[str, float]:
    """Float32 GFLOP/s of a large product, the better of torch's and oneDNN's prepacked one, and
    GB/s of reading.
    """
    with torch.inference_mode():
        square = torch.randn(2048, 2048)
        rates = [2 * 2048**3 / best_seconds(lambda: square @ square)]
        if hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available():
            x, weight = torch.randn(1, 512, 576), torch.randn(1536, 576)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, 512)
            seconds = best_seconds(
                lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            )
            rates.append(2 * 512 * 576 * 1536 / seconds)
        large = torch.ones(READ_BYTES // 4)
        return {
            "gflops": max(rates) / 1e9,
            "gb_per_second": READ_BYTES / best_seconds(large.sum) / 1e9,
        }


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(measure_limits()))
