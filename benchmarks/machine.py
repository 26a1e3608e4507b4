"""The limits of this machine, measured: `python -m benchmarks.machine THREADS` prints them as one
line of JSON.
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
    """Float32 GFLOP/s of a large product and GB/s of reading.

    The product is the better of torch's and, where there is one, oneDNN's with packed weights.
    """
    with torch.inference_mode():
        square = torch.randn(2048, 2048)
        rates = [2 * 2048**3 / best_seconds(lambda: square @ square)]
        if hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available():
            rates.append(packed_product_rate())
        large = torch.ones(READ_BYTES // 4)
        return {
            "gflops": max(rates) / 1e9,
            "gb_per_second": READ_BYTES / best_seconds(large.sum) / 1e9,
        }


def packed_product_rate() -> float:
    """Floating-point operations a second of oneDNN's product with packed weights."""
    inputs, weight = torch.randn(1, 512, 576), torch.randn(1536, 576)
    mkldnn = torch.ops.mkldnn
    packed = mkldnn._reorder_linear_weight(weight, 512)
    seconds = best_seconds(lambda: mkldnn._linear_pointwise(inputs, packed, None, "none", [], ""))
    return 2 * 512 * 576 * 1536 / seconds


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(measure_limits()))
