"""Bad input, lack of memory and interruptions end a script in one line and an exit status."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from common import cli
from common.errors import UserError
from common.interrupts import Interrupted


@pytest.mark.parametrize("error", [UserError("bad\n  thing"), OSError("bad thing")])
def test_bad_input_is_one_line_and_status_2(error, capsys):
    def script(settings):
        raise error

    assert cli.run_script(script, None) == 2
    assert capsys.readouterr().err == "error: bad thing\n"


def test_the_first_of_several_errors_is_told(capsys):
    """With a full disk, closing a file and writing the summary fail after writing a record has."""

    def write(name):
        try:
            raise OSError("no file name here")
        except OSError:
            raise UserError(f"{name}: the disk is full") from None

    def script(settings):
        try:
            try:
                write("x.jsonl")
            finally:
                write("x.summary.json")
        finally:
            raise OSError("no file name here")

    assert cli.run_script(script, None) == 2
    assert capsys.readouterr().err == "error: x.jsonl: the disk is full\n"


def test_an_error_in_better_words_is_told_and_not_what_led_to_it(capsys):
    """As in a download without a network: URLError is raised while a gaierror is handled."""

    def download(settings):
        try:
            try:
                raise OSError("Name or service not known")
            except OSError as error:
                raise OSError(f"urlopen error {error}")  # noqa: B904 - as urllib does
        except OSError as error:
            raise UserError(f"data.jsonl: cannot download ({error}); set UNFORGET_DATA") from None

    assert cli.run_script(download, None) == 2
    message = "data.jsonl: cannot download (urlopen error Name or service not known); set UNFORGET"
    assert message in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(KeyError):
        cli.run_script(lambda settings: {}["missing"], None)


def test_interruption_is_status_130(capsys):
    def script(settings):
        raise KeyboardInterrupt

    assert cli.run_script(script, None) == 130
    assert "goes on" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_line_and_its_own_status(number, capsys):
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)

    def script(settings):
        os.kill(os.getpid(), number)
        time.sleep(10)

    assert cli.run_script(script, None) == 128 + number
    error = capsys.readouterr().err
    assert "without --no-resume, goes on" in error and error.count("\n") == 1
    assert signal.getsignal(number) is signal.default_int_handler, "as it was before"
    signal.signal(number, before)


def test_what_a_called_script_has_said_is_not_said_again(capsys):
    def script(settings):
        raise Interrupted(143, reported=True)

    assert cli.run_script(script, None) == 143
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: x")]
)
def test_out_of_memory_says_what_to_do(error, capsys):
    def script(settings):
        raise error

    assert cli.run_script(script, None) == 2
    assert "out of memory: no option of this script" in capsys.readouterr().err


def test_the_out_of_memory_line_names_what_helps_in_the_script(capsys):
    def script(settings):
        raise MemoryError

    assert cli.run_script(script, None, "use --less") == 2
    assert capsys.readouterr().err == "error: out of memory: use --less\n"


def test_a_runtime_error_is_no_lack_of_memory():
    def script(settings):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.run_script(script, None)


def test_no_message_steers_the_terminal(capsys):
    def script(settings):
        raise UserError("bad \x1b[2Jname \u202eé")

    assert cli.run_script(script, None) == 2
    assert capsys.readouterr().err == "error: bad \\x1b[2Jname \\u202eé\n"


def test_one_of_several_processes_says_which(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def script(settings):
        raise UserError("bad")

    assert cli.run_script(script, None) == 2
    assert capsys.readouterr().err == "rank 1: error: bad\n"


def test_options_and_errors_need_no_torch():
    code = "import common.cli, common.options, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
