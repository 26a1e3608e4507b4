"""report.py on run folders made here: the project's own scoring summarises answers that no model
gave.
"""

import io
import json
import re
from pathlib import Path

import pytest

import report
from data.intervals import rate
from data.records import write_json
from data.scoring import score_gsm8k
from guards.verdicts import answer_sha256, summarise_verdicts
from reporting import plots
from reporting.load_runs import load_runs

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> & #### 3"
PNG = b"\x89PNG\r\n\x1a\n"
NEEDS_MATPLOTLIB = pytest.mark.skipif(
    not plots.is_available(), reason="matplotlib (the extra plots) is not installed"
)


def write_records(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_gsm8k(run: Path, right: int, total: int = 8, finished: bool = True, **settings) -> None:
    records = [
        {
            "id": f"demo-test-{i}",
            "question": f"What is {i} + 0?",
            "response": f"#### {i}" if i < right else ATTACK,
            "finish_reason": "stop",
            "prediction": str(i) if i < right else "3",
            "gold": str(i),
            "correct": i < right,
        }
        for i in range(total)
    ]
    run.mkdir(parents=True, exist_ok=True)
    write_records(run / "gsm8k.jsonl", records)
    summary = {"task": "gsm8k", "finished": finished, "questions": total, **score_gsm8k(records)}
    settings = {
        "model": "org/Tiny-1B",
        "adapter": None,
        "adapter_scale": None,
        "shots": 3,
        **settings,
    }
    costs = {"seconds": 61.0, "new_tokens_per_second": 250.0, "peak_memory_bytes": 3_000_000_000}
    about = {
        "adapter_path": f"{run}/adapter" if settings["adapter"] else None,
        "environment": {"torch": "2.9"},
    }
    write_json(run / "gsm8k.summary.json", summary | {"settings": settings} | about | costs)


def write_safety(
    run: Path, safe: int, method: str = "guard", adapter: str | None = None, total: int = 6
) -> None:
    ids = [
        {"id": f"p{i}", "hazard": ("cse", "dfm")[i % 2], "persona": "skilled"} for i in range(total)
    ]
    answers = [
        {**keys, "prompt": f"Hazard {keys['id']}?", "response": f"{ATTACK} {keys['id']}"}
        for keys in ids
    ]
    label = ("safety", "Safe", "Unsafe") if method == "guard" else ("refusal", "Yes", "No")
    empty = {"safety": None, "categories": [], "refusal": None, "finish_reason": "stop"}
    verdicts = [
        {
            **keys,
            **empty,
            label[0]: label[1] if i < safe else label[2],
            "answer_sha256": answer_sha256(answers[i]),
        }
        for i, keys in enumerate(ids)
    ]
    write_records(run / "ailuminate.jsonl", answers)
    write_records(run / "verdicts.jsonl", verdicts)
    settings = {
        "model": "org/Tiny-1B",
        "adapter": adapter,
        "adapter_scale": 1.0 if adapter else None,
    }
    shared = {"finished": True, "seconds": 9.0}
    path = f"{run}/adapter" if adapter else None
    answered = {
        "task": "ailuminate",
        "prompts": total,
        "cut_off": rate(0, total),
        "adapter_path": path,
    }
    write_json(run / "ailuminate.summary.json", answered | shared | {"settings": settings})
    judging = {"model": "Qwen/Qwen3Guard-Gen-4B", "dtype": "float32"} if method == "guard" else {}
    judged = {"task": "judge", "planned": total, **summarise_verdicts(verdicts, method)}
    write_json(run / "judge.summary.json", judged | shared | {"settings": judging})


def write_training(run: Path, steps: int, finished: bool = True) -> None:
    run.mkdir(parents=True, exist_ok=True)
    records = [{"step": step, "loss": 2 / step} for step in range(1, steps + 1)] + [
        {"step": steps, "validation_loss": 0.9}
    ]
    write_records(run / "train.jsonl", records)
    summary = {"task": "train", "finished": finished, "settings": {"rank": 8, "steps": 20}}
    if finished:
        losses = {"first_loss": 2.0, "last_loss": 2 / steps, "best_validation_loss": 0.9}
        summary |= {
            "adapter_fingerprint": "3fa9c21b04d7",
            "examples": 160,
            "steps": steps,
            "seconds": 120.0,
            "tokens_per_second": 512.0,
            **losses,
        }
    write_json(run / "train.summary.json", summary)


@pytest.fixture
def base(tmp_path) -> Path:
    write_gsm8k(tmp_path / "base", right=2)
    write_safety(tmp_path / "base", safe=5)
    return tmp_path / "base"


@pytest.fixture
def tuned(tmp_path) -> Path:
    write_training(tmp_path / "tuned", steps=20)
    write_gsm8k(tmp_path / "tuned", right=6, adapter="3fa9c21b04d7", adapter_scale=1.0)
    write_safety(tmp_path / "tuned", safe=3, adapter="3fa9c21b04d7")
    return tmp_path / "tuned"


def cells(text: str, run: str) -> list[list[str]]:
    """The cells of each Markdown table's row for `run`."""
    return [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {run} |")
    ]


def test_report_prints_and_writes_everything(base, tuned, capsys):
    assert report.main([str(base), str(tuned)]) == 0
    folder = base / "report"
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    printed = capsys.readouterr().out
    assert f"the report: {folder / 'report.html'}" in printed

    accuracy_and_safety, gsm8k, safety, training, costs, *pairs, formats = cells(markdown, "tuned")
    assert accuracy_and_safety[1:3] == ["75.0 [40.9, 92.9]", "8"]
    assert accuracy_and_safety[3] == "50.0 [18.8, 81.2]" and accuracy_and_safety[5:] == [
        "6",
        "Qwen3Guard-Gen-4B",
    ]
    assert gsm8k[1:4] == ["Tiny-1B", "tuned/adapter", "3"]
    assert safety[1] == "50.0 [18.8, 81.2]"
    assert training[1:] == ["160", "20", "2.000", "0.100", "0.900", "512"]
    assert costs[1:] == ["120 s", "61 s", "9.0 s", "9.0 s", "250", "3.0 GB"]
    accuracy, safe = pairs  # 4 of 8 questions gained; 2 of 6 prompts lost
    assert accuracy[1:5] == ["GSM8K accuracy", "8", "25.0", "75.0"] and accuracy[6:] == [
        "0",
        "4",
        "0.125",
        "14",
    ]
    assert accuracy[5].startswith("+50.0 [+") and safe[1:5] == [
        "AILuminate, safe",
        "6",
        "83.3",
        "50.0",
    ]
    assert safe[5].startswith("-33.3 [-") and safe[6:9] == ["2", "0", "0.500"]
    assert formats[1:] == ["100.0", "0.0", "0.0", "75.0 [40.9, 92.9]", "+0.0", "+50.0"]
    assert cells(markdown, "base")[3][1:] == ["-"] * 6  # was not trained
    assert "## Note" not in markdown and "\nNote\n" not in printed  # nothing to caution against
    for text in ("75.0 [40.9, 92.9]", "tuned/adapter", "never an AILuminate", "3.0 GB"):
        assert text in printed
    assert "75.0 %" in page and "40.9 to 92.9, n = 8" in page and "by Qwen3Guard-Gen-4B" in page


def test_whoever_stops_reading_gets_every_file(base, tuned, monkeypatch):
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        report.report(report.parse_arguments([str(base), str(tuned)]))
    pictures = {"loss.png", "scatter.png"} if plots.is_available() else set()
    assert {path.name for path in (base / "report").iterdir()} == {
        "report.md",
        "report.html",
    } | pictures


def test_verdicts_on_older_answers_are_not_shown_anywhere(base, tuned):
    path = tuned / "ailuminate.jsonl"
    path.write_text(path.read_text().replace("& #### 3 p0", "& #### 3 p0, answered anew"))
    assert report.main([str(base), str(tuned)]) == 0
    markdown, page = ((base / "report" / name).read_text() for name in ("report.md", "report.html"))
    accuracy_and_safety, _, safety, *_ = cells(markdown, "tuned")
    assert (
        accuracy_and_safety[3:] == ["-"] * 4
        and safety[1] == "-"
        and "50.0 [18.8, 81.2]" not in markdown
    )
    assert all(
        "tuned: its verdicts are left out" in text and "(others: 1)" in text
        for text in (markdown, page)
    )
    hazards = page[page.index("AILuminate answers side by side") : page.index("<h2>Settings")]
    assert "answered anew" in hazards and hazards.count(">Safe</span>") == 2
    assert '<span class="kind">not judged</span>' in hazards  # not "judged in different ways"
    assert [index for index, *_ in plots._points(load_runs([base, tuned]), "guard")] == [0]


def test_the_style_names_only_what_some_page_holds(base, tuned):
    path = tuned / "ailuminate.jsonl"  # for a page with cautions, and answers that are not judged
    path.write_text(path.read_text().replace("p0", "p9"))
    report.main([str(base), str(tuned)])
    style, body = (base / "report" / "report.html").read_text().split("</style>")
    selectors = re.sub(r"\{[^{}]*\}", " ", style[style.index("<style>") + 7 :])
    classes = set(re.findall(r"\.([a-z]+)", selectors))
    elements = set(re.findall(r"(?:^|[\s,>])([a-z]+[1-6]?)(?=[\s,.:{>\[])", selectors))
    held = set(" ".join(re.findall(r'class="([^"]*)"', body)).split())
    assert {"cautions", "settings", "swatch"} <= classes <= held
    assert {"table", "summary", "h4"} <= elements <= set(re.findall(r"<([a-z]+[1-6]?)", body))


def test_the_page_is_self_contained_and_runs_nothing(base, tuned):
    report.main([str(base), str(tuned)])
    page = (base / "report" / "report.html").read_text()
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x" in page
    )  # an answer is shown, as text
    assert "<script" not in page and "<img src=x" not in page and "<link" not in page
    assert all(
        address.startswith("data:image/png")
        for address in re.findall(r"(?:src|srcset|href)=\"([^\"]*)", page)
    )
    assert "url(" not in page and "@import" not in page
    assert (
        "default-src 'none'" in page
        and "prefers-color-scheme: dark" in page
        and "width=device-width" in page
    )


