"""Training and decoding on a CUDA device that is pretended: no mixed devices, dtypes or shapes.

The cases run in a process of their own, which loads a device that does nothing before torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_cuda import device

ROOT = Path(__file__).parents[2]

# At most so many operators: of a layer, and of all 16 with what is around them.
BOUNDS = {
    "training bfloat16 prefix 0": (148, 2485),
    "training bfloat16 prefix 40": (148, 2485),
    "training bfloat16 prefix 430": (316, 5212),
    "training float32 prefix 0": (130, 2188),
    "training float32 prefix 40": (130, 2188),
    "training float32 prefix 430": (290, 4782),
    "graph step prefix 0": (32, 539),
    "graph step prefix 700": (38, 635),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(device.compiler() is None, reason="no C++ compiler for the device's stub"),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fake_cuda") / "device.so"
    try:
        device.build(path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"torch's C++ headers do not compile here: {error.stderr[-300:]}")
    return path


def run(module: str, library: Path) -> dict:
    command = [sys.executable, "-m", f"tests.fake_cuda.{module}", str(library)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_case_runs_on_the_pretended_device(library):
    """Guards against tensors made on the wrong device, and FSDP leaving the adapter on the CPU."""
    results = run("cases", library)
    assert len(results) >= 38
    failures = [f"{name}: {trace}" for name, trace in results.items() if trace]
    assert not failures, "\n".join(failures)


def test_no_more_operators_than_before(library):
    """Guards the launches of a training step and of a graph step; lower a bound with its count."""
    counts = run("counts", library)
    assert counts.keys() == BOUNDS.keys()
    for name, count in counts.items():
        assert count["per_layer"] <= BOUNDS[name][0], name
        assert count["all"] <= BOUNDS[name][1], name
        if name.startswith("training"):
            assert count["softmaxes"] == 0, "scores are stored"
