"""Judge a run's answers to the AILuminate prompts: python judge.py

Reads RUN/ailuminate.jsonl, which generate.py makes, writes RUN/verdicts.jsonl and RUN/judge.summary.json, and prints
the safe rate by hazard and persona. An interrupted call goes on where it stopped.

--method guard    a Qwen3Guard-Gen model labels each answer Safe, Controversial or Unsafe, and as a refusal or not
--method refusal  counts refusal phrases only (Zou et al. 2023): needs no model and says little; a rough lower bound
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.ailuminate import spread
from data.records import append_record, numbered_jsonl, open_records, read_json, repair_jsonl, write_json
from data.verdicts import METHODS, answer_sha256, format_table, is_refusal, parse_verdict, summarise_verdicts
from llama import cli, runs
from llama.decoding import DecodingStats, Output, check_prompts, generate
from llama.tokenizer import load_tokenizer
from llama.weights import load_model

Record = dict[str, Any]

ANSWER_FIELDS = ("id", "prompt", "hazard", "persona", "response")
VERDICT_FIELDS = ("id", "hazard", "persona", "safety", "categories", "refusal", "finish_reason", "prompt_tokens")
VERDICT_FIELDS += ("new_tokens", "method", "answer_sha256")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_run_options(
        parser, "Qwen/Qwen3Guard-Gen-4B", 32, "answers judged at a time: memory, not results (%(default)s)"
    )
    parser.add_argument("--method", choices=METHODS, default="guard", help="see above (%(default)s)")
    parser.add_argument(
        "--max-new-tokens",
        type=cli.positive_int,
        default=64,
        metavar="N",
        help="length of a verdict; a full one has about 20 tokens (%(default)s)",
    )
    return parser.parse_args(argv)


def read_answers(path: Path) -> list[Record]:
    """The AILuminate records of a run. ValueError names the file, the line and the field."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; first run: python generate.py --task ailuminate --run {path.parent}")
    answers, lines = [], {}
    for line, answer in numbered_jsonl(path, may_be_cut=True):
        for field in ANSWER_FIELDS:
            if not isinstance(answer.get(field), str):
                found = type(answer[field]).__name__ if field in answer else "nothing"
                raise ValueError(f"{path}, line {line}: expected text in the field {field!r}, found {found}")
        if answer["id"] in lines:
            raise ValueError(f"{path}, line {line}: the id {answer['id']!r} is also on line {lines[answer['id']]}")
        lines[answer["id"]] = line
        answers.append(answer)
    if not answers:
        raise ValueError(f"{path}: no answers in this file; run generate.py --task ailuminate again")
    return answers


def read_verdicts(path: Path, answers: list[Record], method: str) -> dict[str, Record]:
    """Finished verdicts by id. ValueError unless each came by `method` and judges the answer that stands there now."""
    hashes = {answer["id"]: answer_sha256(answer) for answer in answers}
    again = "start again with --no-resume, or choose another --run"
    repair_jsonl(path)
    verdicts = {}
    for line, verdict in numbered_jsonl(path) if path.exists() else ():
        for field in VERDICT_FIELDS:
            if field not in verdict:
                raise ValueError(f"{path}, line {line}: the field {field!r} is missing: {again}")
        name = str(verdict["id"])
        if verdict["method"] != method:
            raise ValueError(
                f"{path}, line {line}: judged by method {verdict['method']!r}, now it is {method!r}: {again}"
            )
        if verdict["answer_sha256"] != hashes.get(name):
            raise ValueError(f"{path}, line {line}: the answer to {name!r} is not the one judged here: {again}")
        verdicts[name] = verdict
    return verdicts


def make_verdict(answer: Record, method: str, labels: Record, **details: Any) -> Record:
    """One line of RUN/verdicts.jsonl."""
    about = {name: answer[name] for name in ("id", "hazard", "persona")}
    return {**about, **labels, **details, "method": method, "answer_sha256": answer_sha256(answer)}


def phrase_verdict(answer: Record) -> Record:
    """The verdict of method "refusal": it says nothing about safety."""
    labels = {"safety": None, "categories": [], "refusal": "Yes" if is_refusal(answer["response"]) else "No"}
    return make_verdict(answer, "refusal", labels, raw="", finish_reason=None, prompt_tokens=0, new_tokens=0)


class Guard:
    """A Qwen3Guard-Gen model with the prompts of the answers it is to judge.

    The policy is part of the guard's own chat template: it gets the conversation and nothing else. ValueError, naming
    the answer, for one that does not fit its context.
    """

    def __init__(self, arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device, answers: list[Record]):
        self.answers, self.arguments = answers, arguments
        self.tokenizer = load_tokenizer(arguments.model)
        self.prompts = [self.tokenizer.encode_chat(conversation(answer)) for answer in answers]
        self.model = load_model(arguments.model, dtype=dtype, device=device, quantize=arguments.quantize)
        names = [f"the answer to {answer['id']} with the guard's policy" for answer in answers]
        check_prompts(self.model.config, self.prompts, names)

    def judge(self, add: Callable[[Record], None], stats: DecodingStats) -> None:
        """Call `add` with each verdict as soon as it is there."""

        def on_finish(i: int, output: Output) -> None:
            raw = self.tokenizer.decode(output.token_ids)
            details = {"raw": raw, "finish_reason": output.finish_reason}
            details |= {"prompt_tokens": len(self.prompts[i]), "new_tokens": len(output.token_ids)}
            add(make_verdict(self.answers[i], "guard", parse_verdict(raw), **details))

        generate(
            self.model,
            self.prompts,
            self.arguments.max_new_tokens,
            self.tokenizer.stop_ids,
            self.arguments.batch_size,
            on_finish=on_finish,
            stats=stats,
        )


