"""Judge a run's answers to the AILuminate prompts: python judge.py

Reads RUN/ailuminate.jsonl, which generate.py makes, writes RUN/verdicts.jsonl and
RUN/judge.summary.json, and prints the safe rate by hazard and persona. An interrupted call goes on
where it stopped. Under torchrun the work is shared out: torchrun --nproc-per-node 4 -- judge.py

--method guard    a Qwen3Guard-Gen model labels each answer Safe, Controversial or Unsafe, and as a
refusal or not --method refusal  counts refusal phrases only (Zou et al. 2023): needs no model and
says little; a rough lower bound
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common import cli, runs
from common.devices import resolve_device, resolve_dtype
from common.distributed import device_of_rank, inference_group, rank_zero_first, shard_by_work
from common.errors import UserError
from common.ranks import rank, world_size
from common.resumable import ResumableJob
from data.records import numbered_jsonl, read_json, repair_jsonl
from data.task import stratified_sample
from guards.grammar import VerdictGrammar
from guards.verdicts import (
    METHODS,
    answer_sha256,
    format_table,
    is_refusal,
    parse_verdict,
    summarise_verdicts,
)
from llama.config import ModelConfig
from llama.decoding import DecodingStats, Output, check_prompts, generate
from llama.hub import resolve
from llama.tokenizer import Tokenizer, load_tokenizer
from llama.weights import load_model

Record = dict[str, Any]

ANSWER_FIELDS = ("id", "prompt", "hazard", "persona", "response")
VERDICT_FIELDS = (
    "id",
    "hazard",
    "persona",
    "safety",
    "categories",
    "refusal",
    "finish_reason",
    "prompt_tokens",
)
VERDICT_FIELDS += ("new_tokens", "method", "answer_sha256")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_run_options(
        parser,
        "Qwen/Qwen3Guard-Gen-4B",
        32,
        "answers judged at a time: memory, not results (%(default)s)",
    )
    cli.add_cache_options(parser)
    parser.add_argument(
        "--method", choices=METHODS, default="guard", help="see above (%(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=cli.positive_int,
        default=64,
        metavar="N",
        help="length of a verdict; most have about 15 tokens, the longest 54 (%(default)s)",
    )
    parser.add_argument(
        "--grammar",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="generate no fixed text and let the guard choose between the labels; --no-grammar decodes freely",
    )
    return parser.parse_args(argv)


def read_answers(path: Path) -> list[Record]:
    """The AILuminate records of a run. UserError names the file, the line and the field."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; first run: python generate.py --task ailuminate --run {path.parent}"
        )
    answers, lines = [], {}
    for line, answer in numbered_jsonl(path, may_be_cut=True):
        for field in ANSWER_FIELDS:
            if not isinstance(answer.get(field), str):
                found = type(answer[field]).__name__ if field in answer else "nothing"
                raise UserError(
                    f"{path}, line {line}: expected text in the field {field!r}, found {found}"
                )
        if answer["id"] in lines:
            raise UserError(
                f"{path}, line {line}: the id {answer['id']!r} is also on line {lines[answer['id']]}"
            )
        lines[answer["id"]] = line
        answers.append(answer)
    if not answers:
        raise UserError(f"{path}: no answers in this file; run generate.py --task ailuminate again")
    return answers


def read_verdicts(path: Path, answers: list[Record], method: str) -> dict[str, Record]:
    """Finished verdicts by id. UserError unless each came by `method` and judges the answer that
    stands there now.
    """
    hashes = {answer["id"]: answer_sha256(answer) for answer in answers}
    again = "start again with --no-resume, or choose another --run"
    repair_jsonl(path)
    verdicts = {}
    for line, verdict in numbered_jsonl(path) if path.exists() else ():
        for field in VERDICT_FIELDS:
            if field not in verdict:
                raise UserError(f"{path}, line {line}: the field {field!r} is missing: {again}")
        name = str(verdict["id"])
        if verdict["method"] != method:
            raise UserError(
                f"{path}, line {line}: judged by method {verdict['method']!r}, now it is {method!r}: {again}"
            )
        if verdict["answer_sha256"] != hashes.get(name):
            raise UserError(
                f"{path}, line {line}: the answer to {name!r} is not the one judged here: {again}"
            )
        verdicts[name] = verdict
    return verdicts


