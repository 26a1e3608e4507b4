"""Judge a run's answers to safety prompts: python judge.py

Reads RUN/TASK.jsonl of every safety task that generate.py has answered, writes
RUN/TASK.JUDGE.jsonl, a verdict a line, and RUN/TASK.JUDGE.summary.json, and prints the rates. JUDGE
is the guard's name: several guards can judge one run, one after the other. An interrupted call goes
on where it stopped. Under torchrun the work is shared out: torchrun --nproc-per-node 4 -- judge.py

--guard qwen3guard       Safe, Controversial or Unsafe, and a refusal or not: Qwen3Guard-Gen-4B, or
                         the 0.6B one, which is said, where the memory is too small for it
--guard llama-guard      Llama-Guard-3-1B: safe or unsafe
--guard refusal-phrases  counts refusal phrases: needs no model and says little; other lists of them
                         are refusal-phrases-zou (Zou et al. 2023) and refusal-phrases-xstest
--guard CHECKPOINT       a folder or Hub id; its chat template tells which guard it is
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch

from common import cli, runs
from common.command_line import parse_settings
from common.devices import resolve_device, resolve_dtype, total_memory
from common.distributed import device_of_rank, inference_group, rank_zero_first
from common.errors import UserError
from common.judging import GuardModel, JudgingJob, JudgingSettings, check_model_options
from common.ranks import rank
from common.show_prompt import describe_prompt
from data.records import Record, read_json
from data.registry import get_task, tasks_of_kind
from data.task import Task
from guards.guard import Guard
from guards.registry import GUARDS, recognise
from guards.safe_rates import format_table, measures_of
from llama.tokenizer import load_tokenizer
from reporting.plain_text import visible

OUT_OF_MEMORY = (
    "try a smaller --batch-size or --memory, which are slower and leave verdicts as they are; "
    "--quantize int8 and a smaller --guard change them"
)

ROOM = 1.25  # times the weights: what judging needs at least
OLD_FILES = ("verdicts.jsonl", "judge.summary.json")  # of a version with one judge a run


def parse_arguments(argv: Sequence[str] | None) -> JudgingSettings:
    return parse_settings(JudgingSettings, __doc__, argv)


def choose_guard(name: str) -> tuple[Guard, str]:
    """The guard that --guard names, and its checkpoint, "" if it has none.

    UserError for a checkpoint that is no guard's, and for a name that is neither.
    """
    if name in GUARDS:
        return GUARDS[name], GUARDS[name].default_model or ""
    if "/" not in name and not Path(name).exists():
        close = get_close_matches(name, GUARDS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(
            f"--guard {name}: neither a guard ({', '.join(GUARDS)}) nor a checkpoint{hint}"
        )
    tokenizer = load_tokenizer(name)
    empty = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    policy = tokenizer.decode(tokenizer.encode_chat(empty), skip_special_tokens=False)
    return recognise(policy, name), name


def checkpoint_that_fits(
    guard: Guard, quantize: str | None, device: torch.device, dtype: torch.dtype
) -> str:
    """The guard's default checkpoint, or the smaller one where the device is too small for it.

    Only memory that is known decides. The smaller one's verdicts differ, so it is said.
    """
    memory, size = total_memory(device), 1 if quantize else dtype.itemsize
    needed = guard.default_parameters * size * ROOM
    if memory is None or needed <= memory or guard.smaller_model is None:
        return guard.default_model or ""
    if rank() == 0:
        print(
            f"{guard.default_model} would need about {needed / 2**30:.0f} GiB of {device}, which "
            f"has {memory / 2**30:.0f}: judging by {guard.smaller_model}; --guard "
            f"{guard.default_model} insists",
            flush=True,
        )
    return guard.smaller_model


def choose_tasks(settings: JudgingSettings, guard: Guard) -> list[Task]:
    """The tasks to judge: those of --task, else all that are answered in the run.

    UserError for one that is not answered, no safety task, or that the guard says nothing about.
    """
    if settings.task:
        tasks = [answered_task(name, settings.run) for name in settings.task]
    else:
        tasks = answered_tasks(settings.run)
    judged = [task for task in tasks if measures_of(task, guard)]
    if judged and not settings.task:
        return judged
    for task in tasks:
        if task not in judged:
            labels = " and ".join(sorted({measure.needs for measure in task.measures}))
            raise UserError(f"{task.title} measures {labels}, of which {guard.name} says nothing")
    return judged


def answered_task(name: str, run: Path) -> Task:
    """The safety task that is called `name`. UserError if it is none, or not answered in `run`."""
    task = get_task(name)
    if task.kind != "safety":
        names = ", ".join(task.name for task in tasks_of_kind("safety"))
        raise UserError(f"--task {name}: needs no judge; the safety tasks are {names}")
    path = run / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; first run: python generate.py --task {name} --run {run}"
        )
    return task


def answered_tasks(run: Path) -> list[Task]:
    """The safety tasks with answers in `run`. UserError if there is none."""
    safety = tasks_of_kind("safety")
    tasks = [task for task in safety if (run / f"{task.name}.jsonl").is_file()]
    if not tasks:
        names = ", ".join(task.name for task in safety)
        raise UserError(
            f"{run}: no answers to a safety task ({names}); first run: "
            f"python generate.py --task {safety[0].name} --run {run}"
        )
    return tasks


@dataclass(frozen=True)
class Plan:
    """The answers to judge, all checked; `model` is None if no model is needed."""

    jobs: list[JudgingJob]
    model: GuardModel | None


def make_plan(settings: JudgingSettings) -> Plan:
    """Find out what is to do and check all of it, before any model is loaded."""
    if settings.model:
        raise UserError(f"judge.py has no --model: name the guard with --guard {settings.model}")
    refuse_old_files(settings.run)
    guard, checkpoint = choose_guard(settings.guard)
    if settings.label:
        guard = guard.with_label(settings.label)
    if not guard.has_model:
        check_model_options(settings)
    tasks = choose_tasks(settings, guard)
    if not settings.dry_run:
        runs.prepare_run(settings.run)
    # A guard without a model must not touch a GPU.
    device = device_of_rank(resolve_device(settings.device if checkpoint else "cpu"))
    dtype = resolve_dtype(settings.dtype, device)
    if settings.guard in GUARDS:
        checkpoint = checkpoint_that_fits(guard, settings.quantize, device, dtype)
    settings = replace(
        settings,
        guard=guard.name,
        model=checkpoint,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        max_new_tokens=settings.max_new_tokens or guard.max_new_tokens,
    )
    jobs = [JudgingJob(task, guard, settings, device) for task in tasks]
    model = None
    if checkpoint and (settings.show_prompt or any(job.to_do for job in jobs)):
        model = GuardModel.find(guard, settings, dtype, device)
    for job in jobs:
        if model:
            job.prepare(model)
    if rank() == 0:
        print(describe_plan(jobs, settings), flush=True)
        if model and settings.show_prompt:
            show_prompts(jobs, model, settings.show_prompt)
    return Plan(jobs, model)


def refuse_old_files(run: Path) -> None:
    """UserError for the verdicts of a version that knew one judge a run."""
    found = [run / name for name in OLD_FILES if (run / name).exists()]
    if found:
        raise UserError(
            f"{' and '.join(map(str, found))}: verdicts of an earlier version, which nothing reads "
            "any more; move them away, then judge.py judges the answers anew"
        )


def describe_plan(jobs: list[JudgingJob], settings: JudgingSettings) -> str:
    """A line for each task, and a note where its answers are not finished."""
    lines = []
    by = settings.model or settings.guard
    for job in jobs:
        answering = settings.run / f"{job.task.name}.summary.json"
        if answering.exists() and not read_json(answering).get("finished"):
            count = len(job.answers)
            lines.append(
                f"Note: {answering} is not finished: judging the {count} answers there are so far."
            )
        count, to_do = len(job.planned), len(job.to_do)
        lines.append(f"{job.task.title}: {count} answers, {to_do} of them to judge by {by}")
    return "\n".join(lines)


def show_prompts(jobs: list[JudgingJob], model: GuardModel, count: int) -> None:
    for job in jobs:
        answers = job.planned[:count]
        for answer, prompt in zip(answers, job.prompts(answers, model), strict=True):
            print(visible(describe_prompt(answer["id"], prompt, model.tokenizer)), flush=True)


def judge(settings: JudgingSettings) -> None:
    with inference_group():
        with rank_zero_first():
            plan = make_plan(settings)
        if settings.dry_run:
            return
        to_do = any(job.to_do for job in plan.jobs)
        # May fail: what is there already is replaced only after it.
        decoder = plan.model.load() if plan.model and to_do else None
        for job in plan.jobs:
            if job.to_do and plan.model and decoder:
                job.judge_by_model(plan.model, decoder)
            elif job.to_do:
                job.judge_by_text()
            if rank() == 0:
                summary = job.write_summary(finished=True)
                print(visible(describe_verdicts(job, summary)), flush=True)


def describe_verdicts(job: JudgingJob, summary: Record) -> str:
    """The table of rates, and a line where not one verdict could be read."""
    table = format_table(summary, job.task, job.guard)
    unparsed = summary["unparsed"]
    if unparsed and unparsed["count"] == summary["answers"]:
        model = summary["settings"]["model"]
        return f"{table}\nNo verdict could be read: is {model} a {job.guard.title} model?"
    return table


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_script(judge, parse_arguments(argv), OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
