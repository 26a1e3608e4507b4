"""A script in several processes on this machine, started by torchrun."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

END_SECONDS = 60  # that the processes have to write what they hold, when this one is to end


def run_in_processes(script: Path, argv: Sequence[str], processes: int) -> int:
    """Run `script` with `argv` in `processes` processes; return the exit status of torchrun.

    An exception here, such as a signal raised as one, ends them first.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without "--", torchrun takes our --run for an abbreviation of its own --run-path.
    command += ["--nproc-per-node", str(processes), "--", str(script), *argv]
    # Modules are found as they are here, whether installed or beside the script.
    path = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)})
    try:
        return process.wait()
    except BaseException:
        process.terminate()  # torchrun passes it on
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
