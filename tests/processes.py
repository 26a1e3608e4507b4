"""Scripts under torchrun, as tests start them."""

import os
import subprocess
import sys
from pathlib import Path

import generate

ROOT = Path(generate.__file__).parent


def torchrun(script: Path | str, *options: str, processes: int = 2) -> subprocess.CompletedProcess:
    """Run one of our scripts in `processes` processes that meet over gloo, each with one thread."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    # Without "--", torchrun takes our --run for an abbreviation of its own --run-path.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "--", str(ROOT / script), *map(str, options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
