"""Answer GSM8K questions and AILuminate prompts, greedily unless told otherwise: python generate.py
--shots 3

Writes RUN/TASK.jsonl, a line an answer, and RUN/TASK.summary.json for each task. RUN/adapter, if
train.py left one there, is used. An interrupted call goes on where it stopped.
Under torchrun the work is shared out: torchrun --nproc-per-node 4 -- generate.py --shots 3

--samples K      of a task with a score, with a --temperature: K answers a question, which vote.
                 RUN/TASK-samples.jsonl holds them (ids ID#0, ID#1, ...), its summary maj@K and
                 pass@k; the single answers in RUN/TASK.jsonl stay as they are

--task self-instruct answers training questions instead and writes RUN/self-instruct.train.jsonl,
for train.py --data:
--mode rewrite   the gold answers in the model's own words
--mode sample    its own solutions; of --samples the first that has the right number, or with
                 --keep distinct every one of those that reasons in another way

--task own-answers answers the embedded hazard prompts and harmless look-alikes, and leaves the
refusals of the former and the answers to the latter in RUN/own-answers.train.jsonl, for
train.py --data gsm8k:0.97 RUN/own-answers.train.jsonl:0.03
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from common import cli, runs
from common.answering import AnsweringSettings, choose_tasks
from common.answering_job import Answerer, AnsweringJob
from common.command_line import parse_settings
from common.decoding_estimate import estimate_memory, measure_speed
from common.devices import resolve_device, resolve_dtype
from common.distributed import device_of_rank, inference_group, rank_zero_first
from common.errors import UserError
from common.own_answers_job import OwnAnswersJob
from common.ranks import rank, world_size
from common.self_instruct_job import SelfInstructJob
from common.tuned_model import ADAPTER, chosen_adapter, is_choice, written_fingerprint
from common.voting_job import VotingJob
from data.checked import checked_field
from data.records import Record, read_json
from data.self_instruct import SelfInstruct
from data.task import Task
from guards.own_answers import OwnAnswers
from llama.config import ModelConfig
from llama.device_memory import default_batch_size
from llama.fingerprint import model_fingerprint
from llama.hub import resolve
from llama.tokenizer import load_tokenizer
from lora import adapter_fingerprint

OUT_OF_MEMORY = (
    "try a smaller --batch-size or --memory, which are slower and leave float32 answers as they "
    "are; --quantize int8 changes them"
)


def parse_arguments(argv: Sequence[str] | None) -> AnsweringSettings:
    return parse_settings(AnsweringSettings, __doc__, argv)


def find_adapter(settings: AnsweringSettings) -> Path | None:
    """The adapter to answer with; None for the base model.

    UserError if RUN's own is not finished, --adapter names no folder, or --adapter-scale has
    nothing to scale.
    """
    adapter, training = settings.run / ADAPTER, settings.run / "train.summary.json"
    chosen = settings.adapter
    if chosen is not None and is_choice(chosen):
        chosen = chosen_adapter(settings.run, chosen)
    if chosen is not None and not chosen.is_dir():
        raise UserError(f"--adapter {settings.adapter}: no such folder")
    if chosen is None and not settings.no_adapter:
        if training.exists() and not read_json(training).get("finished"):
            raise UserError(
                f"{training}: this training is not finished; finish it with train.py, or name "
                "another adapter with --adapter, or say --no-adapter"
            )
        chosen = adapter if adapter.is_dir() else None
    if chosen is None and settings.adapter_scale != 1:
        scale = f"{settings.adapter_scale:g}"
        raise UserError(f"--adapter-scale {scale} without an adapter to scale")
    return chosen


def check_base(settings: AnsweringSettings, adapter: Path, fingerprint: str) -> None:
    """See to it that the adapter is what its training wrote, and its base the model at hand.

    What the training was is known from the train.summary.json beside the adapter, if there is one.
    UserError for RUN's own adapters; one of another folder, which --adapter names, is answered with
    all the same, and the difference printed.
    """
    path = adapter.parent / "train.summary.json"
    training = read_json(path) if path.is_file() else {}
    found = adapter_fingerprint(adapter)
    wrote = written_fingerprint(training, adapter) or found
    recorded = checked_field({"settings": {}} | training, "settings", dict, str(path))
    trained_on = recorded.get("model_fingerprint", fingerprint)
    problem = ""
    if found != wrote:
        problem = f"{adapter} has the fingerprint {found}, its training wrote {wrote}"
    elif trained_on != fingerprint:
        problem = (
            f"{adapter} was trained on {recorded.get('model')} with the fingerprint {trained_on}, "
            f"but {settings.model} has {fingerprint}"
        )
    if problem and (settings.adapter is None or is_choice(settings.adapter)):
        raise UserError(f"{problem}; --adapter {adapter} answers with it all the same")
    if problem and rank() == 0:
        print(f"Note: {problem}", flush=True)


def plan(settings: AnsweringSettings) -> list[AnsweringJob]:
    """Make the jobs and check all that can be checked before the model is loaded."""
    tasks, source = choose_tasks(settings)
    if not settings.writes_nothing():
        runs.prepare_run(settings.run)
    device = device_of_rank(resolve_device(settings.device))
    dtype = resolve_dtype(settings.dtype, device)
    adapter = find_adapter(settings)
    if rank() == 0:
        with_adapter = f"adapter {adapter}" if adapter else "no adapter: the base model"
        print(f"{settings.model}, {with_adapter}", flush=True)
    tokenizer = load_tokenizer(settings.model, date=settings.date)
    config = ModelConfig.load(resolve(settings.model))
    answerer = Answerer(settings, adapter, device, dtype, tokenizer, config)
    fingerprint = model_fingerprint(settings.model)
    if adapter:
        check_base(settings, adapter, fingerprint)
    identity = {
        "model_fingerprint": fingerprint,
        "adapter": adapter_fingerprint(adapter) if adapter else None,
        "adapter_scale": settings.adapter_scale if adapter else None,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
    }
    jobs = [make_job(task, source, answerer, identity) for task in tasks]
    for job in jobs:
        if job.needs_model() or settings.show_prompt:
            job.prepare()
    return jobs


def make_job(task: Task, source: str, answerer: Answerer, identity: Record) -> AnsweringJob:
    """Make the job of a task; `source` is `choose_tasks`'s, `identity` the model's settings."""
    if isinstance(task, SelfInstruct):
        return SelfInstructJob(task, source, answerer, identity)
    if isinstance(task, OwnAnswers):
        return OwnAnswersJob(task, source, answerer, identity)
    if answerer.settings.samples > 1:
        return VotingJob(task, source, answerer, identity)
    return AnsweringJob(task, source, answerer, identity)


def describe_plan(jobs: Sequence[AnsweringJob]) -> str:
    """Say in lines what a call without --dry-run would do; with --show-prompt, the prompts."""
    answerer = jobs[0].answerer
    if count := answerer.settings.show_prompt:
        return "\n".join(job.show_prompts(count) for job in jobs)
    lines = [job.describe_plan() for job in jobs]
    if any(job.needs_model() for job in jobs):
        lines += describe_costs(jobs)
    lines.append(f"--dry-run: nothing was written to {answerer.settings.run}")
    return "\n".join(lines)


def describe_costs(jobs: Sequence[AnsweringJob]) -> list[str]:
    """Say what memory and, at most, what time the jobs take."""
    answerer = jobs[0].answerer
    settings, device, dtype = answerer.settings, answerer.device, answerer.dtype
    most = settings.batch_size or default_batch_size(device)
    in_progress = max(1, min(most, max(len(job.to_do) for job in jobs)))
    memory = estimate_memory(
        answerer.config,
        dtype,
        in_progress,
        max(job.longest_sequence() for job in jobs),
        settings.quantize,
        **settings.cache_arguments(),
    )
    speed = measure_speed(answerer.config, device, dtype, in_progress)
    seconds = 0.0
    for job in jobs:
        share = math.ceil(len(job.to_do) / world_size())
        prompt_tokens = job.prompt_tokens_to_compute() // world_size()
        seconds += speed.seconds(prompt_tokens, share, in_progress, settings.max_new_tokens)
    return [
        memory.describe(device, runs.peak_memory_bytes(device)),
        f"time about {seconds / 60:.1f} min if every answer is as long as it may be, measured on a "
        "few layers; less where answers end sooner or repeat themselves",
    ]


def answer_tasks(settings: AnsweringSettings) -> None:
    with inference_group():
        with rank_zero_first():
            jobs = plan(settings)
        if settings.writes_nothing():
            if rank() == 0:
                print(describe_plan(jobs))
            return
        model = jobs[0].answerer.load() if any(job.needs_model() for job in jobs) else None
        for job in jobs:
            if job.to_do:
                assert model is not None
                job.answer(model)
            if model is not None:
                job.follow_up(model)
            if rank() == 0:
                job.finish(model)
                print(job.describe(job.write_summary(finished=True)), flush=True)


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(answer_tasks, parse_arguments(argv), OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
