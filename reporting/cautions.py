"""What a reader of a report must know before comparing its runs."""

from collections.abc import Iterator

from reporting.load_runs import PART_SCHEMAS, Part, Run

ANSWERED = (
    ("gsm8k", "GSM8K", "question"),
    ("ailuminate", "AILuminate", "prompt"),
)  # task, title, prompt field


def find_cautions(runs: list[Run]) -> list[str]:
    """Sentences about what in `runs` must not be compared without a second look."""
    cautions = [
        f"{run.name}: {text}"
        for run in runs
        for text in (*_part_cautions(run), *_adapter_cautions(run))
    ]
    for task, title, prompt in ANSWERED:
        finished = [
            run.parts[task] for run in runs if task in run.parts and run.parts[task].finished
        ]
        asked = {
            frozenset((record["id"], record[prompt]) for record in part.records)
            for part in finished
        }
        if len(asked) > 1:
            cautions.append(f"The runs did not all answer the same {title} prompts.")
    judges = {run.name: judge_label(run.parts["judge"]) for run in runs if "judge" in run.parts}
    if len(set(judges.values())) > 1:
        judged = "; ".join(f"{name} by {judge}" for name, judge in judges.items())
        cautions.append(f"The runs were not all judged alike: {judged}.")
    return cautions


def _part_cautions(run: Run) -> Iterator[str]:
    for task, part in run.parts.items():
        if not part.finished:
            yield f"{task} is unfinished ({part.progress}, unless interrupted); its results are left out."
        elif part.done != part.total:
            unit = "steps" if task == "train" else "records"
            yield (
                f"{PART_SCHEMAS[task].records} holds {part.done} {unit}, but {task}.summary.json counts {part.total} "
                "(was --limit changed?); the results are the summary's."
            )
    judge, ailuminate = run.parts.get("judge"), run.parts.get("ailuminate")
    if judge and judge.finished and ailuminate and len(ailuminate.records) != judge.total:
        yield f"{judge.total} of {len(ailuminate.records)} AILuminate answers are judged."
    if run.stale_verdicts:
        yield (
            "its verdicts are left out: not all are on the answers that ailuminate.jsonl holds now (others: "
            f"{run.stale_verdicts}); judge.py --no-resume judges them."
        )


def _adapter_cautions(run: Run) -> Iterator[str]:
    train, gsm8k, ailuminate = (run.parts.get(task) for task in ("train", "gsm8k", "ailuminate"))
    if gsm8k and ailuminate:
        for name in ("model", "adapter", "adapter_scale"):
            one, other = gsm8k.settings.get(name), ailuminate.settings.get(name)
            if one != other:
                yield f"{name} was {one} for GSM8K and {other} for AILuminate."
    if not train or not train.finished:
        return
    for task, title, _ in ANSWERED:
        if task not in run.parts:
            continue
        adapter, trained = run.parts[task].settings.get("adapter"), train.adapter_fingerprint
        if adapter is None:
            yield f"{title} was answered by the base model, not with the adapter trained here."
        elif trained not in (None, adapter):
            yield f"{title} was answered with adapter {adapter}, not with {trained}, the one trained here."


def judge_label(judge: Part) -> str:
    """All that the verdicts' comparability hangs on, in words."""
    if judge.method == "refusal":
        return "refusal phrases"
    free = "" if judge.settings.get("grammar", True) else ", decoded freely"
    dtype = judge.settings.get("dtype", "an unnamed dtype")
    return f"{judge.settings.get('model', 'an unnamed guard')} in {dtype}{free}"
