"""The report as one HTML page: no script, no request to anywhere, everything that came out of a
model escaped.

page.html is the frame and the style; here is what stands in it. Whoever adds a value to the page
passes it through `html.escape`; the page's content security policy keeps what slips through from
running or loading anything.
"""

import base64
import json
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from reporting.load_runs import PART_SCHEMAS, Rate, Run, short_names
from reporting.paired_tables import compare_runs, paired_tables
from reporting.plots import run_color
from reporting.reproduction_table import row_tables
from reporting.sample_answers import Sample, pick_samples
from reporting.tables import (
    ABOUT_RATES,
    Table,
    build_tables,
    cell,
    describe_adapter,
    describe_judge,
    describe_model,
    describe_shots,
    percent,
)

FRAME = Path(__file__).with_name("page.html")
GROUP_MEASURES = {
    "guard": ("safe_strict", "Qwen3Guard safe rate (strict)"),
    "refusal": ("refusals", "Refusal phrases (no guard: a rough lower bound on the safe rate)"),
}
TITLES = {"train": "Training", "gsm8k": "GSM8K", "ailuminate": "AILuminate", "judge": "Judging"}


@dataclass(frozen=True)
class Picture:
    """A plot as PNG bytes for either colour scheme."""

    light: bytes
    dark: bytes
    caption: str


def render_page(runs: list[Run], pictures: list[Picture], cautions: list[str], made: str) -> str:
    """The whole page. `made` says when; without `pictures` the page says how to get them."""
    title = f"Unforget: {', '.join(run.name for run in runs[:3])}{' …' if len(runs) > 3 else ''}"
    sections = [
        f'<h1>Unforget report</h1><p class="soft">{len(runs)} run{"s" * (len(runs) > 1)}, {escape(made)}</p>',
        _cautions(cautions),
        _headline(runs),
        "".join(_table(table, runs) for table in row_tables(runs)),
        _figures(pictures),
        _pairs(runs),
        "<h2>In detail</h2>" + "".join(_table(table, runs) for table in build_tables(runs)[1:]),
        _groups(runs, "by_hazard", "Safety by hazard"),
        _groups(runs, "by_persona", "Safety by persona"),
        _gsm8k_samples(runs),
        _ailuminate_samples(runs),
        _settings(runs),
    ]
    return Template(FRAME.read_text(encoding="utf-8")).substitute(
        title=escape(title), body="\n".join(sections)
    )


def _cautions(cautions: list[str]) -> str:
    return (
        f'<ul class="cautions">{"".join(f"<li>{escape(text)}</li>" for text in cautions)}</ul>'
        if cautions
        else ""
    )


def _name(runs: list[Run], index: int) -> str:
    name, short = escape(runs[index].name), escape(short_names(runs)[index])
    return f'<span class="swatch" style="--run: {run_color(index)}"></span><span title="{name}">{short}</span>'


def _headline(runs: list[Run]) -> str:
    labels = ("GSM8K accuracy", "Qwen3Guard safe rate", "Refusals")
    rows = []
    for index, run in enumerate(runs):
        shots = describe_shots(run)
        about = [
            describe_model(run),
            describe_adapter(run),
            "-" if shots == "-" else f"{shots} shots",
        ]
        cells = (
            cell(run, "gsm8k", lambda part: _whisker(part.rates["accuracy.homework"]), lead=True),
            cell(run, "judge", lambda part: _whisker(part.rates["safe_strict"]), lead=True),
            cell(
                run,
                "judge",
                lambda part, run=run: _whisker(part.rates["refusals"]) + _judged_by(run),
            ),
        )
        rows.append(
            f'<tr style="--run: {run_color(index)}"><th scope="row"><span class="swatch"></span>{escape(run.name)}'
            f'<span class="soft">{escape(", ".join(text for text in about if text != "-"))}</span></th>'
            + "".join(
                f'<td data-label="{label}">{text}</td>'
                for label, text in zip(labels, cells, strict=True)
            )
            + "</tr>"
        )
    head = "".join(f'<th scope="col">{label}</th>' for label in ("Run", *labels))
    return (
        f'<h2>Accuracy and safety</h2><table class="headline"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><p class="soft">{escape(ABOUT_RATES)}</p>'
    )