def test_the_page_folds_hazard_prompts_and_marks_settings_that_differ(base, tuned):
    report.main([str(base), str(tuned)])
    page = (base / "report" / "report.html").read_text()
    hazards = page[page.index("AILuminate answers side by side") :]
    assert hazards.index("<details><summary>Show") < hazards.index("Hazard p0?")
    assert "safe → not safe" in hazards
    assert "right → wrong" not in page and "wrong → right" in page
    gsm8k = page[page.index('class="settings"') :]
    assert re.search(
        r'<tr class="differs"><th scope="row">adapter ≠</th><td>none</td><td>3fa9c21b04d7</td>',
        gsm8k,
    )
    assert '<tr class="same"><th scope="row">shots</th><td>3</td><td>3</td>' in gsm8k
    assert (
        '<tr class="same"><th scope="row">rank</th><td>-</td><td>8</td>' in gsm8k
    )  # the base run was not trained


def test_every_flip_is_shown_with_both_answers(base, tuned):
    report.main([str(base), str(tuned)])
    page = (base / "report" / "report.html").read_text()
    flips = page[page.index("<h3>Answers that flipped") : page.index("<h2>In detail")]
    assert "wrong → right: 4 of 8" in flips and "right → wrong" not in flips
    assert "safe → not safe: 2 of 6" in flips and "which may be harmful" in flips
    assert [f"(demo-test-{i})" in flips for i in range(8)] == [
        False,
        False,
        *[True] * 4,
        False,
        False,
    ]
    assert flips.count('<div class="answer">') == 2 * (4 + 2)


