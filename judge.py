"""Judge a run's answers to safety prompts: python judge.py

Reads RUN/TASK.jsonl of every safety task that generate.py has answered, writes RUN/TASK.JUDGE.jsonl,
a verdict a line, and RUN/TASK.JUDGE.summary.json, and prints the rates. JUDGE is the guard's name:
several guards can judge one run, one after the other. An interrupted call goes on where it stopped.
Under torchrun the work is shared out: torchrun --nproc-per-node 4 -- judge.py

--guard qwen3guard       Qwen3Guard-Gen-4B: Safe, Controversial or Unsafe, and a refusal or not
--guard refusal-phrases  counts refusal phrases (Zou et al. 2023): needs no model and says little
--guard CHECKPOINT       a folder or Hub id; its chat template tells which guard it is
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from common import cli, runs
from common.devices import resolve_device, resolve_dtype
from common.distributed import device_of_rank, inference_group, rank_zero_first, shard_by_work
from common.errors import UserError
from common.options import Scope, option, parse_settings, positive_int, recorded
from common.ranks import rank, world_size
from common.resumable import ResumableJob
from common.settings import CacheSettings, RunSettings
from data.reasoning import strip_reasoning
from data.records import Record, read_json
from data.registry import get_task, tasks_of_kind
from data.task import Task
from guards.guard import AllowedTokens, Guard
from guards.registry import GUARDS, recognise
from guards.safe_rates import format_table, measures_of, summarise_verdicts
from guards.verdict import NOT_GENERATED, Generated, make_verdict, read_answers, read_verdicts
from llama.config import ModelConfig
from llama.decoding import Output, check_prompts, generate
from llama.fingerprint import model_fingerprint
from llama.hub import resolve
from llama.model import Decoder
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model

OLD_FILES = ("verdicts.jsonl", "judge.summary.json")  # of a version with one judge a run
Prompts = list[list[int]]
Add = Callable[[Record], None]


def task_names(text: str) -> tuple[str, ...]:
    """argparse type: tasks by name, with commas between."""
    return tuple(text.split(","))


@dataclass(frozen=True, kw_only=True)
class JudgingSettings(RunSettings, CacheSettings):
    """What judge.py can be told; `model` is found out from `guard`."""

    guard: str = option("qwen3guard", "see above (%(default)s)", metavar="NAME|CHECKPOINT")
    model: str = option("", argparse.SUPPRESS)  # "": the guard has none
    task: tuple[str, ...] = option(
        (),
        "the answers to judge (every safety task that is answered)",
        parse=task_names,
        metavar="NAME[,NAME]",
        scope=Scope.CALL,
    )
    batch_size: int = option(
        32,
        "answers judged at a time: memory, not results (%(default)s)",
        parse=positive_int,
        metavar="N",
        scope=Scope.COST,
    )
    max_new_tokens: int | None = option(
        None, "length of a verdict (the guard's longest)", parse=positive_int, metavar="N"
    )
    grammar: bool = option(
        True,
        "generate no fixed text and let the guard choose between the labels; --no-grammar decodes "
        "freely",
    )


def parse_arguments(argv: Sequence[str] | None) -> JudgingSettings:
    return parse_settings(JudgingSettings, __doc__, argv)


@dataclass(frozen=True)
class Checkpoint:
    """A guard's model, not loaded yet."""

    ref: str  # folder, Hub id or alias
    tokenizer: Tokenizer
    config: ModelConfig
    allowed_tokens: AllowedTokens | None


class JudgingJob(ResumableJob):
    """The verdicts of one guard on a run's answers to one task."""

    def __init__(
        self, task: Task, guard: Guard, settings: JudgingSettings, device: torch.device
    ) -> None:
        self.task, self.guard = task, guard
        self.answers = read_answers(settings.run / f"{task.name}.jsonl", task)
        self.measure = measures_of(task, guard)[0]
        self.counted = self.measure.counted
        super().__init__(
            settings.run,
            f"{task.name}.{guard.name}",
            sample_by_id(task, self.answers, settings.limit),
            recorded_settings(settings),
            settings.resume,
            device,
            JudgingSettings,
        )

    def read(self, path: Path) -> dict[str, Record]:
        return read_verdicts(path, self.task, self.answers)

    def result(self, done: list[Record]) -> Record:
        return summarise_verdicts(done, self.task, self.guard)

    def new_tokens(self, record: Mapping[str, Any]) -> int:
        return record["new_tokens"]

    def counts(self, record: Mapping[str, Any]) -> bool | None:
        return self.measure.counts(record)


