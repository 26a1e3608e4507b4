"""SIGINT and SIGTERM, real ones, at moments from the first import to the second signal."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common import interrupts

ROOT = Path(interrupts.__file__).parent.parent
SCRIPTS = ("train", "generate", "judge", "report", "experiment", "divergence", "unforget")
SIGNALS = [signal.SIGINT, signal.SIGTERM]

# Runs a script that gets a signal when it begins to import a module.
AT_IMPORT = """
import os, runpy, signal, sys
script, module, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
for each in (signal.SIGINT, signal.SIGTERM):  # whatever the shell that runs the tests has ignored
    signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

class Interrupter:
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Interrupter())
sys.argv = [script, "train", "--limit", "1"] if script == "unforget.py" else [script]
runpy.run_path(script, run_name="__main__")
"""
# Gets one signal at work, and another one while it saves.
TWICE = """
import os, signal, sys, time
from common.cli import run_script
from common.interrupts import exit_on_signals

signal.signal(signal.SIGINT, signal.default_int_handler)
exit_on_signals()

def script(settings):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    finally:
        print("saving", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

sys.exit(run_script(script, None))
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def assert_interrupted(result: subprocess.CompletedProcess, number: int) -> None:
    assert result.stderr == f"{interrupts.MESSAGE}\n"
    assert result.returncode == 128 + number


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_first_imports(script, number):
    assert_interrupted(run(AT_IMPORT, f"{script}.py", "common.cli", str(int(number))), number)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "torch", "torch._C", "tokenizers", "llama.weights"])
def test_a_signal_during_the_slow_imports(module):
    result = run(AT_IMPORT, "judge.py", module, str(int(signal.SIGINT)))
    assert_interrupted(result, signal.SIGINT)


def test_a_second_signal_ends_at_once():
    result = run(TWICE)
    assert result.stdout == "saving\n"
    assert_interrupted(result, signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.raised_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
