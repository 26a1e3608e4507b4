"""A settings dataclass is the command line, the --config file and what a summary records."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import options
from common.command_line import parse_settings
from common.errors import UserError
from common.options import Scope, option


@dataclass(frozen=True, kw_only=True)
class Example:
    """One option of each kind."""

    runs: tuple[str, ...] = option(("none",), "run folders", positional=True, nargs="+")
    lr: float = option(1e-3, "peak (%(default)s)", parse=options.positive_float, metavar="X")
    loss: str = option("answer", "trained on", choices=("answer", "all"), group="data")
    epochs: float = option(1.0, "passes", parse=options.positive_float, exclusive="length")
    steps: int | None = option(None, "steps", parse=options.positive_int, exclusive="length")
    target: tuple[str, ...] = option(("all",), "linears", nargs="+", group="data")
    set: tuple[str, ...] = option((), "a setting", repeated=True)
    resume: bool = option(True, "go on", scope=Scope.CALL)
    dry_run: bool = option(False, "write nothing", flag=True, scope=Scope.CALL)
    device: str = option("auto", "where", scope=Scope.COST)
    init: Path | None = option(None, "adapter", parse=Path, metavar="DIR")
    shots: int = option(0, "examples", parse=options.non_negative_int)
    pooling: str = option("last", "of similar shots", when=lambda settings: settings.shots > 0)

    def __post_init__(self) -> None:
        if self.shots > 9:
            raise UserError(f"--shots {self.shots}: at most 9")


@pytest.fixture
def config(tmp_path):
    """Write a --config file and return its words."""

    def write(text: str) -> list[str]:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def parse(*words: str) -> Example:
    return parse_settings(Example, "what it does", words)


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as exit_status:
        parse(*words)
    assert exit_status.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_without_options_everything_is_as_the_fields_say():
    assert parse("a", "b") == Example(runs=("a", "b"))


def test_every_kind_of_option():
    words = "a --lr 2 --loss all --steps 3 --target q_proj k_proj --set x=1 --set y=2".split()
    words += "--no-resume --dry-run --device cpu --init somewhere --shots 2".split()
    assert parse(*words) == Example(
        runs=("a",),
        lr=2.0,
        loss="all",
        steps=3,
        target=("q_proj", "k_proj"),
        set=("x=1", "y=2"),
        resume=False,
        dry_run=True,
        device="cpu",
        init=Path("somewhere"),
        shots=2,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--lr", "0"], "argument --lr: expected a number above 0, got 0 ("),
        (["a", "--loss", "some"], "argument --loss: invalid choice: 'some'"),
        (["a", "--steps", "2", "--epochs", "2"], "not allowed with argument --steps"),
        (["a", "--step", "2"], "unrecognized arguments: --step 2; did you mean --steps? ("),
        (["a", "--zzzz"], "unrecognized arguments: --zzzz ("),
        (["a", "--no-dry-run"], "unrecognized arguments: --no-dry-run; did you mean --dry-run? ("),
        ([], "the following arguments are required: runs"),
        (["a", "--shots", "10"], "--shots 10: at most 9 ("),
        (["a", "--config"], "argument --config: expected one argument"),
        (["a", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_bad_command_line_is_one_line(words, message, capsys):
    assert message in refused(capsys, *words)


def test_help_lists_groups_and_defaults(capsys):
    with pytest.raises(SystemExit) as exit_status:
        parse("--help")
    assert exit_status.value.code == 0
    printed = capsys.readouterr().out
    assert "what it does" in printed and "peak (0.001)" in printed
    group = printed[printed.index("\ndata:") :]
    assert "--loss" in group and "--target" in group and "--lr" not in group


def test_a_config_file_sets_what_the_command_line_leaves_open(config):
    words = config(
        "lr: 1e-2\nresume: false\ntarget: [q_proj]\nset: [x=1]\nruns: [c, d]\nsteps: 7\n"
        "init: some/where\nloss:\n"
    )
    expected = {"resume": False, "init": Path("some/where")}
    from_file = Example(
        **expected, runs=("c", "d"), lr=1e-2, target=("q_proj",), set=("x=1",), steps=7
    )
    assert parse(*words) == from_file
    over = [*words, "a", "--lr=3", "--target", "up_proj", "--set", "y=2", "--epochs", "2"]
    overruled = Example(
        **expected, runs=("a",), lr=3.0, target=("up_proj",), set=("y=2",), epochs=2.0
    )
    assert parse(*over) == overruled, "steps would contradict --epochs"
    assert parse(*words, "--resume").resume


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shot: 3", "settings.yaml: unknown option 'shot'; the nearest valid name is 'shots'"),
        ("dry_run: true", "unknown option 'dry_run'; the nearest valid name is 'dry-run'"),
        ("2: 3", "settings.yaml: not valid YAML .the key 2 is no text"),
        ("lr: fast", "settings.yaml: lr: expected a number above 0, got 'fast'"),
        ("lr: [1, 2]", r"settings.yaml: lr should be one value, found \[1, 2\]"),
        ("lr: {x: 1}", "settings.yaml: lr should be one value"),
        ("lr: true", "settings.yaml: lr should be one value, found True"),
        ("target: []", "settings.yaml: target should be values"),
        ("resume: 1", "settings.yaml: resume should be true or false, found 1"),
        ("loss: some", "settings.yaml: loss is 'some', but one of answer, all"),
        ("steps: 1\nepochs: 2", "settings.yaml: give one of epochs and steps, not both"),
        ("shots: 10", "--shots 10: at most 9"),
        ("- lr", "settings.yaml: expected keys and values, found list"),
        ("lr: [", "settings.yaml: not valid YAML"),
        ("[" * 3000, "settings.yaml, line 1: nested more than 10 deep"),
        ("lr: 2024-13-45", "settings.yaml: lr: expected a number above 0, got '2024-13-45'"),
        ("a: &x [1]\nb: [*x, *x]", r"settings.yaml: the alias \*x is not read"),
    ],
)
def test_a_bad_config_file_is_one_line_with_its_name(text, message, config, capsys):
    error = refused(capsys, "a", *config(text))
    assert re.search(message, error), error


def test_options_as_words_come_back_as_they_were():
    """Recipes keep options as YAML values and call scripts with words."""
    values = {
        "runs": ["a", "b"],
        "lr": 2.0,
        "target": ["q_proj", "up_proj"],
        "set": ["-x=1", "y=2"],
        "resume": False,
        "dry-run": True,
        "device": "-odd",
    }
    words = options.to_argv(values, Example)
    assert "--no-resume" in words and "--dry-run" in words and "--device=-odd" in words
    parsed = parse(*words)
    for name, value in values.items():
        found = getattr(parsed, name.replace("-", "_"))
        assert found == (tuple(value) if isinstance(value, list) else value)
    assert options.to_argv({"dry-run": False}, Example) == []


def test_a_summary_records_what_touches_the_result_and_its_cost():
    record = options.recorded(parse("a", "--init", "x", "--target", "q_proj", "k_proj"))
    assert record == {
        "runs": ["a"],
        "lr": 1e-3,
        "loss": "answer",
        "epochs": 1.0,
        "steps": None,
        "target": ["q_proj", "k_proj"],
        "set": [],
        "device": "auto",
        "init": "x",
        "shots": 0,
    }
    assert options.recorded(parse("a", "--shots", "1"))["pooling"] == "last", "it counts then"
    assert options.may_change(Example) == {"device"}
    assert options.recorded_defaults(Example)["target"] == ["all"]


def test_a_frozen_setting_has_no_list_as_its_default():
    with pytest.raises(TypeError, match="a tuple"):
        option([], "x")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (options.positive_int, ["1", "20"], ["0", "-1", "1.5", "x", "", "9" * 400]),
        (options.non_negative_int, ["0", "3"], ["-1", "x"]),
        (options.positive_float, ["0.1", "1e-4"], ["0", "-2", "nan", "inf", "x"]),
        (options.non_negative_float, ["0", "2.5"], ["-0.1", "nan", "inf"]),
        (options.probability, ["0.5", "1"], ["0", "1.1", "nan"]),
        (options.seed, ["0", "4294967295"], ["-1", "4294967296", "x"]),
        (options.fraction, ["0", "0.9"], ["1", "-0.1", "nan"]),
    ],
)
def test_number_types(kind, good, bad):
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            kind(text)
