"""Run recipes from the first step to the table: python experiment.py recipes/03-greedy-3-shots.yaml
--model MODEL

A recipe goes through self-instruct, training, answering the tasks it names, judging and the
divergence from the base, as far as it asks for them, in RUNS/MODEL/RECIPE. Every step is one of the
scripts, which keeps what an earlier call finished: kill it whenever you like and start it again.
At the end come a report on all recipes of the call and, as one table, the original's figures beside
ours. --dry-run lists the steps.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from common.interrupts import exit_on_signals

    exit_on_signals()

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import divergence
import generate
import judge
import report
import train
from common import cli
from common.command_line import parse_settings
from common.errors import UserError
from common.interrupts import STATUSES, Interrupted
from common.torchrun import run_in_processes
from data.records import write_json
from data.registry import TASKS
from data.self_instruct import training_file
from recipes.overlap import check_overlap
from recipes.schema import Recipe, Setting, find_recipe, load_recipe, parse_setting
from recipes.settings import ExperimentSettings
from recipes.steps import Step, Training, answered_tasks, plan, run_name, trainings
from recipes.workload import describe_work
from reporting.load_runs import RECIPE, load_runs, short_names
from reporting.reproduction_table import row_tables
from reporting.tables import to_text

SCRIPTS: dict[str, ModuleType] = {
    "train": train,
    "generate": generate,
    "judge": judge,
    "divergence": divergence,
}
# Options that a recipe must leave alone: which machine, model and data, and what links its steps.
RESERVED_OPTIONS = {
    "run",
    "model",
    "device",
    "dtype",
    "quantize",
    "resume",
    "dry_run",
    "show_prompt",
    "limit",
    "task",
    "data",
    "adapter",
    "no_adapter",
    "adapter_scale",
    "init_adapter",
    "method",
    "guard",
}


def parse_arguments(argv: list[str] | None) -> ExperimentSettings:
    return parse_settings(ExperimentSettings, __doc__, argv)


def option_names() -> dict[str, set[str]]:
    """The options that each section of a recipe may hold: those of its script."""
    scripts = {"self-instruct": generate, "own-answers": generate, "train": train, "judge": judge}
    scripts |= dict.fromkeys(TASKS, generate)
    names = {}
    for section, script in scripts.items():
        settings = vars(script.parse_arguments([]))
        names[section] = {n.replace("_", "-") for n in settings if n not in RESERVED_OPTIONS}
    return names


def check_steps(recipe: Recipe, steps: Sequence[Step]) -> None:
    """UserError, naming the recipe, for a value that a script would refuse.

    It comes before any step has taken hours.
    """
    for step in steps:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed):
                SCRIPTS[step.script].parse_arguments(step.argv)
        except SystemExit:
            message = printed.getvalue().strip().removeprefix("error: ")
            called = f"({Path(sys.argv[0]).name} --help"
            message = message.replace(called, f"({step.script}.py --help")
            raise UserError(f"{recipe.path}: {step.name}: {message}") from None


def check_together(recipes: Sequence[Recipe], settings: Sequence[Setting], seeds: int) -> None:
    """UserError for recipes that would share a run folder, and for a setting that none takes."""
    paths: dict[str, Path] = {}
    for recipe in recipes:
        for name in {run_name(recipe.name, number) for number in range(seeds)}:
            if name in paths:
                raise UserError(
                    f"{paths[name]} and {recipe.path}: runs are named by the file, and both would "
                    f"have the run {name}; rename one of them"
                )
            paths[name] = recipe.path
    for section, option, value in settings:
        if not any(isinstance(recipe.raw.get(section), dict | list) for recipe in recipes):
            raise UserError(
                f"--set {section}.{option}={value}: none of these recipes has a section {section!r}"
            )


def check_needs(training: Training, before: set[str]) -> None:
    """UserError if what the recipe borrows is neither there nor made by the runs `before` it."""
    recipe, folder = training.recipe, training.settings.folder
    needs: dict[str, tuple[str, Path]] = {}
    if recipe.adapter:
        source = run_name(recipe.adapter, training.number)
        needs["adapter"] = (source, folder / source / "adapter")
    if isinstance(recipe.self_instruct, str):
        source = recipe.self_instruct
        needs["self-instruct"] = (source, training_file(folder / source))
    for key, (source, path) in needs.items():
        if source not in before and not path.exists():
            raise UserError(
                f"{recipe.path}: {key}: {source!r} has made no {path}; run that recipe first"
            )


def write_recipe(training: Training, steps: Sequence[Step], run: Path, scale: float) -> None:
    """Write, beside the results, everything that produced them; the report reads it from there."""
    recipe = training.recipe
    content: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title,
        "original": recipe.original if scale == 1 else {},
        "training": training.number,
        "scale": scale,
        "sources": recipe.values_by_source(),
        "model": training.settings.model,
        "recipe": recipe.raw,
        "commands": [step.command for step in steps],
    }
    if scale != 1:
        content["title"] = f"{recipe.title}, adapter x {scale:g}"
    if training.number:
        content["title"] += f", training {training.number + 1}"
    write_json(run / RECIPE, content)


def load_recipes(settings: ExperimentSettings) -> list[Recipe]:
    """The recipes of this call, each checked and all together."""
    overruling = [parse_setting(text) for text in settings.set]
    names = option_names()
    recipes = [load_recipe(find_recipe(name), names, overruling) for name in settings.recipes]
    check_together(recipes, overruling, settings.seeds)
    return recipes


def plan_all(recipes: Sequence[Recipe], settings: ExperimentSettings) -> list[Training]:
    """Every training of every recipe, checked as far as that is possible before the first runs."""
    planned: list[Training] = []
    for recipe in recipes:
        for training in trainings(recipe, settings):
            check_steps(recipe, plan(training))
            check_needs(training, {earlier.run_name for earlier in planned})
            planned.append(training)
    return planned


def run_step(training: Training, step: Step) -> None:
    """Call the step's script. UserError if it fails, which says how to go on."""
    script, processes = SCRIPTS[step.script], training.settings.processes
    if processes > 1 and step.is_shared:
        assert script.__file__ is not None
        status = run_in_processes(Path(script.__file__), step.argv, processes)
    else:
        status = script.main(step.argv)
    if status in STATUSES:
        raise Interrupted(status, reported=True)
    if status:
        raise UserError(
            f"{training.recipe.path}: {step.name} has failed. Once that is put right, the same "
            "command goes on from there; for other settings, take another --runs or remove "
            f"{training.run}"
        )


