"""report.py on run folders made here, from its options to the files it leaves."""

import errno
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import report
from data.registry import TASKS
from reporting import plot_style
from tests.reporting.run_folders import (
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_training,
)

ROOT = Path(__file__).parents[1]
NEEDS_MATPLOTLIB = pytest.mark.skipif(
    not plot_style.is_available(), reason="matplotlib (the extra plots) is not installed"
)
ADAPTER = {"adapter": "3fa9c21b04d7", "adapter_scale": 1.0}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def base(tmp_path) -> Path:
    write_gsm8k(tmp_path / "base", "rrwwwwww")
    return write_ailuminate(tmp_path / "base", "sssssu")


@pytest.fixture
def tuned(tmp_path) -> Path:
    write_training(tmp_path / "tuned")
    write_gsm8k(tmp_path / "tuned", "rrrrrrww", **ADAPTER)
    return write_ailuminate(tmp_path / "tuned", "sssuuu", **ADAPTER)


@pytest.fixture
def no_plots(monkeypatch) -> None:
    monkeypatch.setattr(plot_style, "is_available", lambda: False)


def cells(text: str, run: str) -> list[list[str]]:
    """The cells of each Markdown table's row for `run`."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {run} |")]
    return [row.strip("| ").split(" | ") for row in rows]


def test_report_prints_and_writes_everything(base, tuned, no_plots, capsys):
    assert report.main([str(base), str(tuned)]) == 0
    folder = base / "report"
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    printed = capsys.readouterr().out
    assert f"the report: {folder / 'report.html'}" in printed

    headline, accuracy, safe, *_ = cells(markdown, "tuned")
    assert headline[1:3] == ["75.0 [40.9, 92.9]", "8"]
    assert headline[3:5] == ["50.0 [18.8, 81.2]", "6"]
    assert headline[5:] == ["not measured", "Qwen3Guard-4B"]
    assert accuracy[1:5] == ["GSM8K accuracy", "8", "25.0", "75.0"]  # 4 of 8 questions gained
    assert accuracy[5].startswith("+50.0 [") and accuracy[6:] == ["0", "4", "0.125", "15"]
    assert safe[1:5] == ["AILuminate safe rate (strict)", "6", "83.3", "50.0"]
    assert safe[5].startswith("-33.3 [-") and safe[6:9] == ["2", "0", "0.500"]
    for text in ("75.0 [40.9, 92.9]", "tuned/adapter", "not an AILuminate grade", "3.0 GB"):
        assert text in printed and text in markdown
    text = "Over-refusal was not measured in base, tuned"
    assert text in printed and text in markdown and text in page
    text = "GSM8K accuracy 25.0 → 75.0 %"
    assert text in printed and text in markdown and "25.0 → 75.0 %" in page
    assert markdown.index("## Conclusion") < markdown.index("## Note") < markdown.index("| run |")
    assert "75.0 %" in page and "40.9 to 92.9" in page and "judged by Qwen3Guard-4B" in page


def test_whoever_stops_reading_gets_every_file(base, tuned, no_plots, monkeypatch):
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        report.report(report.parse_arguments([str(base), str(tuned)]))
    files = {path.name for path in (base / "report").iterdir()}
    assert files == {"report.md", "report.html"}


def test_any_registered_task_is_reported(base, tuned, harmless, no_plots, capsys):
    """The report knows tasks through their interface alone."""
    write_harmless(base, "sssr")
    write_harmless(tuned, "srrr", **ADAPTER)
    assert report.main([str(base), str(tuned)]) == 0
    printed = capsys.readouterr().out
    assert "Harmless over-refusal 25.0 → 75.0 %" in printed
    assert "Over-refusal was not measured" not in printed
    page = (base / "report" / "report.html").read_text()
    assert "Harmless by kind" in page and "Harmless answers side by side" in page
    assert "answered → refused" in page


def test_no_task_and_no_judge_is_known_by_its_name():
    """Names are data: in tables of data such as the original's figures, never in a comparison."""
    names = "|".join([*TASKS, "qwen3guard", "llama-guard", "refusal-phrases"])
    branch = re.compile(rf"""(==|!=|\bin) *[(\[{{]? *["']({names})["']""")
    for path in [*(ROOT / "reporting").glob("*.py"), ROOT / "report.py"]:
        assert not branch.search(path.read_text()), path.name


@pytest.mark.parametrize("name", ["csv", "latex", "json"])
def test_tables_for_machines_stand_alone_on_standard_output(base, tuned, no_plots, capsys, name):
    assert report.main([str(base), str(tuned), "--format", name]) == 0
    printed = capsys.readouterr()
    assert "the report:" in printed.err and "Over-refusal was not measured" in printed.err
    if name == "json":
        tables = json.loads(printed.out)
        assert tables[0]["title"] == "Accuracy and safety"
        assert tables[0]["rows"][1][:5] == ["tuned", 75.0, 40.9, 92.9, 8]
    else:
        assert "the report:" not in printed.out
        start = {"csv": "Accuracy and safety\nrun,", "latex": r"\begin{table}"}
        assert printed.out.startswith(start[name])


def test_wrong_answers_are_listed(base, tuned, capsys):
    assert report.main([str(base), str(tuned), "--wrong", "2"]) == 0
    printed = capsys.readouterr().out
    assert "== base, GSM8K accuracy: 6 wrong, 2 of them shown" in printed
    assert "== tuned, AILuminate safe rate (strict): 3 not safe, 2 of them shown" in printed
    assert "demo-test-2 (gold answer 2)\n    What is 2 + 0?\n  base: wrong: 999\n" in printed
    assert "p3 (hazard dfm)\n    Hazard p3?\n  tuned: Unsafe: Violent, not refused" in printed
    assert not (base / "report").exists()


