"""The same prompts answered by several runs: which of them a report shows side by side."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from data.task import Task
from reporting.comparison import Comparison
from reporting.load_runs import Run
from reporting.run_parts import Answer, Verdict
from reporting.scores import Score, judge_title, judges_of, primary_score

PER_KIND = 2  # prompts shown of each kind
NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer and what was made of it."""

    run: int  # index into the report's runs
    text: str
    verdict: str  # in words, for the reader
    good: bool | None  # None where nothing has judged it


@dataclass(frozen=True)
class Sample:
    """One prompt and an answer per run. `kind` compares the first run with the others."""

    kind: str
    id: str
    prompt: str
    detail: str
    answers: list[JudgedAnswer]


def judged_answers(
    index: int, run: Run, task: Task, score: Score | None, names: Collection[str]
) -> dict[str, JudgedAnswer]:
    """By id, what the report's run number `index` answered to `names`, good or bad by `score`."""
    outcomes = score.outcomes(run) if score else {}
    wanted = frozenset(names)
    words = _verdicts_in_words(run, task, wanted)
    judged = {}
    for answer in run.answers[task.name].records:
        if answer.id not in wanted:
            continue
        good = outcomes.get(answer.id)
        verdict = words.get(answer.id, NOT_JUDGED)
        if score and score.judge is None and good is not None:
            verdict = _score_in_words(answer, score.good if good else score.bad)
        judged[answer.id] = JudgedAnswer(index, answer.response, verdict, good)
    return judged


def _score_in_words(answer: Answer, outcome: str) -> str:
    if answer.gold is None:
        return outcome
    return f"{outcome}: {answer.prediction or 'no number'}"


def _verdicts_in_words(run: Run, task: Task, names: frozenset[str]) -> dict[str, str]:
    """By id, what every judge said of `names`, each named where there are several."""
    judges = judges_of([run], task)
    words: dict[str, list[str]] = {}
    for judge in judges:
        for verdict in run.judgements[task.name][judge].records:
            if verdict.fields["id"] not in names:
                continue
            said = verdict_in_words(verdict)
            text = f"{judge_title(judge)}: {said}" if len(judges) > 1 else said
            words.setdefault(verdict.fields["id"], []).append(text)
    return {name: "; ".join(said) for name, said in words.items()}


def verdict_in_words(verdict: Verdict) -> str:
    """`Unsafe: Violent, PII, not refused`; `unparsed` if no label could be read."""
    fields = verdict.fields
    said = []
    if fields["safety"]:
        categories = ", ".join(fields["categories"])
        said.append(f"{fields['safety']}: {categories}" if categories else fields["safety"])
    if fields["refusal"]:
        said.append("refused" if fields["refusal"] == "Yes" else "not refused")
    return ", ".join(said) or "unparsed"


def pick_samples(runs: Sequence[Run], task: Task) -> list[Sample]:
    """At most PER_KIND prompts of each kind: lost ("right → wrong"), gained, good, bad throughout.

    Only prompts that all runs with any answers share are shown, and of those always the first by
    id, so that nobody picks them and a later report shows the same ones. Empty if there are none.
    """
    answered = [i for i, run in enumerate(runs) if _has_answers(run, task)]
    if not answered:
        return []
    score = primary_score(runs, task)
    first, *others = answered
    records = {i: {a.id: a for a in runs[i].answers[task.name].records} for i in answered}
    outcomes = {i: score.outcomes(runs[i]) if score else {} for i in answered}
    silent = score.silent_on(runs[first]) if score else set()
    chosen: dict[int, list[str]] = {}  # by kind
    for name in sorted(records[first].keys() - silent):
        asked = records[first][name]
        if all(_same_prompt(records[i].get(name), asked) for i in others):
            names = chosen.setdefault(_kind([outcomes[i].get(name) for i in answered]), [])
            if len(names) < PER_KIND:
                names.append(name)
    shown = {name for names in chosen.values() for name in names}
    judged = {i: judged_answers(i, runs[i], task, score, shown) for i in answered}
    samples = []
    for kind in sorted(chosen):
        for name in chosen[kind]:
            asked = records[first][name]
            answers = [judged[i][name] for i in answered]
            samples.append(
                Sample(_kind_name(kind, score), name, asked.prompt, asked.detail, answers)
            )
    return samples


def _has_answers(run: Run, task: Task) -> bool:
    return task.name in run.answers and bool(run.answers[task.name].records)


def _same_prompt(other: Answer | None, asked: Answer) -> bool:
    return other is not None and other.prompt == asked.prompt


def _kind(good: Sequence[bool | None]) -> int:
    """0 lost by another run, 1 gained, 2 good and 3 bad throughout, 4 not judged everywhere."""
    first, *others = good
    if None in good:
        return 4
    if first:
        return 2 if all(others) else 0
    return 1 if any(others) else 3


def _kind_name(kind: int, score: Score | None) -> str:
    if score is None:
        return NOT_JUDGED
    good, bad = score.good, score.bad
    return (f"{good} → {bad}", f"{bad} → {good}", good, bad, NOT_JUDGED)[kind]


def flip_samples(
    runs: Sequence[Run], pair: Comparison, ids: Sequence[str], kind: str
) -> list[Sample]:
    """The answers of both runs to each of these prompts, in the order of `ids`."""
    task = pair.score.task
    judged: Mapping[int, dict[str, JudgedAnswer]] = {
        index: judged_answers(index, runs[index], task, pair.score, ids) for index in (0, pair.run)
    }
    asked = {answer.id: answer for answer in runs[0].answers[task.name].records}
    samples = []
    for name in ids:
        answers = [judged[0][name], judged[pair.run][name]]
        samples.append(Sample(kind, name, asked[name].prompt, asked[name].detail, answers))
    return samples
