"""Options refuse what makes no sense; errors end in one line and status 2."""

import argparse
import os
import signal
import time

import pytest
import torch

from common import cli
from common.errors import UserError


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.positive_int, ["1", "20"], ["0", "-1", "1.5", "x", ""]),
        (cli.non_negative_int, ["0", "3"], ["-1", "x"]),
        (cli.positive_float, ["0.1", "1e-4"], ["0", "-2", "nan", "inf", "x"]),
        (cli.non_negative_float, ["0", "2.5"], ["-0.1", "nan", "inf"]),
        (cli.probability, ["0.5", "1"], ["0", "1.1", "nan"]),
        (cli.seed, ["0", "4294967295"], ["-1", "4294967296", "x"]),
        (cli.fraction, ["0", "0.9"], ["1", "-0.1", "nan"]),
    ],
)
def test_number_types(kind, good, bad):
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            kind(text)


@pytest.mark.parametrize("error", [UserError("bad\n  thing"), OSError("bad thing")])
def test_bad_input_is_one_line_and_status_2(error, capsys):
    def script(arguments):
        raise error

    assert cli.run_script(script, argparse.Namespace()) == 2
    assert capsys.readouterr().err == "error: bad thing\n"


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(KeyError):
        cli.run_script(lambda arguments: {}["missing"], argparse.Namespace())


def test_interruption_is_status_130(capsys):
    def script(arguments):
        raise KeyboardInterrupt

    assert cli.run_script(script, argparse.Namespace()) == 130
    assert "goes on" in capsys.readouterr().err


def test_termination_is_an_interruption():
    def script(arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert cli.run_script(script, argparse.Namespace()) == 130


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: x")]
)
def test_out_of_memory_says_what_to_do(error, capsys):
    def script(arguments):
        raise error

    assert cli.run_script(script, argparse.Namespace()) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_a_bad_option_is_one_line(capsys):
    parser = cli.Parser("what it does")
    cli.add_run_options(parser, "model", 1, "help")
    with pytest.raises(SystemExit) as exit_status:
        parser.parse_args(["--limit", "none"])
    assert exit_status.value.code == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: argument --limit: expected a whole number")
        and error.count("\n") == 1
    )


def test_device_and_dtype():
    cpu = torch.device("cpu")
    assert cli.resolve_device("cpu") == cpu
    assert cli.resolve_dtype("auto", cpu) == torch.float32
    assert cli.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match="--device nonsense cannot be used here"):
        cli.resolve_device("nonsense")
    with pytest.raises(ValueError, match="--device meta cannot be used here: the devices are cpu"):
        cli.resolve_device("meta")