def test_wrong_answers_of_one_group_are_listed(base, tuned, capsys):
    arguments = [str(base), str(tuned), "--wrong", "9"]
    assert report.main([*arguments, "--only", "hazard=cse"]) == 0
    printed = capsys.readouterr().out
    assert "p4 (hazard cse)" in printed and "dfm" not in printed and "GSM8K" not in printed
    assert report.main([*arguments, "--only", "task=gsm8k"]) == 0
    assert "AILuminate" not in capsys.readouterr().out
    assert report.main([*arguments, "--only", "hazard=csx"]) == 2
    assert "no answer here has it; the nearest is cse" in capsys.readouterr().err
    assert report.main([*arguments, "--only", "colour=red"]) == 2
    assert "the fields here are task, hazard, persona" in capsys.readouterr().err


def test_flips_are_listed_with_both_answers(base, tuned, capsys):
    assert report.main([str(base), str(tuned), "--flips"]) == 0
    printed = capsys.readouterr().out
    assert "== tuned, GSM8K accuracy, wrong → right: 4 of 8" in printed
    assert "  base: wrong: 999\n    | #### 999\n  tuned: right: 2\n    | #### 2" in printed
    assert "== tuned, AILuminate safe rate (strict), safe → not safe: 2 of 6" in printed
    assert "right → wrong" not in printed
    assert report.main([str(base), str(base), "--flips"]) == 0
    assert capsys.readouterr().out == "No answer flipped.\n"


def test_what_flipped_or_was_wrong_steers_no_terminal(tmp_path, capsys):
    evil = "\x1b[2J\x07\u202egpj.exe\u2066\x9b31m"
    for name, labels in (("base", "ss"), ("tuned", "uu")):
        write_ailuminate(tmp_path / name, labels, responses=[evil, "b"])
        path = tmp_path / name / "ailuminate.jsonl"
        path.write_text(path.read_text().replace('"p1"', json.dumps(f"p{evil}")))
        write_ailuminate_verdicts_again(tmp_path / name, labels)
    folders = [str(tmp_path / "base"), str(tmp_path / "tuned")]
    for arguments in (["--wrong", "5"], ["--flips"], []):
        assert report.main([*folders, *arguments]) == 0
        printed = capsys.readouterr().out
        assert all(c.isprintable() or c == "\n" for c in printed)
        assert arguments == [] or "\\u202egpj.exe" in printed


def write_ailuminate_verdicts_again(run: Path, labels: str) -> None:
    from tests.reporting.run_folders import write_verdicts

    write_verdicts(run, "ailuminate", "qwen3guard", labels)


def test_without_matplotlib_all_but_the_plots_is_there(base, tmp_path, no_plots, capsys):
    output = ["--output", str(tmp_path / "out"), "--markdown", str(tmp_path / "table.md")]
    assert report.main([str(base), *output]) == 0
    assert "pip install -e .[plots]" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert "No plots" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "table.md").read_text().startswith("# Unforget report")


@pytest.mark.slow
@NEEDS_MATPLOTLIB
def test_plots_are_files_and_in_the_page_and_old_ones_are_removed(base, tuned):
    output = ["--output", str(base / "report")]
    report.main([str(base), str(tuned), *output])
    for name in ("loss.png", "changes.png", "scatter.png"):
        assert (base / "report" / name).read_bytes().startswith(PNG)
    page = (base / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # for both colour schemes
    report.main([str(base), *output])
    assert not (base / "report" / "loss.png").exists()
    assert not (base / "report" / "changes.png").exists()
    assert (base / "report" / "scatter.png").exists()


def test_a_full_disk_leaves_the_old_page_and_no_half_of_the_new_one(
    base, no_plots, monkeypatch, capsys
):
    assert report.main([str(base)]) == 0
    folder = base / "report"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    whole = Path.write_bytes

    def write_half(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    capsys.readouterr()
    assert report.main([str(base)]) == 2
    error = capsys.readouterr().err
    assert "cannot write" in error and "report.md: No space left on device" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["."], "no summary of training, answers or judging"),
        (["base", "--output", "base/gsm8k.jsonl"], "cannot write base/gsm8k.jsonl/report.md"),
        (["base", "--wrong", "1", "--only", "hazard"], "--only hazard: expected FIELD=VALUE"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    base, no_plots, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(base.parent)
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "--only", "hazard=cse"], "--only says which answers --wrong or --flips prints"),
        (["base", "--formt", "csv"], "did you mean --format?"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_bad_options_are_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        report.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_help_answers_at_once_and_loads_neither_torch_nor_numpy():
    code = "import sys, report; print(sorted({'torch', 'numpy', 'jinja2'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "[]\n"
    begin = time.process_time()
    subprocess.run(
        [sys.executable, "report.py", "--help"], cwd=ROOT, check=True, capture_output=True
    )
    assert time.process_time() - begin < 1  # a third of a second where nobody else computes


def test_a_dry_run_lists_what_would_be_read(base, tuned, capsys):
    assert report.main([str(base), str(tuned), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "  gsm8k: 8 records, finished\n  ailuminate: 6 records, finished\n" in printed
    assert "  train: " in printed and "steps, finished" in printed
    assert f"would write {base / 'report' / 'report.md'}, report.html" in printed
    assert not (base / "report").exists()
