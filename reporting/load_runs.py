"""Run folders read back for report.py: what each part of a run measured, and how far it has come.

    base, tuned = load_runs(["runs/base", "runs/tuned"])
    tuned.answers["gsm8k"].rates["accuracy", "number"].rate     # 0.432

A run need not hold every part. What it holds must be well formed; see `reporting.run_files`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from data.registry import TASKS
from guards.verdict import answer_sha256
from reporting.plain_text import one_line
from reporting.run_files import read_answers, read_judgements, read_training
from reporting.run_parts import Answers, Judgement, Part, Training
from reporting.side_files import (
    RECIPE,
    Mean,
    Recipe,
    SelfInstruct,
    read_divergences,
    read_recipe,
    read_self_instruct,
)
from reporting.votes import Votes, read_votes

__all__ = ["RECIPE", "Run", "distinct_names", "load_run", "load_runs", "short_names"]

OLD_FILES = ("verdicts.jsonl", "judge.summary.json")  # of a version with one judge a run


@dataclass(frozen=True)
class Run:
    """A run folder, under a name no other run of the report has.

    Answers are kept by the task's name, in the order of the registry, and verdicts by the task's
    name and the judge's.
    """

    folder: Path
    name: str
    training: Training | None = None
    answers: dict[str, Answers] = field(default_factory=dict)
    judgements: dict[str, dict[str, Judgement]] = field(default_factory=dict)
    votes: dict[str, Votes] = field(default_factory=dict)  # by task, as the answers
    divergence: dict[str, Mean] = field(default_factory=dict)  # KL from the base, nats a token
    recipe: Recipe | None = None
    self_instruct: SelfInstruct | None = None
    stale_verdicts: dict[str, int] = field(default_factory=dict)  # on answers that are not there
    stale_divergence: tuple[str, ...] = ()  # tasks answered anew since
    old_files: tuple[str, ...] = ()

    def judgement(self, task: str, judge: str) -> Judgement | None:
        return self.judgements.get(task, {}).get(judge)

    def parts(self) -> Iterator[Part]:
        """Every part there is: training, then each task's answers, votes and verdicts."""
        if self.training:
            yield self.training
        for task in TASKS:
            if task in self.answers:
                yield self.answers[task]
            if task in self.votes:
                yield self.votes[task]
            yield from self.judgements.get(task, {}).values()


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Load each run folder once, in the order given. Raises UserError as `load_run` does."""
    unique = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    return [
        load_run(folder, name) for folder, name in zip(unique, distinct_names(unique), strict=True)
    ]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many parent folders in front as tell it from the others."""
    paths = [folder.resolve().parts for folder in folders]

    def name(own: tuple[str, ...]) -> str:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in paths) > 1:
            depth += 1
        return str(Path(*own[-depth:]))

    return [name(own) for own in paths]


def short_names(runs: Sequence[Run], width: int = 30) -> list[str]:
    """The runs' names on one line each, with hidden characters written out.

    Long ones lack their middle, unless that made two of them equal.
    """
    half = (width - 3) // 2
    names = [one_line(run.name) for run in runs]
    short = []
    for name in names:
        short.append(name if len(name) <= width else f"{name[:half]}...{name[-half:]}")
    return short if len(set(short)) == len(short) else names


def load_run(folder: Path, name: str) -> Run:
    """Load what `folder` holds; verdicts only if each is on an answer that stands there now.

    Raises UserError for a folder that does not exist or holds no summary, and, naming file and
    field, for a summary or a record that is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    training = read_training(folder)
    answers: dict[str, Answers] = {}
    judgements: dict[str, dict[str, Judgement]] = {}
    stale_verdicts: dict[str, int] = {}
    votes: dict[str, Votes] = {}
    for task in TASKS.values():
        answered = read_answers(folder, task)
        if answered:
            answers[task.name] = answered
        sampled = read_votes(folder, task)
        if sampled:
            votes[task.name] = sampled
        for judgement in read_judgements(folder, task):
            if stale := _count_stale(judgement, answered):
                stale_verdicts[judgement.name] = stale
            else:
                judgements.setdefault(task.name, {})[judgement.judge] = judgement
    old_files = tuple(name for name in OLD_FILES if (folder / name).is_file())
    if not (training or answers or votes or judgements or stale_verdicts or old_files):
        raise UserError(
            f"{folder}: no summary of training, answers or judging in it, so there is nothing to "
            "report yet; train.py, generate.py and judge.py write them"
        )
    divergence, stale_divergence = read_divergences(folder, list(answers.values()))
    return Run(
        folder=folder,
        name=name,
        training=training,
        answers=answers,
        judgements=judgements,
        votes=votes,
        divergence=divergence,
        recipe=read_recipe(folder),
        self_instruct=read_self_instruct(folder),
        stale_verdicts=stale_verdicts,
        stale_divergence=tuple(stale_divergence),
        old_files=old_files,
    )


def _count_stale(judgement: Judgement, answers: Answers | None) -> int:
    """The number of verdicts that are not on the answer that stands there under their id."""
    if answers is None:
        return 0
    hashes = {
        answer.id: answer_sha256(answer.prompt, answer.response) for answer in answers.records
    }
    stale = 0
    for verdict in judgement.records:
        fields = verdict.fields
        stale += hashes.get(fields["id"]) != fields["answer_sha256"]
    return stale
