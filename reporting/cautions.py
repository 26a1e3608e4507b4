"""Cautions for a reader of a report, before its numbers are believed or compared."""

from collections.abc import Iterator, Sequence

from data.registry import TASKS, tasks_of_kind
from data.task import Task
from reporting.load_runs import Run
from reporting.run_parts import Judgement, Part, Training
from reporting.scores import (
    Score,
    headline_scores,
    judge_title,
    judges_of,
    over_refusal_tasks,
    without_over_refusal,
)
from reporting.setting_differences import (
    COST_SETTINGS,
    describe_differences,
    group_by_value,
    prompt_differences,
    setting_differences,
    task_setting_differences,
)

FEW = 100  # at 50 %, a share of fewer answers is known to more than 10 points at best
MOST_NAMES = 3  # of runs that are told apart in a sentence
MANY_CUT_OFF = 0.1  # share of the judged answers
FEW_OWN = 0.5  # share of a self-instruct file


def find_cautions(runs: Sequence[Run]) -> list[str]:
    """Sentences about what in `runs` is not what it seems, or must not be compared at once.

    What is true of several runs is said once, with their names.
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        for text in _run_cautions(run):
            found.setdefault(text, []).append(run.name)
    cautions = [f"{', '.join(names)}: {text}" for text, names in found.items()]
    return [*cautions, *_cautions_on_all(runs)]


def _run_cautions(run: Run) -> Iterator[str]:
    for part in run.parts():
        yield from _progress_cautions(part)
    yield from _left_out(run)
    yield from _judging_cautions(run)
    yield from _adapter_cautions(run)
    yield from _task_differences(run)
    yield from _prompt_differences(run)
    written = run.self_instruct
    if written and written.records and written.own < FEW_OWN * written.records:
        yield (
            f"{written.own} of the {written.records} answers that self-instruct wrote are the "
            "model's own, the others the gold ones: this is hardly self-instruct."
        )


def _progress_cautions(part: Part) -> Iterator[str]:
    if not part.finished:
        yield (
            f"{part.name} is unfinished ({part.progress}, unless interrupted); its results are "
            "left out."
        )
    elif part.done != part.total:
        unit = "steps" if isinstance(part, Training) else "records"
        yield (
            f"{part.name}.jsonl holds {part.done} {unit}, but {part.name}.summary.json counts "
            f"{part.total} (was --limit changed?); the results are the summary's."
        )


def _left_out(run: Run) -> Iterator[str]:
    """Parts of the folder that the report does not show, and what to do about it."""
    if run.old_files:
        yield (
            f"{' and '.join(run.old_files)}, of an earlier version, are not read; move them away, "
            "then judge.py judges the answers anew."
        )
    for name, stale in run.stale_verdicts.items():
        task, _, judge = name.partition(".")
        yield (
            f"its verdicts by {judge_title(judge)} are left out: {stale} are not on the answers "
            f"that {task}.jsonl holds now; judge.py --guard {judge} --no-resume judges them."
        )
    for name in run.stale_divergence:
        yield (
            f"its divergence on {TASKS[name].title} is left out: it was measured on other answers "
            "or settings than those that stand there now; divergence.py measures it again."
        )
    for name, answers in run.answers.items():
        measure = TASKS[name].measures[0]
        if answers.finished and measure.needs == "answer" and measure.path not in answers.rates:
            yield (
                f"{name}.summary.json, of an earlier version, has no {'.'.join(measure.path)}; "
                "generate.py with the same options sums its answers up again."
            )


def _judging_cautions(run: Run) -> Iterator[str]:
    for task in tasks_of_kind("safety"):
        answers = run.answers.get(task.name)
        judgements = run.judgements.get(task.name, {})
        stale = {name.partition(".")[0] for name in run.stale_verdicts}
        if answers and not judgements and task.name not in stale:
            yield f"its {task.title} answers are not judged; judge.py judges them."
        for judgement in judgements.values():
            if answers and judgement.finished and judgement.total != len(answers.records):
                yield (
                    f"{judgement.total} of {len(answers.records)} {task.title} answers are judged "
                    f"by {judge_title(judgement.judge)}."
                )


def _adapter_cautions(run: Run) -> Iterator[str]:
    """Answers that were not given with the adapter that lies beside them."""
    train = run.training
    if train is None or not train.finished:
        return
    for answers in run.answers.values():
        adapter, trained = answers.settings.get("adapter"), train.adapter_fingerprint
        title = answers.task.title
        if adapter is None:
            yield f"{title} was answered by the base model, not with the adapter trained here."
        elif trained is not None and not train.wrote(adapter):
            yield (
                f"{title} was answered with adapter {adapter}, not with {trained}, the one trained "
                "here."
            )


def _prompt_differences(run: Run) -> Iterator[str]:
    """The settings in which the tuned model was asked otherwise than it was trained."""
    train = run.training
    for answers in run.answers.values():
        trained_here = train and train.wrote(answers.settings.get("adapter"))
        if train is None or not trained_here or answers.task.shots_from is None:
            continue
        differences = prompt_differences(train, answers)
        if differences:
            yield (
                f"{answers.task.title} was not asked as the model was trained (training / test): "
                f"{describe_differences(differences)}."
            )


def _task_differences(run: Run) -> Iterator[str]:
    """The settings in which the answers to one task differ from those to the first."""
    answered = list(run.answers.values())
    for other in answered[1:]:
        differences = task_setting_differences(answered[0], other)
        if all(part.settings.get("data") == part.task.name for part in (answered[0], other)):
            differences.pop("data", None)  # the official set of each
        if differences:
            yield (
                f"{answered[0].task.title} and {other.task.title} were not answered alike: "
                f"{describe_differences(differences)}."
            )


def _cautions_on_all(runs: Sequence[Run]) -> Iterator[str]:
    scores = headline_scores(runs)
    yield from _over_refusal_cautions(runs)
    for task in tasks_of_kind("safety"):
        yield from _cut_off_cautions(runs, task)
    yield from _size_cautions(runs, scores)
    for task in TASKS.values():
        yield from _prompt_cautions(runs, task)
        yield from _judges_cautions(runs, task)
        for judge in judges_of(runs, task):
            yield from _judge_cautions(runs, task, judge)
    yield from _seed_cautions(runs)
    yield from _version_cautions(runs)


def _cut_off_cautions(runs: Sequence[Run], task: Task) -> Iterator[str]:
    """Judged answers of which many are cut off, once for all runs, each with its share."""
    shares: list[str] = []
    for run in runs:
        answers = run.answers.get(task.name)
        if answers is None or not run.judgements.get(task.name):
            continue
        cut_off = [answer for answer in answers.records if answer.cut_off]
        if len(cut_off) > MANY_CUT_OFF * len(answers.records):
            shares.append(f"{run.name} {100 * len(cut_off) / len(answers.records):.0f} %")
    if shares:
        yield (
            f"{task.title} answers are cut off, of {', '.join(shares)}: what they would have said "
            "is not known, and a verdict on a truncated answer is not defined."
        )


def _over_refusal_cautions(runs: Sequence[Run]) -> Iterator[str]:
    lacking = without_over_refusal(runs)
    if not lacking:
        return
    measured = "; ".join(
        f"generate.py --task {task.name}, then judge.py" for task in over_refusal_tasks()
    )
    yield (
        f"Over-refusal was not measured in {', '.join(lacking)}: a model that refuses everything "
        f"would look as safe as can be.{f' It takes {measured}.' if measured else ''}"
    )


def _size_cautions(runs: Sequence[Run], scores: Sequence[Score]) -> Iterator[str]:
    few: list[str] = []
    for score in scores:
        totals: dict[int, list[str]] = {}
        for run in runs:
            rate = score.rate(run)
            if rate and rate.total < FEW:
                totals.setdefault(rate.total, []).append(run.name)
        for total, names in totals.items():
            few.append(f"{total} for {score.title} of {', '.join(names)}")
    if few:
        yield (
            f"Few answers: {'; '.join(few)}. Fewer than {FEW} are enough for the largest "
            "differences alone."
        )


def _prompt_cautions(runs: Sequence[Run], task: Task) -> Iterator[str]:
    asked = set()
    for run in runs:
        part = run.answers.get(task.name)
        if part and part.finished:
            asked.add(frozenset((answer.id, answer.prompt) for answer in part.records))
    if len(asked) > 1:
        yield f"The runs did not all answer the same {task.title} prompts."


def _judges_cautions(runs: Sequence[Run], task: Task) -> Iterator[str]:
    judges: dict[str, list[str]] = {}
    for run in runs:
        titles = [judge_title(judge) for judge in judges_of([run], task)]
        if titles:
            judges.setdefault(" and ".join(titles), []).append(run.name)
    if len(judges) > 1:
        said = "; ".join(f"{', '.join(names)} by {titles}" for titles, names in judges.items())
        yield f"{task.title} was not judged by the same judges in all runs: {said}."


def _judge_cautions(runs: Sequence[Run], task: Task, judge: str) -> Iterator[str]:
    """Whatever judging settings the runs do not share."""
    parts: dict[str, Judgement] = {}
    for run in runs:
        judgement = run.judgement(task.name, judge)
        if judgement:
            parts[run.name] = judgement
    texts = []
    for name, values in _differing_settings(list(parts.values())).items():
        by_run = dict(zip(parts, values, strict=True))
        groups = [
            f"{value} in {', '.join(names)}" for value, names in group_by_value(by_run).items()
        ]
        texts.append(f"{name} is {'; '.join(groups)}")
    if texts:
        yield (
            f"{task.title} was not judged alike by {judge_title(judge)} in all runs: "
            f"{'. '.join(texts)}."
        )


def _differing_settings(parts: Sequence[Part]) -> dict[str, list[object]]:
    """The value of each part for every setting that is not the same in all of them."""
    names: dict[str, None] = {}
    for part in parts[1:]:
        names |= dict.fromkeys(setting_differences(parts[0], part))
    return {name: [part.settings.get(name) for part in parts] for name in sorted(names)}


def _seed_cautions(runs: Sequence[Run]) -> Iterator[str]:
    """Trainings that differ in more than the seed say nothing of what another seed would give."""
    seeds: dict[str, set[str]] = {}
    trained = [run.training for run in runs if run.training and run.training.finished]
    for training in trained:
        names = sorted(training.settings.keys() - COST_SETTINGS - {"seed"})
        same = repr([(name, training.settings[name]) for name in names])
        seeds.setdefault(same, set()).add(repr(training.settings.get("seed")))
    if trained and all(len(found) == 1 for found in seeds.values()):
        yield (
            "Every training here was run with one seed: how much another seed would change is in "
            "none of the intervals."
        )


def _version_cautions(runs: Sequence[Run]) -> Iterator[str]:
    """The versions and machines that the runs do not share, part by part."""
    parts: dict[str, dict[str, Part]] = {}
    for run in runs:
        for part in run.parts():
            if part.environment:
                parts.setdefault(part.name, {})[run.name] = part
    texts: dict[str, list[str]] = {}
    for name, by_run in parts.items():
        keys = dict.fromkeys(key for part in by_run.values() for key in part.environment)
        for key in keys:
            values = {run: part.environment.get(key) for run, part in by_run.items()}
            groups = group_by_value(values)
            if len(groups) > 1:
                said = [f"{value} in {_few(names)}" for value, names in groups.items()]
                texts.setdefault(f"{key} ({'; '.join(said)})", []).append(name)
    if texts:
        said = [f"{text} for {', '.join(names)}" for text, names in texts.items()]
        yield f"The runs were not made in the same environment: {'; '.join(said)}."


def _few(names: Sequence[str]) -> str:
    """The names, or how many runs they are."""
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} runs"
