"""train.py as two processes with gloo, and killed at random moments: the losses are those of one
quiet process.
"""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from data.records import read_jsonl

pytestmark = pytest.mark.slow  # every process imports torch
ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--data",
    "demo",
    "--limit",
    "40",
    "--validation",
    "8",
    "--batch-size",
    "5",
    "--lr",
    "1e-2",
    "--shots",
    "1",
]
OPTIONS += [
    "--steps",
    "8",
    "--checkpoint-every",
    "4",
    "--micro-batch-tokens",
    "300",
    "--device",
    "cpu",
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]


def command(checkpoint: Path, run: Path, *more: str, processes: int = 1) -> list[str]:
    launcher = TORCHRUN if processes > 1 else []
    return [
        sys.executable,
        *launcher,
        "train.py",
        "--model",
        str(checkpoint),
        "--run",
        str(run),
        *OPTIONS,
        *more,
    ]


def call(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments, **options),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def losses(run: Path) -> list[float]:
    return [
        record.get("loss", record.get("validation_loss"))
        for record in read_jsonl(run / "train.jsonl")
    ]


@pytest.fixture(scope="module")
def expected(chat_checkpoint, tmp_path_factory) -> list[float]:
    run = tmp_path_factory.mktemp("alone")
    done = call(chat_checkpoint, run)
    assert done.returncode == 0, done.stderr
    return losses(run)


@pytest.mark.parametrize(
    "option", [[], ["--fsdp"], ["--fsdp", "--checkpoint-activations"]], ids=" ".join
)
def test_two_processes_follow_one(option, expected, chat_checkpoint, tmp_path):
    """Batches of 5, the last of an epoch of 2: shares are unequal, and so are the numbers of
    passes.
    """
    done = call(chat_checkpoint, tmp_path, *option, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-5)
    assert done.stdout.count("----- trained on (") == 1, "only rank 0 talks"


def test_eight_bit_weights_are_sharded_as_well(chat_checkpoint, tmp_path):
    """Guards the integers and scales of a quantised base, beside the LoRA weights that stay
    whole.
    """
    for run, option, processes in (("one", [], 1), ("two", ["--fsdp"], 2)):
        done = call(
            chat_checkpoint, tmp_path / run, "--quantize", "int8", *option, processes=processes
        )
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.parametrize(("processes", "printed"), [("2", "done\n"), ("1", "done\ntaken down\n")])
def test_one_of_several_processes_ends_without_taking_the_interpreter_down(processes, printed):
    """Threads that FSDP leaves behind would race that."""
    code = "import atexit; from common import distributed; "
    code += "atexit.register(print, 'taken down'); print('done')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; distributed.flush_and_exit(3)"],
        cwd=ROOT,
        env=ENVIRONMENT | {"WORLD_SIZE": processes, "RANK": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (3, printed), done.stderr


@pytest.mark.parametrize("option", [[], ["--fsdp"]], ids=["data parallel", "fsdp"])
def test_two_processes_stay_as_near_the_base_as_one(option, chat_checkpoint, tmp_path):
    """Five anchors a step: shares are unequal here as well."""
    anchored = ["--kl-weight", "5", "--kl-prompts", "demo"]
    for run, processes in (("one", 1), ("two", 2)):
        done = call(
            chat_checkpoint,
            tmp_path / run,
            *anchored,
            *(option if processes > 1 else []),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    logs = [read_jsonl(tmp_path / run / "train.jsonl") for run in ("one", "two")]
    assert any(record.get("kl", 0) > 1e-4 for record in logs[0])
    for name in ("loss", "kl", "kl_prompts", "kl_validation"):
        one, two = ([record[name] for record in log if name in record] for log in logs)
        assert two == pytest.approx(one, abs=1e-5) and one


def test_two_processes_resume(expected, chat_checkpoint, tmp_path):
    """A run of one process that stopped after its first checkpoint goes on as two."""
    assert call(chat_checkpoint, tmp_path).returncode == 0
    (tmp_path / "train.summary.json").write_text(
        json.dumps(json.loads((tmp_path / "train.summary.json").read_text()) | {"finished": False})
    )
    for path in (tmp_path / "checkpoints").glob("step-00000008/*"):
        path.unlink()
    (tmp_path / "checkpoints" / "step-00000008").rmdir()
    done = call(chat_checkpoint, tmp_path, processes=2)
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-5)


def test_a_failing_process_ends_the_run_with_its_message(chat_checkpoint, tmp_path):
    """Rank 1 runs into a loss that is not finite, as a broken device would give; rank 0 must not
    wait for ever.
    """
    script = tmp_path / "failing.py"
    script.write_text(
        "import sys, train\n"
        "from common.ranks import rank\n"
        "from common.errors import UserError\n"
        "from lora.trainer import Trainer\n"
        "step = Trainer.step\n"
        "def failing(self, examples):\n"
        "    if rank() == 1 and self.completed_steps == 2:\n"
        "        raise UserError('out of order')\n"
        "    return step(self, examples)\n"
        "Trainer.step = failing\n"
        "sys.exit(train.main())\n"
    )
    words = command(chat_checkpoint, tmp_path / "run", processes=2)
    words[words.index("train.py")] = str(script)
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "rank 1: error: out of order" in done.stderr.splitlines()
    assert done.stderr.count("Traceback") == 1, "torchrun's own, about the status, and none of ours"


def test_killed_at_random_moments_it_ends_with_the_same_losses(chat_checkpoint, tmp_path):
    """SIGKILL time and again, then to the end: bit for bit what an uninterrupted run gives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["train"]
    )  # torch is imported once, so that a process starts at once
    generator, whole, killed = random.Random(0), tmp_path / "whole", tmp_path / "killed"

    def start(run: Path) -> multiprocessing.Process:
        words = [
            "--model",
            str(chat_checkpoint),
            "--run",
            str(run),
            *OPTIONS,
            "--checkpoint-every",
            "1",
        ]
        process = context.Process(target=train.main, args=(words,))
        process.start()
        return process

    begin = time.monotonic()
    start(whole).join(60)
    seconds, kills = time.monotonic() - begin, 0
    while kills < 8:
        process = start(killed)
        process.join(generator.uniform(0.3, 0.9) * seconds)
        process.kill()
        process.join()
        kills += 1
    start(killed).join(60)
    assert len(losses(whole)) == 16
    assert losses(killed) == losses(whole)
