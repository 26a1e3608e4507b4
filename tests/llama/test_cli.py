"""Options refuse what makes no sense, errors end in one line and status 2, run folders are checked first."""

import argparse

import pytest
import torch

from llama import cli


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.positive_int, ["1", "20"], ["0", "-1", "1.5", "x", ""]),
        (cli.non_negative_int, ["0", "3"], ["-1", "x"]),
        (cli.positive_float, ["0.1", "1e-4"], ["0", "-2", "nan", "inf", "x"]),
        (cli.non_negative_float, ["0", "2.5"], ["-0.1", "nan", "inf"]),
        (cli.probability, ["0.5", "1"], ["0", "1.1", "nan"]),
        (cli.fraction, ["0", "0.9"], ["1", "-0.1", "nan"]),
    ],
)
def test_number_types(kind, good, bad):
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            kind(text)


@pytest.mark.parametrize("error", [ValueError("bad\n  thing"), OSError("bad thing")])
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


def test_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to the run folder .* choose another with --run"):
        cli.prepare_run(tmp_path / "file" / "run")
    cli.prepare_run(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_changed_settings_are_named():
    cli.check_settings("f", {"a": 1}, {"a": 1})
    with pytest.raises(ValueError, match="f was made with shots = 1, now it is 3"):
        cli.check_settings("f", {"shots": 1}, {"shots": 3})


def test_device_and_dtype():
    cpu = torch.device("cpu")
    assert cli.resolve_device("cpu") == cpu
    assert cli.resolve_dtype("auto", cpu) == torch.float32
    assert cli.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match="--device nonsense cannot be used here"):
        cli.resolve_device("nonsense")


def test_peak_memory_is_in_bytes():
    assert 50 * 2**20 < cli.peak_memory_bytes(torch.device("cpu")) < 2**40
