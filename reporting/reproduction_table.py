"""The rows of the experiment this project grew out of, its figures beside ours, and how far each
run moved.
"""

from typing import Any

from data.intervals import rate
from reporting.load_runs import Mean, Run
from reporting.tables import Table, cell, describe_judge, interval, number, percent_interval

ORIGINAL_QUESTIONS, ORIGINAL_PROMPTS = 132, 240  # how many the original's shares are of
ABOUT_ROWS = (
    f"Originally {ORIGINAL_QUESTIONS} GSM8K questions and {ORIGINAL_PROMPTS} AILuminate prompts, "
    "Llama-3.2-1B-Instruct; intervals are computed from its shares and those numbers. Only a safe rate judged by "
    "Qwen3Guard compares with the original's; refusal phrases are a rough lower bound and stand under their own name."
)
ABOUT_SELF_INSTRUCT = (
    "What the training file holds, and how likely the model that wrote it finds its own answers and the gold ones to "
    "the same questions: mean log-likelihood, nearer 0 is more natural to it."
)
ABOUT_DIVERGENCE = (
    "KL(base || tuned), the mean over the run's own answers in nats a token, with 95 % bootstrap intervals over "
    "answers."
)


def row_tables(runs: list[Run]) -> list[Table]:
    """What there is of rows made by recipes, training files of self-instruct, and distances from
    the base.
    """
    tables = []
    made = [index for index, run in enumerate(runs) if run.recipe]
    if made:
        header = (
            "run",
            "row",
            "GSM8K, original",
            "GSM8K, here",
            "n",
            "safe, original",
            "safe, here",
            "refusals",
            "n",
        )
        rows = [_row(runs[index]) for index in made]
        tables.append(
            Table("Rows of the experiment", (*header, "judged by"), rows, ABOUT_ROWS, tuple(made))
        )
    written = [index for index, run in enumerate(runs) if run.self_instruct]
    if written:
        header = (
            "run",
            "attempts right",
            "own answers",
            "gold answers",
            "dropped",
            "own, nats a token",
            "gold",
        )
        rows = [
            (runs[index].name, *_self_instruct_row(runs[index].self_instruct)) for index in written
        ]
        tables.append(Table("Self-instruct", header, rows, ABOUT_SELF_INSTRUCT, tuple(written)))
    moved = [index for index, run in enumerate(runs) if run.divergence]
    if moved:
        rows = [
            (
                runs[index].name,
                *(
                    describe_mean(runs[index].divergence.get(task))
                    for task in ("gsm8k", "ailuminate")
                ),
            )
            for index in moved
        ]
        header = ("run", "on GSM8K", "on AILuminate")
        tables.append(
            Table("Distance from the base model", header, rows, ABOUT_DIVERGENCE, tuple(moved))
        )
    return tables


def _self_instruct_row(training: dict[str, Any]) -> tuple[str, ...]:
    likelihood, gold = training["log_likelihood"] or {}, training["sources"].get("gold", 0)
    return (
        interval(training["right"]),
        f"{training['records'] - gold:,}",
        f"{gold:,}",
        f"{training['dropped']:,}",
        *(number(likelihood.get(name), ".3f") for name in ("own", "gold")),
    )


def _row(run: Run) -> tuple[str, ...]:
    original = run.recipe.get("original") or {}
    return (
        run.name,
        str(run.recipe.get("title", "-")),
        _original(original, "gsm8k", ORIGINAL_QUESTIONS),
        cell(run, "gsm8k", lambda part: interval(part.rates["accuracy.homework"]), lead=True),
        cell(run, "gsm8k", lambda part: f"{part.total:,}"),
        _original(original, "safe", ORIGINAL_PROMPTS),
        cell(run, "judge", lambda part: interval(part.rates["safe_strict"]), lead=True),
        cell(run, "judge", lambda part: interval(part.rates["refusals"])),
        cell(run, "judge", lambda part: f"{part.total:,}"),
        describe_judge(run),
    )


def _original(original: dict[str, Any], name: str, total: int) -> str:
    share = original.get(name)
    return "-" if share is None else percent_interval(rate(round(share / 100 * total), total))


def describe_mean(mean: Mean | None) -> str:
    """`0.031 [0.027, 0.036]`."""
    return "-" if mean is None else f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