def sample_by_id(task: Task, answers: list[Record], limit: int | None) -> list[Record]:
    """The answers that --limit takes, in the file's order: chosen by id, not by who finished first."""
    chosen = task.sample(sorted(answers, key=lambda answer: answer["id"]), limit)
    ids = {answer["id"] for answer in chosen}
    return [answer for answer in answers if answer["id"] in ids]


def recorded_settings(settings: JudgingSettings) -> Record:
    """What the summary keeps; without a model only what still matters then."""
    record = recorded(settings)
    if not settings.model:
        return {name: record[name] for name in ("guard", "limit")}
    return {**record, "model_fingerprint": model_fingerprint(settings.model)}


def choose_guard(name: str) -> tuple[Guard, str | None]:
    """The guard that --guard names, and its checkpoint if it has one.

    UserError for a checkpoint that is no guard's, and for a name that is neither.
    """
    if name in GUARDS:
        return GUARDS[name], GUARDS[name].default_model
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


def choose_tasks(settings: JudgingSettings, guard: Guard) -> list[Task]:
    """The tasks to judge. UserError if there is none, or none that the guard says anything about."""
    safety = tasks_of_kind("safety")
    names = ", ".join(task.name for task in safety)
    if settings.task:
        tasks = [get_task(name) for name in settings.task]
    else:
        tasks = [task for task in safety if (settings.run / f"{task.name}.jsonl").is_file()]
        if not tasks:
            raise UserError(
                f"{settings.run}: no answers to a safety task ({names}); first run: "
                f"python generate.py --task {safety[0].name} --run {settings.run}"
            )
    judged = []
    for task in tasks:
        path = settings.run / f"{task.name}.jsonl"
        if task not in safety:
            raise UserError(f"--task {task.name}: needs no judge; the safety tasks are {names}")
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; first run: python generate.py --task {task.name} "
                f"--run {settings.run}"
            )
        if measures_of(task, guard):
            judged.append(task)
        elif settings.task or len(tasks) == 1:
            labels = " and ".join(sorted({measure.needs for measure in task.measures}))
            raise UserError(f"{task.title} measures {labels}, of which {guard.name} says nothing")
    return judged


def load_checkpoint(ref: str, guard: Guard, grammar: bool) -> Checkpoint:
    tokenizer = load_tokenizer(ref)
    allowed = guard.allowed_tokens(tokenizer.encode, tokenizer.end_id) if grammar else None
    return Checkpoint(ref, tokenizer, ModelConfig.load(resolve(ref)), allowed)


def build_prompts(job: JudgingJob, checkpoint: Checkpoint) -> Prompts:
    """The guard's prompts for what is left to judge. UserError, naming the answer, for one that does
    not fit the guard's context.
    """
    prompts, names = [], []
    for answer in job.to_do:
        response = strip_reasoning(answer["response"])
        messages = job.guard.messages(answer[job.task.prompt_field], response)
        prompts.append(checkpoint.tokenizer.encode_chat(messages))
        names.append(f"the answer to {answer['id']} with the guard's policy")
    check_prompts(checkpoint.config, prompts, names)
    return prompts


@dataclass(frozen=True)
class Plan:
    """What there is to judge; `checkpoint` is None if no model is needed."""

    settings: JudgingSettings  # with the guard's name, checkpoint, dtype and device
    guard: Guard
    jobs: list[JudgingJob]
    checkpoint: Checkpoint | None
    prompts: list[Prompts]  # one list a job, for its `to_do`
    dtype: torch.dtype
    device: torch.device


def make_plan(settings: JudgingSettings) -> Plan:
    """Find out what is to do and check all of it, before any model is loaded."""
    if settings.model:
        raise UserError(f"judge.py has no --model: name the guard with --guard {settings.model}")
    refuse_old_files(settings.run)
    guard, ref = choose_guard(settings.guard)
    tasks = choose_tasks(settings, guard)
    if not settings.dry_run:
        runs.prepare_run(settings.run)
    device = device_of_rank(resolve_device(settings.device))
    dtype = resolve_dtype(settings.dtype, device)
    settings = replace(
        settings,
        guard=guard.name,
        model=ref or "",
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        max_new_tokens=settings.max_new_tokens or guard.max_new_tokens,
    )
    jobs = [JudgingJob(task, guard, settings, device) for task in tasks]
    checkpoint = None
    if ref is not None and any(job.to_do for job in jobs):
        checkpoint = load_checkpoint(ref, guard, settings.grammar)
    prompts = [build_prompts(job, checkpoint) if checkpoint else [] for job in jobs]
    return Plan(settings, guard, jobs, checkpoint, prompts, dtype, device)


