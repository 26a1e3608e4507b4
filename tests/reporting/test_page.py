"""The HTML page: what it shows, that it runs nothing, and that it fits paper and screens."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

import report
from reporting import plot_style
from tests.reporting.run_folders import (
    HAZARDS,
    write_ailuminate,
    write_gsm8k,
    write_harmless,
    write_json,
    write_training,
    write_verdicts,
)

ATTACK = (
    "<script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\"> & #### 3"
)
ADAPTER = {"adapter": "3fa9c21b04d7", "adapter_scale": 1.0}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch) -> None:
    monkeypatch.setattr(plot_style, "is_available", lambda: False)


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    write_gsm8k(tmp_path / "base", "rrwwwwwu")
    write_ailuminate(tmp_path / "base", "sssssu", judges=("qwen3guard", "refusal-phrases"))
    write_training(tmp_path / "tuned")
    write_gsm8k(tmp_path / "tuned", "rrrrrrwc", **ADAPTER)
    write_ailuminate(tmp_path / "tuned", "sssuuu", cut_off=2, **ADAPTER)
    return [tmp_path / "base", tmp_path / "tuned"]


def page_of(*folders: Path) -> str:
    assert report.main([*map(str, folders)]) == 0
    return (folders[0] / "report" / "report.html").read_text()


def test_the_page_leads_with_the_conclusion(folders):
    page = page_of(*folders)
    places = [page.index(text) for text in ('class="conclusion"', 'class="cautions"', "<table")]
    assert places == sorted(places)
    assert 'GSM8K accuracy <span class="share">25.0 → 75.0 %</span>' in page
    assert "no significant change" in page


def test_the_style_names_only_what_some_page_holds(folders, harmless):
    write_harmless(folders[0], "srs")
    (folders[1] / "ailuminate.qwen3guard.jsonl").unlink()  # for answers that are not judged
    (folders[1] / "ailuminate.qwen3guard.summary.json").unlink()
    style, body = page_of(*folders).split("</style>")
    style = re.sub(r"/\*.*?\*/", "", style[style.index("<style>") + 7 :], flags=re.S)
    selectors = re.sub(r"@[a-z]+[^{;]*|\{[^{}]*\}", " ", style)
    classes = set(re.findall(r"\.([a-z]+)", selectors))
    elements = set(re.findall(r"(?:^|[\s,>])([a-z]+[1-6]?)(?=[\s,.:{>\[])", selectors))
    held = set(" ".join(re.findall(r'class="\s*([^"]*)"', body)).split())
    assert (
        {"cautions", "settings", "swatch"} <= classes <= held | {"good", "bad", "figures", "wide"}
    )
    assert {"table", "summary", "h4"} <= elements <= {*re.findall(r"<([a-z]+[1-6]?)", body), "img",
                                                      "figure", "figcaption", "html"}  # fmt: skip


def test_the_page_is_self_contained_and_runs_nothing(tmp_path):
    write_ailuminate(tmp_path / "base", "su", responses=[ATTACK, ATTACK])
    page = page_of(tmp_path / "base")
    assert "&lt;script&gt;document.title" in page  # an answer is shown, as text
    assert "<script" not in page and "<img src=x" not in page and "<link" not in page
    assert re.findall(r"(?:src|srcset|href)=\"", page) == []
    assert "url(" not in page and "@import" not in page
    for text in ("default-src 'none'", "prefers-color-scheme: dark", "width=device-width"):
        assert text in page


def test_hazard_prompts_are_folded_and_settings_that_differ_are_marked(folders):
    page = page_of(*folders)
    hazards = page[page.index("AILuminate answers side by side") :]
    assert hazards.index("<details><summary>Show") < hazards.index("Hazard p0?")
    assert "safe → not safe" in hazards and "wrong → right" in page
    settings = page[page.index('class="settings"') :]
    assert re.search(
        r'<tr class="differs"><th scope="row">adapter ≠</th>\s*<td>none</td><td>3fa9c21b04d7</td>',
        settings,
    )
    assert re.search(
        r'<tr class="same"><th scope="row">shots</th>\s*<td>3</td><td>3</td>', settings
    )
    assert re.search(r'<tr class="same"><th scope="row">rank</th>\s*<td>-</td><td>8</td>', settings)


def test_flips_are_shown_with_both_answers(folders):
    page = page_of(*folders)
    flips = page[page.index("<h3>Answers that flipped") : page.index("<h2>In detail")]
    assert "wrong → right: 4 of 4 shown" in flips and "right → wrong" not in flips
    assert "safe → not safe: 2 of 2 shown" in flips and "which may be harmful" in flips
    shown = [f"<bdi>demo-test-{i}</bdi>" in flips for i in range(8)]
    assert shown == [False, False, True, True, True, True, False, False]
    assert flips.count('<div class="answer">') == 2 * (4 + 2)


def test_groups_with_one_answer_a_run_are_folded(tmp_path):
    write_ailuminate(tmp_path / "base", "su" * 3, judges=())
    path = tmp_path / "base" / "ailuminate.jsonl"
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace(f'"{HAZARDS[0]}"', '"rare & odd"')
    path.write_text("\n".join(lines) + "\n")
    write_verdicts(tmp_path / "base", "ailuminate", "qwen3guard", "su" * 3)
    page = page_of(tmp_path / "base")
    chart = page[page.index("AILuminate by hazard") : page.index("AILuminate by persona")]
    unfolded, folded = chart.split("<details>")
    assert "1 with one answer a run" in folded and "rare &amp; odd" in folded
    assert HAZARDS[0] in unfolded and "rare" not in unfolded


def test_hidden_characters_are_written_out_and_right_to_left_text_stays(tmp_path):
    arabic = "\u0645\u0631\u062d\u0628\u0627"
    responses = [f"\x1b[2J\u202egpj.exe\u2066 {arabic}\x00", "\ud800 alone"]
    write_ailuminate(tmp_path / "base", "su", responses=responses)
    page = page_of(tmp_path / "base")
    assert "\\x1b[2J\\u202egpj.exe\\u2066" in page and arabic in page and "\\ud800" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def test_long_answers_and_many_flips_do_not_make_the_page_large(tmp_path):
    long = "word " * 4000
    for name, labels in (("base", "s" * 150), ("tuned", "u" * 150)):
        write_ailuminate(tmp_path / name, labels, responses=[f"{long}{i}" for i in range(150)])
    page = page_of(tmp_path / "base", tmp_path / "tuned")
    assert len(page) < 700_000
    assert "100 of 150 shown" in page and "more characters]" in page


def chromium(page: Path, *options: str) -> str:
    profile = page.parent / "profile"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120)
    return done.stdout.decode(errors="replace")


NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.mark.slow
@NEEDS_BROWSER
def test_a_browser_runs_nothing_that_came_with_the_runs(tmp_path):
    """Script tags and the like in answers, prompts, ids, hazards, run, model and adapter names."""
    evil = f"{ATTACK}\x1b\u202e{{{{7*7}}}}</td></table></style><style>*{{display:none}}"
    name = "<img src=x onerror=document.title='hit'>\u202e"
    folders = [tmp_path / name, tmp_path / "tuned"]
    for folder, labels in zip(folders, ("sss", "uus"), strict=True):
        write_training(folder, note=evil)
        write_gsm8k(folder, "rw", model=evil, adapter=evil)
        write_ailuminate(folder, labels, judges=(), responses=[evil] * 3, model=evil)
        path = folder / "ailuminate.jsonl"
        text = path.read_text()
        for word in ('"cse"', '"p0"', '"Hazard p1?"', '"skilled"'):
            text = text.replace(word, json.dumps(evil + word))
        path.write_text(text)
        write_verdicts(folder, "ailuminate", "qwen3guard", labels, model=evil)
    page_of(*folders)
    page = folders[0] / "report" / "report.html"
    copy = tmp_path / "page.html"
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    copy.write_text(policy.sub("", page.read_text()))  # escaping must do without it
    seen = chromium(copy, "--dump-dom", "--virtual-time-budget=3000")
    assert "<title>Unforget: " in seen and "<title>hit" not in seen
    assert not re.search(r"<(script|img)", seen)
    assert "49" not in re.findall(r"\{\{.*?\}\}|49", unescape(seen))
    assert seen.count("<style>") == 1 and "</html>" in seen


@pytest.mark.slow
@NEEDS_BROWSER
def test_the_page_fits_phones_tablets_and_laptops(folders, harmless, tmp_path):
    """Nothing is cut off at the side, not even a table within a scroller."""
    write_harmless(folders[0], "srs")
    write_harmless(folders[1], "srr", **ADAPTER)
    recipe = {"title": "greedy, 3 shots, 1024 new tokens (1+1 epochs)"}
    write_json(folders[1] / "recipe.json", recipe | {"original": {"gsm8k": 43.2, "safe": 84.2}})
    page = page_of(*folders)
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    (tmp_path / "page.html").write_text(policy.sub("", page))
    measure = """<body style="margin:0"><pre id="out"></pre><script>
    const out = document.getElementById("out"), widths = [420, 718, 1200];
    for (const width of widths) {
      const frame = document.createElement("iframe");
      frame.src = "page.html"; frame.style = `border:0;height:900px;width:${width}px`;
      frame.onload = () => {
        const inner = frame.contentDocument, boxes = [inner.documentElement];
        boxes.push(...inner.querySelectorAll(".scroll"));
        const wide = boxes.filter(box => box.scrollWidth > box.clientWidth + 1);
        out.textContent += `${width}: ${wide.length} of ${boxes.length};`;
      };
      document.body.append(frame);
    }</script>"""
    (tmp_path / "measure.html").write_text(measure)
    options = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    seen = chromium(tmp_path / "measure.html", *options)
    found = dict(re.findall(r"(\d+): (\d+) of \d+;", seen))
    assert found == {"420": "0", "718": "0", "1200": "0"}


@pytest.mark.slow
@NEEDS_BROWSER
def test_the_page_prints(folders, tmp_path):
    page_of(*folders)
    paper = tmp_path / "page.pdf"
    chromium(folders[0] / "report" / "report.html", f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 10_000
