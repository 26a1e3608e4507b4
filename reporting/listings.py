"""Wrong answers and flipped answers as text for a terminal, all of them or those of one group."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from common.errors import UserError
from reporting.comparison import compare_runs
from reporting.load_runs import Run
from reporting.plain_text import one_line, visible
from reporting.run_parts import Answer
from reporting.sample_answers import Sample, flip_samples, judged_answers
from reporting.scores import Score, headline_scores

INDENT = "    "
Filter = Mapping[str, str]  # group fields, or "task", and the value that is wanted


def parse_filter(text: str) -> tuple[str, str]:
    """`hazard=vcr` -> ("hazard", "vcr"). UserError for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"--only {text}: expected FIELD=VALUE, as in hazard=S1 or task=gsm8k")
    return name, value


def check_filter(runs: Sequence[Run], only: Filter) -> None:
    """UserError, with the nearest one, for a field or a value that no answer here has."""
    known: dict[str, set[str]] = {"task": set()}
    for run in runs:
        for name, answers in run.answers.items():
            known["task"].add(name)
            for answer in answers.records:
                for field, value in answer.groups.items():
                    known.setdefault(field, set()).add(value)
    for field, value in only.items():
        if field not in known:
            raise UserError(f"--only {field}={value}: the fields here are {', '.join(known)}")
        if value not in known[field]:
            close = get_close_matches(value, known[field], n=1, cutoff=0)
            hint = f"; the nearest is {one_line(close[0])}" if close else ""
            raise UserError(f"--only {field}={value}: no answer here has it{hint}")


def list_wrong(runs: Sequence[Run], count: int, only: Filter) -> str:
    """The first `count` bad answers by id of each run, in every main score."""
    blocks: list[str] = []
    for score in headline_scores(runs):
        for index, run in enumerate(runs):
            if score.task.name in run.answers and _takes_task(score, only):
                blocks += _wrong_of(index, runs, score, count, only)
    return "\n\n".join(blocks) or "No such answers."


def _wrong_of(
    index: int, runs: Sequence[Run], score: Score, count: int, only: Filter
) -> Iterator[str]:
    run = runs[index]
    outcomes = score.outcomes(run)
    asked = {answer.id: answer for answer in run.answers[score.task.name].records}
    wrong = [name for name in sorted(asked) if outcomes.get(name) is False]
    chosen = [name for name in wrong if _is_chosen(asked[name], only)]
    if not chosen:
        return
    shown = chosen[:count]
    judged = judged_answers(index, run, score.task, score, shown)
    yield (
        f"== {one_line(run.name)}, {score.title}: {len(chosen):,} {score.bad}, "
        f"{len(shown):,} of them shown"
    )
    for name in shown:
        prompt, detail = asked[name].prompt, asked[name].detail
        yield format_sample(Sample(score.bad, name, prompt, detail, [judged[name]]), runs)


def list_flips(runs: Sequence[Run], only: Filter) -> str:
    """Every answer that flipped between the first run and another, with both answers."""
    comparisons = compare_runs(runs)
    blocks: list[str] = []
    for pair in comparisons.pairs:
        if not _takes_task(pair.score, only):
            continue
        asked = {a.id: a for a in runs[0].answers[pair.score.task.name].records}
        good, bad = pair.score.good, pair.score.bad
        for ids, kind in ((pair.lost, f"{good} → {bad}"), (pair.gained, f"{bad} → {good}")):
            chosen = [name for name in ids if _is_chosen(asked[name], only)]
            if not chosen:
                continue
            name = one_line(runs[pair.run].name)
            blocks.append(
                f"== {name}, {pair.score.title}, {kind}: {len(chosen):,} of {pair.total:,}"
            )
            for sample in flip_samples(runs, pair, chosen, kind):
                blocks.append(format_sample(sample, runs))
    blocks += [f"Not paired: {one_line(text)}" for text in comparisons.refused]
    return "\n\n".join(blocks) or "No answer flipped."


def _takes_task(score: Score, only: Filter) -> bool:
    return only.get("task", score.task.name) == score.task.name


def _is_chosen(answer: Answer, only: Filter) -> bool:
    return all(answer.groups.get(field) == only[field] for field in only if field != "task")


def format_sample(sample: Sample, runs: Sequence[Run]) -> str:
    """A prompt and its answers, with nothing in them that steers a terminal."""
    detail = f" ({one_line(sample.detail)})" if sample.detail else ""
    lines = [f"{one_line(sample.id)}{detail}", textwrap.indent(visible(sample.prompt), INDENT)]
    for answer in sample.answers:
        lines.append(f"  {one_line(runs[answer.run].name)}: {one_line(answer.verdict)}")
        lines.append(textwrap.indent(visible(answer.text) or "(empty)", f"{INDENT}| "))
    return "\n".join(lines)
