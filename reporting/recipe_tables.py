"""Tables of recipes beside their rows: repeated trainings, and the sources of settings."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from reporting.load_runs import Run
from reporting.scores import column_title, headline_scores
from reporting.tables import EMPTY, Table, make_table

SOURCES = {
    "record": "the original's record",
    "code": "its code",
    "assumed": "assumed",
    "ours": "ours",
}
ABOUT_TRAININGS = (
    "Mean and standard deviation, in percent, over trainings that differ in their seeds alone, and "
    "how many there are, on the prompts that all of them answered. A difference between two runs "
    "that is no larger than this does not show one between their methods; the intervals elsewhere "
    "are of the sampled questions alone."
)
ABOUT_SOURCES = (
    "The original is known from a table of results and from notebooks as they were at the end. "
    "Assumed: neither says so. Ours: it has not done that."
)


def repeated_trainings(runs: Sequence[Run]) -> dict[int, list[int]]:
    """The indices of runs that repeat one training, by the first of them."""
    groups: dict[tuple[str, str, float], list[int]] = {}
    for index, run in enumerate(runs):
        recipe = run.recipe
        if recipe is not None and recipe.name:
            groups.setdefault((recipe.name, recipe.model, recipe.scale), []).append(index)
    repeated = {}
    for indices in groups.values():
        indices.sort(key=lambda index: _training_number(runs[index]))
        if len(indices) > 1:
            repeated[indices[0]] = indices
    return repeated


def _training_number(run: Run) -> int:
    return run.recipe.training if run.recipe else 0


def describe_spread(trainings: Sequence[Mapping[str, bool]]) -> str:
    """`42.9 +- 0.8 (3)`: what counts of the prompts that all trainings answered, by id.

    '-' for fewer than two trainings.
    """
    answered = [counted for counted in trainings if counted]
    common = set.intersection(*map(set, answered)) if answered else set()
    if len(answered) < 2 or not common:
        return EMPTY
    shares = [100 * mean(counted[name] for name in common) for counted in answered]
    return f"{mean(shares):.1f} +- {stdev(shares):.1f} ({len(shares)})"


def trainings_table(runs: Sequence[Run]) -> Table | None:
    """The spread of every main score between trainings with other seeds."""
    scores = headline_scores(runs)
    rows = []
    for first, indices in repeated_trainings(runs).items():
        cells = []
        for score in scores:
            finished = [runs[i] for i in indices if score.rate(runs[i]) is not None]
            cells.append(describe_spread([score.counted(run) for run in finished]))
        rows.append((first, [runs[first].name, *cells]))
    header = ["run", *(column_title(score, scores) for score in scores)]
    return make_table("Between trainings", header, rows, ABOUT_TRAININGS)


def sources_table(runs: Sequence[Run]) -> Table | None:
    """The settings of the original's rows by where each value comes from."""
    rows = []
    for index, run in enumerate(runs):
        recipe = run.recipe
        if recipe is None or recipe.training or recipe.scale != 1:
            continue
        for kind, title in SOURCES.items():
            settings = recipe.sources.get(kind)
            if settings:
                rows.append((index, [run.name, title, "; ".join(settings)]))
    return make_table(
        "Where the settings come from", ["run", "source", "settings"], rows, ABOUT_SOURCES
    )