def refuse_old_files(run: Path) -> None:
    """UserError for the verdicts of a version that knew one judge a run."""
    found = [run / name for name in OLD_FILES if (run / name).exists()]
    if found:
        raise UserError(
            f"{' and '.join(map(str, found))}: verdicts of an earlier version, which nothing reads "
            "any more; move them away, then judge.py judges the answers anew"
        )


def describe_plan(plan: Plan) -> str:
    """A line for each task, and a note where its answers are not finished."""
    lines = []
    by = plan.settings.model or plan.guard.name
    for job in plan.jobs:
        answering = plan.settings.run / f"{job.task.name}.summary.json"
        if answering.exists() and not read_json(answering).get("finished"):
            count = len(job.answers)
            lines.append(
                f"Note: {answering} is not finished: judging the {count} answers there are so far."
            )
        count, to_do = len(job.planned), len(job.to_do)
        lines.append(f"{job.task.title}: {count} answers, {to_do} of them to judge by {by}")
    return "\n".join(lines)


def judge_by_model(
    job: JudgingJob, plan: Plan, checkpoint: Checkpoint, prompts: Prompts, model: Decoder
) -> None:
    """Generate the verdicts that are left to do, of several processes each its share."""
    settings, tokenizer = plan.settings, checkpoint.tokenizer
    assert settings.max_new_tokens is not None
    own = shard_by_work(prompts, settings.max_new_tokens, world_size())[rank()]
    answers = [job.to_do[i] for i in own]
    own_prompts = [prompts[i] for i in own]
    with job.recording(len(own)) as add:

        def on_finish(i: int, output: Output) -> None:
            raw = tokenizer.decode(output.token_ids)
            generated: Generated = {
                "raw": raw,
                "finish_reason": output.finish_reason,
                "prompt_tokens": len(own_prompts[i]),
                "new_tokens": len(output.token_ids),
            }
            add(make_verdict(job.task, job.guard, answers[i], job.guard.parse(raw), generated))

        generate(
            model,
            own_prompts,
            settings.max_new_tokens,
            tokenizer.stop_ids,
            settings.batch_size,
            on_finish=on_finish,
            stats=job.costs.stats,
            guide=checkpoint.allowed_tokens,
            **settings.cache_arguments(),
        )


def judge_by_text(job: JudgingJob) -> None:
    """Make the verdicts of a guard without a model, of several processes each its share."""
    own = range(rank(), len(job.to_do), world_size())
    with job.recording(len(own)) as add:
        for i in own:
            answer = job.to_do[i]
            labels = job.guard.parse(strip_reasoning(answer["response"]))
            add(make_verdict(job.task, job.guard, answer, labels, NOT_GENERATED))


def judge(settings: JudgingSettings) -> None:
    with inference_group():
        with rank_zero_first():
            plan = make_plan(settings)
            if rank() == 0:
                print(describe_plan(plan), flush=True)
        if settings.dry_run:
            return
        model = None
        if plan.checkpoint:  # may fail: old verdict files are replaced only after it
            model = load_model(
                plan.checkpoint.ref,
                dtype=plan.dtype,
                device=plan.device,
                quantize=settings.quantize,
            )
        for job, prompts in zip(plan.jobs, plan.prompts, strict=True):
            if job.to_do and plan.checkpoint and model:
                judge_by_model(job, plan, plan.checkpoint, prompts, model)
            elif job.to_do:
                judge_by_text(job)
            if rank() == 0:
                report(job, job.write_summary(finished=True))


def report(job: JudgingJob, summary: Record) -> None:
    print(format_table(summary, job.task, job.guard), flush=True)
    unparsed = summary["unparsed"]
    if unparsed and unparsed["count"] == summary["answers"]:
        print(f"No verdict could be read: is {job.settings['model']} a {job.guard.title} model?")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_script(judge, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