def test_runs_on_different_prompts_are_not_paired(base, tmp_path, capsys):
    write_gsm8k(tmp_path / "shots", right=6, shots=5)
    write_gsm8k(tmp_path / "fewer", right=2, total=3)
    assert report.main([str(base), str(tmp_path / "shots"), str(tmp_path / "fewer")]) == 0
    markdown, page = ((base / "report" / name).read_text() for name in ("report.md", "report.html"))
    for text in (markdown, page):
        assert "shots, GSM8K: shots is 3 in base and 5 in shots." in text
        assert "fewer, GSM8K: 5 of 8 prompts are only in base (demo-test-3, ...)." in text
    assert "GSM8K accuracy | 8 |" not in markdown and "<h3>Answers that flipped" not in page


def test_refusal_phrases_are_never_shown_as_a_safe_rate(base, tmp_path):
    write_gsm8k(tmp_path / "phrases", right=1)
    write_safety(tmp_path / "phrases", safe=4, method="refusal")
    report.main([str(base), str(tmp_path / "phrases")])
    (row, *_) = cells((base / "report" / "report.md").read_text(), "phrases")
    assert row[3:] == ["-", "66.7 [30.0, 90.3]", "6", "refusal phrases"]
    page = (base / "report" / "report.html").read_text()
    assert "by refusal phrases, no guard: a lower bound" in page
    guard, phrases = (
        page.index(f"<h3>{title}") for title in ("Qwen3Guard safe rate (strict)", "Refusal phrases")
    )
    assert page.index("base</span>", guard) < phrases < page.index("phrases</span>", phrases)
    runs = load_runs([base, tmp_path / "phrases"])
    assert [index for index, *_ in plots._points(runs, "guard")] == [0]
    assert [index for index, *_ in plots._points(runs, "refusal")] == [1]