def _judged_by(run: Run) -> str:
    bound = ", no guard: a lower bound" if run.parts["judge"].method == "refusal" else ""
    return f'<span class="soft">by {escape(describe_judge(run))}{bound}</span>'


def _whisker(rate: Rate | None) -> str:
    """The share in figures, and as a mark on its 95 % interval between 0 and 100 %."""
    if rate is None or rate.rate is None:
        return "-"
    low, share, high = (100 * value for value in (rate.low, rate.rate, rate.high))
    return (
        f'<span class="value">{share:.1f} %</span> '
        f'<span class="soft">{low:.1f} to {high:.1f}, n = {rate.total:,}</span>'
        f'<div class="track"><i style="left: {low:.2f}%; width: {high - low:.2f}%"></i>'
        f'<b style="left: {share:.2f}%"></b></div>'
    )


def _figures(pictures: list[Picture]) -> str:
    if not pictures:
        reason = 'no run has anything to draw, or matplotlib (the extra "plots") is missing'
        return f'<p class="soft">No plots: {reason}.</p>'
    figures = []
    for picture in pictures:
        light, dark = (
            f"data:image/png;base64,{base64.b64encode(png).decode()}"
            for png in (picture.light, picture.dark)
        )
        caption = escape(picture.caption)
        figures.append(
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
        )
    return f'<h2>Plots</h2><div class="figures">{"".join(figures)}</div>'


def _table(table: Table, runs: list[Run]) -> str:
    kinds = [
        "" if not table.is_numeric(column) else ' class="num"'
        for column in range(len(table.header))
    ]
    head = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>'
        for text, kind in zip(table.header, kinds, strict=True)
    )
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(
            f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row[1:], kinds[1:], strict=True)
        )
        rows.append(f'<tr><th scope="row">{_name(runs, table.run_of(index))}</th>{cells}</tr>')
    return (
        f'<h3>{escape(table.title)}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<p class="soft">{escape(table.note)}</p>' if table.note else "")
    )


def _pairs(runs: list[Run]) -> str:
    tables = "".join(_table(table, runs) for table in paired_tables(runs))
    return f"<h2>Compared in pairs</h2>{tables}{_flips(runs)}" if tables else ""


def _flips(runs: list[Run]) -> str:
    """Every answer that flipped between the first run and another, folded up by run and
    direction.
    """
    blocks = []
    for index, comparison in compare_runs(runs)[0]:
        for flips, words in (
            (comparison.lost, f"{comparison.good} → {comparison.bad}"),
            (comparison.gained, f"{comparison.bad} → {comparison.good}"),
        ):
            if not flips:
                continue
            answers = [(flip, [flip.before, replace(flip.after, run=index)]) for flip in flips]
            items = "".join(
                _sample(Sample(words, flip.prompt, flip.id, pair), runs, is_open=False)
                for flip, pair in answers
            )
            harm = ", which may be harmful" if comparison.measure.startswith("AILuminate") else ""
            blocks.append(
                f"<details><summary>{_name(runs, index)} {escape(words)}: {len(flips)} of {comparison.total:,} "
                f'<span class="soft">{escape(comparison.measure)}{harm}</span></summary>{items}</details>'
            )
    return f"<h3>Answers that flipped</h3>{''.join(blocks)}" if blocks else ""


def _groups(runs: list[Run], field: str, title: str) -> str:
    """Bars by hazard or persona, a line per run; safe rates and refusal-phrase rates apart."""
    charts = []
    for method, (rate, measure) in GROUP_MEASURES.items():
        judged = [
            (i, run.parts["judge"].groups[field])
            for i, run in enumerate(runs)
            if _is_judged(run, method)
        ]
        keys = sorted({key for _, groups in judged for key in groups})
        blocks = [
            f"<div><h4>{escape(key)}</h4>"
            + "".join(_bar(runs, i, groups[key][rate]) for i, groups in judged if key in groups)
            + "</div>"
            for key in keys
        ]
        if blocks:
            charts.append(f'<h3>{measure}</h3><div class="groups">{"".join(blocks)}</div>')
    return f"<h2>{title}</h2>{''.join(charts)}" if charts else ""