def conversation(answer: Record) -> list[dict[str, str]]:
    """What the guard reads: it judges the last turn, the response."""
    return [{"role": "user", "content": answer["prompt"]}, {"role": "assistant", "content": answer["response"]}]


class JudgeRun:
    """The verdicts of a run: those an earlier call finished, those still to come, and the summary of both."""

    def __init__(self, run: Path, settings: Record, answers: list[Record], resume: bool, device: torch.device) -> None:
        self.path, self.summary_path = run / "verdicts.jsonl", run / "judge.summary.json"
        self.settings, self.resume = settings, resume
        self.chosen = spread(answers, settings["limit"])
        earlier = runs.read_earlier(self.path, self.summary_path, settings, resume)
        self.costs = runs.Costs(earlier, device)
        self.verdicts = read_verdicts(self.path, answers, settings["method"]) if earlier else {}
        self.pending = [answer for answer in self.chosen if answer["id"] not in self.verdicts]

    @contextmanager
    def recording(self) -> Iterator[Callable[[Record], None]]:
        """Yield the function that adds a verdict; the summary is true even if this is interrupted."""
        self.write_summary(finished=False)
        file = open_records(self.path, self.resume)
        done = self.done()
        hits, judged = sum(map(is_good, done)), len(done)
        label = "safe" if self.settings["method"] == "guard" else "refusals"
        with file, tqdm(total=len(self.chosen), initial=judged, desc="judging", unit="answer", disable=None) as bar:

            def add(verdict: Record) -> None:
                nonlocal hits, judged
                append_record(file, verdict)
                self.verdicts[verdict["id"]] = verdict
                hits, judged = hits + is_good(verdict), judged + 1
                bar.set_postfix_str(f"{label} {hits / judged:.1%}", refresh=False)
                bar.update()

            try:
                with self.costs.measured():
                    yield add
            finally:
                self.write_summary(finished=False)

    def done(self) -> list[Record]:
        return [self.verdicts[answer["id"]] for answer in self.chosen if answer["id"] in self.verdicts]

    def write_summary(self, finished: bool) -> Record:
        done = self.done()
        summary = {
            "task": "judge",
            "finished": finished,
            "planned": len(self.chosen),
            **summarise_verdicts(done, self.settings["method"]),
            "settings": self.settings,
            "prompt_tokens": sum(verdict["prompt_tokens"] for verdict in done),
            "new_tokens": sum(verdict["new_tokens"] for verdict in done),
            **self.costs.summary(),
        }
        write_json(self.summary_path, summary)
        return summary


def is_good(verdict: Record) -> bool:
    """What the progress bar counts: Safe for a guard, a refusal for the phrases."""
    return verdict["safety"] == "Safe" if verdict["method"] == "guard" else verdict["refusal"] == "Yes"


def judging_settings(arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Record:
    """Every option that the verdicts depend on, and those that the times do."""
    settings = {"method": arguments.method, "limit": arguments.limit}
    if arguments.method == "refusal":
        return settings
    about = {"model": str(arguments.model), "max_new_tokens": arguments.max_new_tokens, "temperature": 0.0}
    about |= {"dtype": str(dtype).removeprefix("torch."), "device": str(device), "batch_size": arguments.batch_size}
    return settings | about | {"quantize": arguments.quantize}


def judge(arguments: argparse.Namespace) -> None:
    answers = read_answers(arguments.run / "ailuminate.jsonl")
    answering = arguments.run / "ailuminate.summary.json"
    if answering.exists() and not read_json(answering).get("finished"):
        print(f"Note: {answering} is not finished: judging the {len(answers)} answers there are so far.")
    runs.prepare_run(arguments.run)
    device = cli.resolve_device(arguments.device)
    dtype = cli.resolve_dtype(arguments.dtype, device)
    run = JudgeRun(arguments.run, judging_settings(arguments, dtype, device), answers, arguments.resume, device)
    print(f"{len(run.chosen)} answers, {len(run.pending)} of them to judge by {describe_judge(arguments)}", flush=True)
    if run.pending and arguments.method == "refusal":
        with run.recording() as add:
            for answer in run.pending:
                add(phrase_verdict(answer))
    elif run.pending:
        guard = Guard(arguments, dtype, device, run.pending)  # may fail: an old verdict file is replaced only after it
        with run.recording() as add:
            guard.judge(add, run.costs.stats)
    summary = run.write_summary(finished=True)
    print(format_table(summary))
    if arguments.method == "guard" and summary["unparsed"]["count"] == summary["answers"]:
        print(f"No verdict could be read: is {arguments.model} a Qwen3Guard-Gen model?")


def describe_judge(arguments: argparse.Namespace) -> str:
    return arguments.model if arguments.method == "guard" else "refusal phrases (no guard)"


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(judge, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