def make_verdict(answer: Record, method: str, labels: Record, **details: Any) -> Record:
    """One line of RUN/verdicts.jsonl."""
    about = {name: answer[name] for name in ("id", "hazard", "persona")}
    return {**about, **labels, **details, "method": method, "answer_sha256": answer_sha256(answer)}


def phrase_verdict(answer: Record) -> Record:
    """The verdict of method "refusal": it says nothing about safety."""
    labels = {
        "safety": None,
        "categories": [],
        "refusal": "Yes" if is_refusal(answer["response"]) else "No",
    }
    return make_verdict(
        answer, "refusal", labels, raw="", finish_reason=None, prompt_tokens=0, new_tokens=0
    )


class Guard:
    """A Qwen3Guard-Gen model with the prompts of the answers it is to judge.

    The policy is part of the guard's own chat template: it gets the conversation and nothing else.
    UserError, naming the answer, for one that does not fit its context.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        dtype: torch.dtype,
        device: torch.device,
        answers: list[Record],
    ):
        self.answers, self.arguments, self.dtype, self.device = answers, arguments, dtype, device
        self.tokenizer = load_tokenizer(arguments.model)
        self.prompts = [self.tokenizer.encode_chat(conversation(answer)) for answer in answers]
        config = ModelConfig.load(resolve(arguments.model))
        names = [f"the answer to {answer['id']} with the guard's policy" for answer in answers]
        check_prompts(config, self.prompts, names)
        self.grammar = (
            verdict_grammar(arguments.model, self.tokenizer) if arguments.grammar else None
        )

    def load(self) -> None:
        """Load the model. UserError if its weights are not whole."""
        arguments = self.arguments
        self.model = load_model(
            arguments.model, dtype=self.dtype, device=self.device, quantize=arguments.quantize
        )

    def judge(
        self, indices: Sequence[int], add: Callable[[Record], None], stats: DecodingStats
    ) -> None:
        """Judge the answers of these indices; call `add` with each verdict as soon as it is
        there.
        """
        answers, prompts = [self.answers[i] for i in indices], [self.prompts[i] for i in indices]

        def on_finish(i: int, output: Output) -> None:
            raw = self.tokenizer.decode(output.token_ids)
            details = {"raw": raw, "finish_reason": output.finish_reason}
            details |= {"prompt_tokens": len(prompts[i]), "new_tokens": len(output.token_ids)}
            add(make_verdict(answers[i], "guard", parse_verdict(raw), **details))

        generate(
            self.model,
            prompts,
            self.arguments.max_new_tokens,
            self.tokenizer.stop_ids,
            self.arguments.batch_size,
            on_finish=on_finish,
            stats=stats,
            guide=self.grammar,
            **cli.cache_options(self.arguments),
        )


def verdict_grammar(model: str, tokenizer: Tokenizer) -> VerdictGrammar:
    """The grammar in the guard's tokens. UserError for a model whose template asks for no such
    verdict.

    Any model can be held to a grammar. What one says that was never trained to judge would look
    like verdicts.
    """
    policy = tokenizer.decode(tokenizer.encode_chat(conversation({"prompt": "", "response": ""})))
    if any(f"{name}:" not in policy for name in ("Safety", "Categories", "Refusal")):
        raise UserError(
            f"{model}: its chat template does not ask for a verdict on an answer; is this a Qwen3Guard-Gen model? "
            "--no-grammar shows what it says freely"
        )
    return VerdictGrammar(tokenizer.encode, tokenizer.end_id)


def conversation(answer: Record) -> list[dict[str, str]]:
    """What the guard reads: it judges the last turn, the response."""
    return [
        {"role": "user", "content": answer["prompt"]},
        {"role": "assistant", "content": answer["response"]},
    ]


class JudgeTask(ResumableJob):
    """The verdicts of a run."""

    def __init__(
        self, run: Path, settings: Record, answers: list[Record], resume: bool, device: torch.device
    ) -> None:
        self.answers = answers
        self.counted = "safe" if settings["method"] == "guard" else "refusals"
        planned = stratified_sample(answers, ("hazard", "persona"), settings["limit"])
        super().__init__(run, "judge", planned, settings, resume, device, "verdicts.jsonl")

    def read(self) -> dict[str, Record]:
        return read_verdicts(self.path, self.answers, self.settings["method"])

    def result(self, done: list[Record]) -> Record:
        return summarise_verdicts(done, self.settings["method"])

    def new_tokens(self, record: Record) -> int:
        return record["new_tokens"]

    def counts(self, record: Record) -> bool | None:
        if record["method"] == "guard":
            return record["safety"] == "Safe"
        return record["refusal"] == "Yes"


def judging_settings(
    arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device
) -> Record:
    """Every option that the verdicts depend on, and those that the times do."""
    settings = {"method": arguments.method, "limit": arguments.limit}
    if arguments.method == "refusal":
        return settings
    about = {
        "model": str(arguments.model),
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": 0.0,
    }
    about |= {
        "grammar": arguments.grammar,
        "dtype": str(dtype).removeprefix("torch."),
        "quantize": arguments.quantize,
        "device": str(device),
        "batch_size": arguments.batch_size,
        "memory": arguments.memory,
        "cache_dtype": arguments.cache_dtype,
    }
    return settings | about


def judge(arguments: argparse.Namespace) -> None:
    with inference_group():
        with rank_zero_first():
            task, guard = plan(arguments)
        if task.to_do:
            work(task, guard)
        if rank() == 0:
            summary = task.write_summary(finished=True)
            print(format_table(summary))
            if arguments.method == "guard" and summary["unparsed"]["count"] == summary["answers"]:
                print(f"No verdict could be read: is {arguments.model} a Qwen3Guard-Gen model?")


def plan(arguments: argparse.Namespace) -> tuple[JudgeTask, "Guard | None"]:
    """What there is to judge, and the guard with its prompts, all checked, if there is one and
    anything to do.
    """
    answers = read_answers(arguments.run / "ailuminate.jsonl")
    answering = arguments.run / "ailuminate.summary.json"
    if rank() == 0 and answering.exists() and not read_json(answering).get("finished"):
        print(
            f"Note: {answering} is not finished: judging the {len(answers)} answers there are so far."
        )
    runs.prepare_run(arguments.run)
    device = device_of_rank(resolve_device(arguments.device))
    dtype = resolve_dtype(arguments.dtype, device)
    task = JudgeTask(
        arguments.run, judging_settings(arguments, dtype, device), answers, arguments.resume, device
    )
    if rank() == 0:
        by = arguments.model if arguments.method == "guard" else "refusal phrases (no guard)"
        print(
            f"{len(task.planned)} answers, {len(task.to_do)} of them to judge by {by}", flush=True
        )
    guard = (
        Guard(arguments, dtype, device, task.to_do)
        if task.to_do and arguments.method == "guard"
        else None
    )
    return task, guard


def work(task: JudgeTask, guard: "Guard | None") -> None:
    """Judge what is left to do, of several processes each its share."""
    if guard:
        guard.load()  # may fail: an old verdict file is replaced only after it
        own = shard_by_work(guard.prompts, guard.arguments.max_new_tokens, world_size())[rank()]
        with task.recording(len(own)) as add:
            guard.judge(own, add, task.costs.stats)
        return
    own = range(rank(), len(task.to_do), world_size())
    with task.recording(len(own)) as add:
        for i in own:
            add(phrase_verdict(task.to_do[i]))


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(judge, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