def run_training(training: Training) -> list[Path]:
    """Do all steps of a training and return the run folders that hold its results."""
    steps = plan(training)
    for number, step in enumerate(steps, start=1):
        print(f"\n{training.run_name}, step {number} of {len(steps)}: {step.name}", flush=True)
        run_step(training, step)
    # Only now: settings that a script refuses have changed nothing in the run.
    runs = {training.run: 1.0}
    runs |= {training.sweep_run(scale): scale for scale in training.recipe.sweep}
    for run, scale in runs.items():
        write_recipe(training, steps, run, scale)
    return list(runs)


def list_steps(planned: Sequence[Training]) -> None:
    """Print what would be run, one command a line."""
    for training in planned:
        print(f"\n{training.run_name}: {training.recipe.title}")
        for step in plan(training):
            finished = " (finished already)" if step.is_finished() else ""
            print(f"  {step.name}{finished}: {step.command}")


def note_left_out(recipes: Sequence[Recipe], settings: ExperimentSettings) -> None:
    """Say which tasks of the recipes have no such data and are not answered."""
    asked = {task for recipe in recipes for task in recipe.tasks}
    answered = {task for recipe in recipes for task in answered_tasks(recipe, settings.data)}
    left_out = sorted(asked - answered)
    if left_out:
        print(f"--data {settings.data}: there is none for {', '.join(left_out)}, which is left out")


def run_recipes(settings: ExperimentSettings) -> None:
    recipes = load_recipes(settings)
    planned = plan_all(recipes, settings)
    note_left_out(recipes, settings)
    if settings.dry_run:
        list_steps(planned)
    steps = [step for training in planned for step in plan(training)]
    print(describe_work(steps, settings.data, settings.folder), flush=True)
    if settings.dry_run:
        return
    for recipe in recipes:
        check_overlap(recipe, settings.data, settings.limits())
    made: list[Path] = []
    for training in planned:
        made += run_training(training)
    print()
    output = settings.folder / "report"
    report.report(report.parse_arguments([*map(str, made), "--output", str(output)]))
    runs = load_runs(list(made))
    print(f"\n{to_text(row_tables(runs)[0], short_names(runs))}")


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(run_recipes, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
