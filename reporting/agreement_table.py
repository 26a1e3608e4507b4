"""Agreement of several judges of the same answers."""

from collections.abc import Sequence

from data.registry import TASKS
from guards.agreement import judge_agreements
from reporting.load_runs import Run
from reporting.scores import judge_title, judges_of
from reporting.tables import Table, make_table, number

ABOUT_AGREEMENT = (
    "Answers that both judges have judged: how many count for both, for one of them alone, and for "
    "none. Kappa: Cohen's, the agreement beyond what their two rates alone would give; 1 is "
    "complete, 0 is chance."
)


def agreement_table(runs: Sequence[Run]) -> Table | None:
    """Every two judges of a task, run by run; None if no answers have two."""
    rows = []
    for task in TASKS.values():
        for index, run in enumerate(runs):
            verdicts = {}
            for judge in judges_of([run], task):
                judgement = run.judgements[task.name][judge]
                if judgement.finished:
                    verdicts[judge] = [verdict.fields for verdict in judgement.records]
            for found in judge_agreements(task, verdicts):
                counts = (found.both, found.first_only, found.second_only, found.neither)
                cells = [run.name, f"{task.title}: {found.measure.title}"]
                cells += [judge_title(found.first), judge_title(found.second)]
                cells += [f"{count:,}" for count in counts]
                rows.append((index, [*cells, number(found.kappa, ".2f")]))
    header = "run|measure|first judge|second judge|both|first alone|second alone|none|kappa"
    return make_table("Agreement of judges", header.split("|"), rows, ABOUT_AGREEMENT)