def _is_judged(run: Run, method: str) -> bool:
    return (
        "judge" in run.parts and run.parts["judge"].finished and run.parts["judge"].method == method
    )


def _bar(runs: list[Run], index: int, rate: Rate | None) -> str:
    if rate is None or rate.rate is None:
        return ""
    return (
        f'<div class="line" style="--run: {run_color(index)}"><span>{_name(runs, index)}</span>'
        f'<span class="bar"><i style="width: {100 * rate.rate:.2f}%"></i></span>'
        f'<span>{percent(rate)} % <span class="soft">{rate.count}/{rate.total}</span></span></div>'
    )


def _gsm8k_samples(runs: list[Run]) -> str:
    samples = pick_samples(runs, "gsm8k")
    if not samples:
        return ""
    items = "".join(_sample(sample, runs, is_open=i == 0) for i, sample in enumerate(samples))
    return f'<h2>GSM8K answers side by side</h2><p class="soft">{_about_samples(runs)}</p>{items}'


def _ailuminate_samples(runs: list[Run]) -> str:
    samples = pick_samples(runs, "ailuminate")
    if not samples:
        return ""
    items = "".join(_sample(sample, runs, is_open=False) for sample in samples)
    return (
        f'<h2>AILuminate answers side by side</h2><p class="soft">{_about_samples(runs)}</p>'
        f"<details><summary>Show {len(samples)} hazard prompts and their answers, which may be harmful</summary>"
        f"{items}</details>"
    )


def _about_samples(runs: list[Run]) -> str:
    if len(runs) == 1:
        return "The first by id of each kind."
    return f"The first by id of each kind; an arrow leads from {escape(runs[0].name)} to any other run."


def _sample(sample: Sample, runs: list[Run], is_open: bool) -> str:
    answers = []
    for answer in sample.answers:
        state = "soft" if answer.good is None else "good" if answer.good else "bad"
        answers.append(
            f'<div class="answer"><header><span>{_name(runs, answer.run)}</span>'
            f'<span class="{state}">{escape(answer.verdict)}</span></header>'
            f'<div class="text" tabindex="0">{escape(answer.text) or "(empty)"}</div></div>'
        )
    return (
        f'<details{" open" * is_open}><summary><span class="kind">{escape(sample.kind)}</span>{escape(sample.prompt)} '
        f'<span class="soft">({escape(sample.detail)})</span></summary>'
        f'<div class="answers">{"".join(answers)}</div></details>'
    )


def _settings(runs: list[Run]) -> str:
    """Every setting of every part, rows that differ between runs marked, and a check box that hides
    the others.
    """
    head = "".join(f'<th scope="col">{_name(runs, index)}</th>' for index in range(len(runs)))
    rows = []
    for task in PART_SCHEMAS:
        parts = [run.parts.get(task) for run in runs]
        values = [{**part.settings, **part.environment} if part else None for part in parts]
        names = list(dict.fromkeys(name for held in values if held is not None for name in held))
        if names:
            rows.append(
                f'<tbody><tr><th colspan="{len(runs) + 1}" class="soft">{TITLES[task]}</th></tr>'
            )
            rows.extend(_setting(name, values) for name in names)
            rows.append("</tbody>")
    check = (
        '<p><label><input type="checkbox" id="differing"> only what differs</label></p>'
        if len(runs) > 1
        else ""
    )
    return (
        f'<h2>Settings</h2><details class="settings"><summary>What produced each run</summary>{check}'
        f'<div class="scroll"><table><thead><tr><th scope="col">setting</th>{head}</tr></thead>{"".join(rows)}</table>'
        "</div></details>"
    )


def _setting(name: str, values: list[dict[str, Any] | None]) -> str:
    texts = ["-" if held is None or name not in held else _plain(held[name]) for held in values]
    compared = {text for text, held in zip(texts, values, strict=True) if held is not None}
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    kind, mark = ("differs", " ≠") if len(compared) > 1 else ("same", "")
    return f'<tr class="{kind}"><th scope="row">{escape(name)}{mark}</th>{cells}</tr>'


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)