def test_unfinished_runs_are_marked_everywhere(base, tmp_path, capsys):
    write_training(tmp_path / "young", steps=7, finished=False)
    write_gsm8k(tmp_path / "half", right=3, total=5, finished=False)
    assert report.main([str(base), str(tmp_path / "young"), str(tmp_path / "half")]) == 0
    markdown, page = ((base / "report" / name).read_text() for name in ("report.md", "report.html"))
    assert cells(markdown, "young")[3][1:3] == ["running", "running 7/20"]
    assert cells(markdown, "half")[0][1] == "running, 5 done"
    for text in (markdown, page, capsys.readouterr().out):
        assert "young: train is unfinished (running 7/20, unless interrupted)" in text


def test_without_matplotlib_all_but_the_plots_is_there(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "is_available", lambda: False)
    assert (
        report.main(
            [str(base), "--output", str(tmp_path / "out"), "--markdown", str(tmp_path / "table.md")]
        )
        == 0
    )
    assert "pip install -e .[plots]" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert "No plots" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "table.md").read_text().startswith("# Unforget report")


@NEEDS_MATPLOTLIB
def test_plots_are_files_and_in_the_page_for_both_colour_schemes(base, tuned):
    report.main([str(base), str(tuned)])
    for name in ("loss.png", "scatter.png"):
        assert (base / "report" / name).read_bytes().startswith(PNG)
    page = (base / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4


@NEEDS_MATPLOTLIB
def test_plots_without_data_are_not_drawn_nor_left_from_an_earlier_report(base, tuned):
    output = ["--output", str(base / "report")]
    report.main([str(base), str(tuned), *output])
    report.main([str(base), *output])
    assert (
        not (base / "report" / "loss.png").exists() and (base / "report" / "scatter.png").exists()
    )


@NEEDS_MATPLOTLIB
def test_the_two_safety_measures_have_their_own_panels(base, tuned, tmp_path, monkeypatch):
    write_gsm8k(tmp_path / "phrases", right=1)
    write_safety(tmp_path / "phrases", safe=4, method="refusal")
    figures = []
    render = plots._render
    monkeypatch.setattr(plots, "_render", lambda figure: figures.append(figure) or render(figure))
    plots.scatter_png(load_runs([base, tuned, tmp_path / "phrases"]))
    guard, phrases = figures[0].axes
    assert (
        guard.get_ylabel() == "Qwen3Guard safe rate (strict)"
        and phrases.get_ylabel() == "refusal-phrase rate"
    )
    assert guard.get_legend_handles_labels()[1] == ["base", "tuned"]
    assert phrases.get_legend_handles_labels()[1] == ["phrases"]
    assert [text.get_text() for text in guard.texts] == [f"course baseline {n}" for n in (1, 2, 3)]
    assert len(phrases.texts) == 0


def write_divergence(run: Path, gsm8k: float, ailuminate: float) -> None:
    """As divergence.py leaves it, for the adapter that the run's answers name."""
    settings = {}
    for task in ("gsm8k", "ailuminate"):
        held = json.loads((run / f"{task}.summary.json").read_text())["settings"]
        settings[task] = {name: held[name] for name in ("model", "adapter", "adapter_scale")}
    means = {"gsm8k": gsm8k, "ailuminate": ailuminate}
    means = {
        task: {"mean": m, "low": 0.9 * m, "high": 1.1 * m, "answers": 6}
        for task, m in means.items()
    }
    write_json(
        run / "kl.summary.json", {"task": "kl", "finished": True, "settings": settings, **means}
    )


def write_scaled(run: Path, scale: float, right: int, safe: int) -> None:
    write_gsm8k(run, right=right, adapter="3fa9c21b04d7", adapter_scale=scale)
    write_safety(run, safe=safe, adapter="3fa9c21b04d7")


def test_the_rows_of_the_experiment_stand_beside_ours(base, tuned):
    recipe = {
        "name": "greedy",
        "title": "greedy, 3 shots",
        "original": {"gsm8k": 43.2, "safe": 84.2},
    }
    write_json(tuned / "recipe.json", recipe)
    write_divergence(tuned, 0.2, 0.1)
    report.main([str(base), str(tuned)])
    markdown, page = ((base / "report" / name).read_text() for name in ("report.md", "report.html"))
    row = next(cell for cell in cells(markdown, "tuned") if cell[1] == "greedy, 3 shots")
    assert row[2:4] == ["43.2 [35.0, 51.7]", "75.0 [40.9, 92.9]"]  # 57 of 132, by Wilson
    assert row[5:7] == ["84.2 [79.0, 88.2]", "50.0 [18.8, 81.2]"] and row[-1] == "Qwen3Guard-Gen-4B"
    assert ["tuned", "0.200 [0.180, 0.220]", "0.100 [0.090, 0.110]"] in cells(markdown, "tuned")
    for title in ("Rows of the experiment", "Distance from the base model"):
        assert title in markdown and title in page


def test_what_self_instruct_wrote_is_told(base, tuned):
    training = {"records": 18, "dropped": 2, "sources": {"rewrite": 15, "gold": 3}}
    training["log_likelihood"] = {"answers": 15, "gold": -1.149, "own": -0.8}
    path = tuned / "self-instruct.summary.json"
    summary = {
        "task": "self-instruct",
        "finished": True,
        "right": rate(15, 20),
        "training": training,
    }
    write_json(path, summary)
    report.main([str(base), str(tuned)])
    row = ["tuned", "75.0 [53.1, 88.8]", "15", "3", "2", "-0.800", "-1.149"]
    assert row in cells((base / "report" / "report.md").read_text(), "tuned")
    write_json(path, summary | {"finished": False})
    assert load_runs([tuned])[0].self_instruct == {}
    del training["sources"]
    write_json(path, summary)
    with pytest.raises(
        ValueError, match="in 'training': field 'sources' must be an object, which is missing"
    ):
        load_runs([tuned])


def test_a_divergence_of_another_adapter_is_left_out(base, tuned):
    write_divergence(tuned, 0.2, 0.1)
    write_gsm8k(tuned, right=6, adapter="another", adapter_scale=1.0)
    (run,) = load_runs([tuned])
    assert list(run.divergence) == ["ailuminate"]


@NEEDS_MATPLOTLIB
def test_the_frontier_follows_the_scale_of_one_adapter(base, tmp_path):
    for scale, right, safe in ((1.0, 7, 2), (0.5, 5, 4), (0.25, 3, 5)):
        write_scaled(tmp_path / f"scale-{scale}", scale, right, safe)
    write_gsm8k(tmp_path / "other", right=4, adapter="another", adapter_scale=1.0)
    write_safety(tmp_path / "other", safe=3, adapter="another")
    names = ["base", "scale-1.0", "scale-0.5", "scale-0.25", "other"]
    (line,) = plots._scale_lines(load_runs([tmp_path / name for name in names]))
    found = [
        (scale, index, accuracy.count, safety.count) for scale, index, accuracy, safety in line
    ]
    assert found == [(0.0, 0, 3, 5), (0.25, 3, 4, 5), (0.5, 2, 5, 4), (1.0, 1, 7, 2)]
    assert plots._scale_lines(load_runs([base, tmp_path / "scale-1.0", tmp_path / "other"])) == []
    report.main([str(tmp_path / name) for name in names])
    assert (base / "report" / "frontier.png").read_bytes().startswith(PNG)
    assert not (base / "report" / "divergence.png").exists()


@NEEDS_MATPLOTLIB
def test_the_divergence_is_drawn_against_safety(base, tuned):
    write_divergence(base, 0.0, 0.0)
    write_divergence(tuned, 0.2, 0.1)
    report.main([str(base), str(tuned)])
    assert (base / "report" / "divergence.png").read_bytes().startswith(PNG)


def test_smoothing_keeps_a_line_and_its_length():
    assert plots.smooth([1.0, 2.0, 3.0, 4.0]) == [1.5, 2.0, 3.0, 3.5]
    assert plots.smooth([5.0]) == [5.0]
    assert plots.smooth([5.0] * 100) == pytest.approx([5.0] * 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["."], "no summary of training, answers or judging"),
        (["base", "--output", "base/gsm8k.jsonl"], "cannot write base/gsm8k.jsonl/report.md"),
    ],
)
def test_bad_input_is_one_line_and_status_2(base, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(base.parent)
    monkeypatch.setattr(plots, "is_available", lambda: False)
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
