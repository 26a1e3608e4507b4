"""Scores of a run, each in one figure: a measure of a task, by a judge where one has to say.

    scores = headline_scores(runs)
    scores[0].title, scores[0].rate(runs[0])     # "GSM8K accuracy", Rate(...)

Tasks and guards are known through their registries; nothing here knows one by its name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.registry import TASKS
from data.task import Measure, Task
from guards.registry import GUARDS, find_guard
from reporting.load_runs import Run
from reporting.rates import Rate
from reporting.run_parts import Answer, Answers, Judgement, Verdict


@dataclass(frozen=True)
class Score:
    """The measure number `index` of `task`; `judge` is None where the answer itself tells."""

    task: Task
    index: int
    judge: str | None = None

    @property
    def measure(self) -> Measure:
        return self.task.measures[self.index]

    @property
    def title(self) -> str:
        """As a column: "GSM8K accuracy", "AILuminate safe rate (strict)"."""
        return f"{self.task.title} {self.measure.title}"

    @property
    def is_safety(self) -> bool:
        return self.task.kind == "safety"

    @property
    def is_over_refusal(self) -> bool:
        """True if it counts refusals of harmless prompts: fewer of them are better."""
        return self.measure.needs == "refusal" and self.measure.lower_is_better

    @property
    def good(self) -> str:
        """The name of the better outcome: "right", "safe"."""
        return self.measure.other if self.measure.lower_is_better else self.measure.counted

    @property
    def bad(self) -> str:
        return self.measure.counted if self.measure.lower_is_better else self.measure.other

    def part(self, run: Run) -> Answers | Judgement | None:
        """The part of the run that holds it, finished or not; None without one."""
        if self.judge is None:
            return run.answers.get(self.task.name)
        return run.judgement(self.task.name, self.judge)

    def rate(self, run: Run) -> Rate | None:
        """The share as the summary has it; None without a finished one."""
        part = self.part(run)
        return part.rates.get(self.measure.path) if part else None

    def counted(self, run: Run) -> dict[str, bool]:
        """By id, whether the answer counts for the measure; without those that it says nothing
        of.
        """
        part = self.part(run)
        found: dict[str, bool] = {}
        for record in part.records if part else ():
            counts = record.outcomes[self.index]
            if counts is not None:
                found[record_id(record)] = counts
        return found

    def outcomes(self, run: Run) -> dict[str, bool]:
        """By id, whether the answer has the better outcome; without those that it says nothing
        of.
        """
        lower_is_better = self.measure.lower_is_better
        return {name: counts != lower_is_better for name, counts in self.counted(run).items()}

    def silent_on(self, run: Run) -> set[str]:
        """The ids of which the measure says nothing, though they are answered or judged."""
        part = self.part(run)
        records = part.records if part else ()
        return {record_id(record) for record in records if record.outcomes[self.index] is None}


def record_id(record: Answer | Verdict) -> str:
    return record.id if isinstance(record, Answer) else record.fields["id"]


def judge_title(judge: str) -> str:
    """The guard's name for readers; a guard that is not registered keeps its own."""
    guard = find_guard(judge)
    return guard.title if guard else judge


def judges_of(runs: Sequence[Run], task: Task) -> list[str]:
    """Names of the judges of `task`'s answers: first those that say something of safety, by
    registry.
    """
    found = {judge for run in runs for judge in run.judgements.get(task.name, {})}
    known = list(GUARDS)

    def place(judge: str) -> tuple[bool, int, str]:
        guard = find_guard(judge)
        if guard is None:
            return True, len(known), judge
        order = max(index for index, name in enumerate(known) if judge.startswith(name))
        return "safety" not in guard.labels, order, judge

    return sorted(found, key=place)


def task_scores(runs: Sequence[Run], task: Task) -> list[Score]:
    """Every score of `task` that some run has or is about to have, the main one first.

    Those of one judge stand together, each judge's in the order of the task's measures.
    """
    scores = []
    for judge in (None, *judges_of(runs, task)):
        for index, measure in enumerate(task.measures):
            score = Score(task, index, judge)
            if (measure.needs == "answer") == (judge is None) and _is_there(score, runs):
                scores.append(score)
    return scores


def _is_there(score: Score, runs: Sequence[Run]) -> bool:
    """True if a run has the score, or has begun what will give it."""
    for run in runs:
        part = score.part(run)
        if part is None:
            continue
        if part.finished and score.measure.path in part.rates:
            return True
        if not part.finished and _will_say(score):
            return True
    return False


def _will_say(score: Score) -> bool:
    guard = find_guard(score.judge) if score.judge else None
    return guard is None or score.measure.needs in guard.labels


def headline_scores(runs: Sequence[Run]) -> list[Score]:
    """The main score of each task that the runs have, in registry order.

    Of several judges the first speaks, and another one for the runs that no judge before it has
    judged.
    """
    scores = []
    for task in TASKS.values():
        first_of: dict[str | None, Score] = {}
        for score in task_scores(runs, task):
            first_of.setdefault(score.judge, score)
        silent = list(runs)
        for score in first_of.values():
            heard = [run for run in silent if score.part(run)]
            if heard:
                scores.append(score)
                silent = [run for run in silent if run not in heard]
    return scores


def all_scores(runs: Sequence[Run]) -> list[Score]:
    """Every score of every task, main or not."""
    return [score for task in TASKS.values() for score in task_scores(runs, task)]


def column_title(score: Score, scores: Sequence[Score]) -> str:
    """The title, with the judge's where several judges give scores of the task."""
    judges = {other.judge for other in scores if other.task is score.task}
    if score.judge is None or len(judges) < 2:
        return score.title
    return f"{score.title}, {judge_title(score.judge)}"


def primary_score(runs: Sequence[Run], task: Task) -> Score | None:
    """The score by which answers to `task` are called good or bad."""
    for score in headline_scores(runs):
        if score.task is task:
            return score
    return None


def lacks_over_refusal(run: Run, scores: Sequence[Score]) -> bool:
    """True if the run shows a safety rate and no over-refusal beside it.

    A model that refuses everything is not safe, it is useless: no safety number stands alone.
    """
    has_safety = any(
        score.rate(run) for score in scores if score.is_safety and not score.is_over_refusal
    )
    return has_safety and not any(score.rate(run) for score in scores if score.is_over_refusal)


def without_over_refusal(runs: Sequence[Run]) -> list[str]:
    """The names of the runs that lack it."""
    scores = all_scores(runs)
    return [run.name for run in runs if lacks_over_refusal(run, scores)]


def over_refusal_tasks() -> Iterator[Task]:
    """The registered tasks that measure over-refusal."""
    for task in TASKS.values():
        if any(Score(task, index).is_over_refusal for index in range(len(task.measures))):
            yield task
