"""The report as one HTML page: no script, no request to anywhere, all text of others escaped.

page.html (a jinja2 template with autoescape) is the frame, page.css the style; here is what stands
in it. The page's content security policy keeps what slips through from running or loading anything.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting.comparison import Comparison, Comparisons
from reporting.conclusion import Conclusion
from reporting.descriptions import describe_runs
from reporting.headline import TITLE as HEADLINE
from reporting.headline import make_headline
from reporting.load_runs import Run, short_names
from reporting.paired_tables import SECTION as PAIRED_SECTION
from reporting.plain_text import shortened, visible
from reporting.plot_style import run_color
from reporting.plots import Picture
from reporting.rates import Rate
from reporting.reproduction_table import SECTION as ROWS_SECTION
from reporting.run_parts import Part
from reporting.sample_answers import Sample, flip_samples, pick_samples
from reporting.scores import headline_scores, judge_title
from reporting.setting_differences import plain_value
from reporting.tables import EMPTY, Table

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent
TEXT_BYTES = 400_000  # of all answers on the page together
LONGEST_TEXT = 3_000  # characters of an answer, and what is left of them where there are many
SHORTEST_TEXT = 300
MOST_COLUMNS = 10  # that a tablet, or a sheet of paper, has room for
MOST_FLIPS = 100  # on the page, of all runs together


@dataclass(frozen=True)
class Chart:
    """A score by the values of one of the task's groups, for each of them by the run's index."""

    heading: str
    title: str
    rates: dict[str, dict[int, Rate]]
    keys: list[str]
    folded: list[str] = field(default_factory=list)  # with no more than one answer a run


@dataclass(frozen=True)
class FlipBlock:
    run: int
    kind: str
    total: str
    about: str
    samples: list[Sample]


@dataclass(frozen=True)
class SampleBlock:
    title: str
    harmful: bool
    samples: list[Sample]


@dataclass(frozen=True)
class SettingRow:
    name: str
    values: list[str]
    differs: bool


@dataclass(frozen=True)
class PartSettings:
    name: str
    rows: list[SettingRow]


@dataclass(frozen=True)
class PageContent:
    """Content of the page, as report.py has put it together."""

    runs: Sequence[Run]
    comparisons: Comparisons
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    conclusions: Sequence[Conclusion]
    cautions: Sequence[str]
    made: str  # when, and by which version


def render_page(content: PageContent) -> str:
    """The whole page; without pictures it says how to get them."""
    runs = content.runs
    flips, samples = _flip_blocks(runs, content.comparisons), _sample_blocks(runs)
    lists = [block.samples for block in flips] + [block.samples for block in samples]
    answers = sum(len(sample.answers) for shown in lists for sample in shown)
    about_all, about_runs = describe_runs(runs)
    return _template().render(
        names=[run.name for run in runs],
        short_names=short_names(runs),
        colors=[run_color(index) for index in range(len(runs))],
        made=content.made,
        conclusions=content.conclusions,
        cautions=content.cautions,
        headline=make_headline(runs),
        about_all=about_all,
        about_runs=about_runs,
        first_tables=[table for table in content.tables if table.section == ROWS_SECTION],
        pictures=[_embedded(picture) for picture in content.pictures],
        sections=_sections(content.tables),
        most_columns=MOST_COLUMNS,
        flips_section=PAIRED_SECTION,
        flips=flips,
        charts=_charts(runs),
        samples=samples,
        settings=_settings(runs),
        text_length=min(LONGEST_TEXT, max(SHORTEST_TEXT, TEXT_BYTES // max(answers, 1))),
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show_hidden,
    )
    environment.filters["shortened"] = shortened
    return environment.get_template("page.html")


def _show_hidden(value: Any) -> Any:
    """jinja2 calls this with every value before it is escaped; what is HTML already stays."""
    return visible(value) if type(value) is str else value


def _embedded(picture: Picture) -> dict[str, str]:
    pngs = {"light": picture.light, "dark": picture.dark}
    embedded = {"caption": picture.caption}
    for scheme, png in pngs.items():
        embedded[scheme] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return embedded


def _sections(tables: Sequence[Table]) -> list[tuple[str, list[Table]]]:
    """The tables under their headings, but those that the page shows in another form or place."""
    sections: dict[str, list[Table]] = {}
    for table in tables:
        if table.section not in (HEADLINE, ROWS_SECTION):
            sections.setdefault(table.section, []).append(table)
    return list(sections.items())


def _flip_blocks(runs: Sequence[Run], comparisons: Comparisons) -> list[FlipBlock]:
    """Answers that flipped between the first run and another, by run and direction."""
    directions: list[tuple[Comparison, tuple[str, ...], str]] = []
    for pair in comparisons.pairs:
        good, bad = pair.score.good, pair.score.bad
        if pair.lost:
            directions.append((pair, pair.lost, f"{good} → {bad}"))
        if pair.gained:
            directions.append((pair, pair.gained, f"{bad} → {good}"))
    each = max(1, MOST_FLIPS // max(len(directions), 1))
    blocks = []
    for pair, ids, kind in directions:
        samples = flip_samples(runs, pair, ids[:each], kind)
        about = pair.score.title + (", which may be harmful" if pair.score.is_safety else "")
        blocks.append(FlipBlock(pair.run, kind, f"{len(ids):,}", about, samples))
    return blocks


def _charts(runs: Sequence[Run]) -> list[Chart]:
    """Bars for every score of a judge, by each of the fields that group the task's answers."""
    charts = []
    for score in headline_scores(runs):
        for name in score.task.groups if score.judge is not None else ():
            rates: dict[str, dict[int, Rate]] = {}
            for index, run in enumerate(runs):
                judgement = run.judgement(score.task.name, score.judge or "")
                groups = judgement.groups.get(name, {}) if judgement else {}
                for key, held in groups.items():
                    if score.measure.path in held:
                        rates.setdefault(key, {})[index] = held[score.measure.path]
            keys = sorted(key for key in rates if any(r.total > 1 for r in rates[key].values()))
            folded = sorted(rates.keys() - set(keys))
            title = f"{score.measure.title}, {judge_title(score.judge or '')}"
            if rates:
                charts.append(Chart(f"{score.task.title} by {name}", title, rates, keys, folded))
    return charts


def _sample_blocks(runs: Sequence[Run]) -> list[SampleBlock]:
    tasks = dict.fromkeys(name for run in runs for name in run.answers)
    blocks = []
    for name in tasks:
        task = next(run.answers[name].task for run in runs if name in run.answers)
        samples = pick_samples(runs, task)
        if samples:
            blocks.append(SampleBlock(task.title, task.kind == "safety", samples))
    return blocks


def _settings(runs: Sequence[Run]) -> list[PartSettings]:
    """Every setting of every part, and the environment it was made in."""
    by_run: list[dict[str, Part]] = [{part.name: part for part in run.parts()} for run in runs]
    names = dict.fromkeys(name for parts in by_run for name in parts)
    settings = []
    for name in names:
        values: list[dict[str, Any] | None] = []
        for parts in by_run:
            part = parts.get(name)
            values.append({**part.settings, **part.environment} if part else None)
        fields = dict.fromkeys(key for held in values if held is not None for key in held)
        settings.append(PartSettings(name, [_setting_row(key, values) for key in fields]))
    return settings


def _setting_row(name: str, values: Sequence[dict[str, Any] | None]) -> SettingRow:
    texts, compared = [], set()
    for held in values:
        text = EMPTY if held is None or name not in held else plain_value(held[name])
        texts.append(text)
        if held is not None:
            compared.add(text)
    return SettingRow(name, texts, len(compared) > 1)
