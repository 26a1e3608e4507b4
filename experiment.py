"""Run recipes from the first step to the table: python experiment.py recipes/greedy-3-shots.yaml
--model MODEL

A recipe goes through self-instruct, training, GSM8K, AILuminate, judging and the divergence from
the base, as far as it asks for them, in RUNS/MODEL/RECIPE. Every step is one of the scripts, which
keeps what an earlier call finished: kill it whenever you like and start it again. At the end come a
report on all recipes of the call and, as one table, the original's figures beside ours.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import divergence
import generate
import judge
import report
import train
from common import cli
from common.errors import UserError
from common.self_instruct_file import training_file
from data.records import write_json
from guards.verdicts import METHODS
from recipes.schema import Options, Recipe, Setting, load_recipe, parse_setting
from reporting.load_runs import RECIPE, load_runs, short_names
from reporting.reproduction_table import row_tables
from reporting.tables import to_text

SCRIPTS = {
    "self-instruct": generate,
    "train": train,
    "gsm8k": generate,
    "ailuminate": generate,
    "judge": judge,
}
# What a recipe does not say: which machine, model and data, and what links its steps.
OURS = {
    "run",
    "model",
    "device",
    "dtype",
    "quantize",
    "resume",
    "limit",
    "task",
    "data",
    "adapter",
    "no_adapter",
    "adapter_scale",
}
OURS |= {"init_adapter", "guard", "dry_run"}


@dataclass(frozen=True)
class Step:
    """A script and what its `main` is called with."""

    name: str
    script: ModuleType
    argv: list[str]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "recipes", nargs="+", type=Path, metavar="RECIPE", help="YAML file, as in recipes/"
    )
    parser.add_argument(
        "--model", default="meta-llama/Llama-3.2-1B-Instruct", help="see train.py (%(default)s)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (%(default)s)"
    )
    parser.add_argument(
        "--data",
        choices=("official", "demo"),
        default="official",
        help="to train and test on (official)",
    )
    parser.add_argument(
        "--limit",
        type=cli.positive_int,
        metavar="N",
        help="test questions and hazard prompts (all)",
    )
    parser.add_argument(
        "--train-limit", type=cli.positive_int, metavar="N", help="training questions (all)"
    )
    parser.add_argument(
        "--kl-limit",
        type=cli.positive_int,
        default=200,
        metavar="N",
        help="see divergence.py --limit (%(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="overrules every recipe that has the section, as in train.lr=1e-3; may be repeated",
    )
    parser.add_argument(
        "--judge", choices=METHODS, default="guard", help="who judges the answers (%(default)s)"
    )
    parser.add_argument(
        "--guard",
        default="Qwen/Qwen3Guard-Gen-4B",
        metavar="MODEL",
        help="see judge.py (%(default)s)",
    )
    parser.add_argument(
        "--embedder", metavar="MODEL", help="of similar shots, instead of the recipe's"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: CUDA if there is one"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=cli.DTYPES, metavar="TYPE", help="see train.py (auto)"
    )
    return parser.parse_args(argv)


def option_names() -> dict[str, set[str]]:
    """What each section of a recipe may say: the options of its script."""
    return {
        section: {
            name.replace("_", "-") for name in vars(script.parse_arguments([])) if name not in OURS
        }
        for section, script in SCRIPTS.items()
    }


def to_argv(options: Options) -> list[str]:
    """`{"shots": 3, "system-header": False}` -> `["--shots", "3", "--no-system-header"]`."""
    argv = []
    for name, value in options.items():
        if isinstance(value, bool):
            argv.append(f"--{'' if value else 'no-'}{name}")
        elif isinstance(value, str) and value.startswith("-"):
            argv.append(f"--{name}={value}")  # argparse would take it for another option
        else:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def plan(recipe: Recipe, folder: Path, arguments: argparse.Namespace) -> list[Step]:
    """The steps of a recipe in the order they run. `folder` holds the runs of all recipes."""
    run = folder / recipe.name
    machine = ["--device", arguments.device, "--dtype", arguments.dtype]
    shared = ["--model", str(arguments.model), *machine]
    embedder = ["--embedder", arguments.embedder] if arguments.embedder else []
    amount = ["--limit", str(arguments.train_limit)] if arguments.train_limit else []
    steps, data = [], ["--data", arguments.data]
    if isinstance(recipe.self_instruct, str):
        data = ["--data", str(training_file(folder / recipe.self_instruct))]
    elif recipe.self_instruct is not None:
        argv = [
            "--task",
            "self-instruct",
            "--run",
            str(run),
            "--no-adapter",
            *shared,
            *amount,
            *data,
        ]
        steps.append(
            Step("self-instruct", generate, [*argv, *to_argv(recipe.self_instruct), *embedder])
        )
        data = ["--data", str(training_file(run))]
    adapter = folder / recipe.adapter / "adapter" if recipe.adapter else None
    for number, stage in enumerate(recipe.train, start=1):
        last = number == len(recipe.train)
        stage_run = run if last else run / f"stage-{number}"
        argv = ["--run", str(stage_run), *shared, *amount, *data, *to_argv(stage), *embedder]
        argv += ["--init-adapter", str(adapter)] if adapter else []
        steps.append(Step("training" if last else f"training, stage {number}", train, argv))
        adapter = stage_run / "adapter"
    steps += answering_steps(recipe, run, adapter, 1.0, shared, embedder, arguments)
    for scale in recipe.sweep:
        steps += answering_steps(
            recipe, run / f"scale-{scale:g}", adapter, scale, shared, embedder, arguments
        )
    return steps


def answering_steps(
    recipe: Recipe,
    run: Path,
    adapter: Path | None,
    scale: float,
    shared: list[str],
    embedder: list[str],
    arguments: argparse.Namespace,
) -> Iterator[Step]:
    """Answer, judge and measure with one adapter at one scale."""
    which = (
        ["--adapter", str(adapter), "--adapter-scale", f"{scale:g}"]
        if adapter
        else ["--no-adapter"]
    )
    limit = ["--limit", str(arguments.limit)] if arguments.limit else []
    at = f", scale {scale:g}" if scale != 1 else ""
    for task, options in (
        ("gsm8k", [*to_argv(recipe.gsm8k), *embedder]),
        ("ailuminate", to_argv(recipe.ailuminate)),
    ):
        argv = [
            "--task",
            task,
            "--run",
            str(run),
            *which,
            *shared,
            *limit,
            "--data",
            arguments.data,
            *options,
        ]
        yield Step(f"{task}{at}", generate, argv)
    guard = str(arguments.guard) if arguments.judge == "guard" else "refusal-phrases"
    judging = ["--run", str(run), "--guard", guard, *to_argv(recipe.judge)]
    if arguments.judge == "guard":
        judging += ["--device", arguments.device, "--dtype", arguments.dtype]
    yield Step(f"judging{at}", judge, judging)
    measuring = [
        "--run",
        str(run),
        "--device",
        arguments.device,
        "--limit",
        str(arguments.kl_limit),
    ]
    yield Step(f"divergence{at}", divergence, measuring)


def check_steps(recipe: Recipe, steps: list[Step]) -> None:
    """ValueError, naming the recipe, for a value that a script would refuse: before any step has
    taken hours.
    """
    for step in steps:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                step.script.parse_arguments(step.argv)
        except SystemExit:
            message = said.getvalue().strip().removeprefix("error: ")
            message = message.replace(
                f"({Path(sys.argv[0]).name} --help", f"({step.script.__name__}.py --help"
            )
            raise UserError(f"{recipe.path}: {step.name}: {message}") from None


def check_together(recipes: list[Recipe], settings: list[Setting]) -> None:
    """UserError for recipes that would share a run folder, and for a setting that none of them
    takes.
    """
    paths: dict[str, Path] = {}
    for recipe in recipes:
        if recipe.name in paths:
            raise UserError(
                f"{paths[recipe.name]} and {recipe.path}: runs are named by the file; rename one of them"
            )
        paths[recipe.name] = recipe.path
    for section, option, value in settings:
        if not any(isinstance(recipe.raw.get(section), dict | list) for recipe in recipes):
            raise UserError(
                f"--set {section}.{option}={value}: none of these recipes has a section {section!r}"
            )


def check_needs(recipe: Recipe, before: set[str], folder: Path) -> None:
    """UserError if what the recipe borrows is neither there nor made by the recipes that run
    `before` it.
    """
    needs = {"adapter": (recipe.adapter, lambda run: run / "adapter")}
    if isinstance(recipe.self_instruct, str):
        needs["self-instruct"] = (recipe.self_instruct, training_file)
    for key, (name, where) in needs.items():
        if name and name not in before and not where(folder / name).exists():
            raise UserError(
                f"{recipe.path}: {key}: {name!r} has made no {where(folder / name)}; run that recipe first"
            )


def write_recipe(
    recipe: Recipe, run: Path, steps: list[Step], arguments: argparse.Namespace, scale: float = 1
) -> None:
    """Beside the results, everything that produced them; the report reads title and original from
    here.
    """
    about: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title,
        "original": recipe.original,
    }
    if scale != 1:
        about |= {"title": f"{recipe.title}, adapter x {scale:g}", "original": {}}
    commands = [f"{step.script.__name__}.py {' '.join(step.argv)}" for step in steps]
    write_json(
        run / RECIPE,
        {**about, "model": str(arguments.model), "recipe": recipe.raw, "commands": commands},
    )


def run_recipes(arguments: argparse.Namespace) -> None:
    names = option_names()
    settings = [parse_setting(text) for text in arguments.set]
    recipes = [load_recipe(path, names, settings) for path in arguments.recipes]
    check_together(recipes, settings)
    folder: Path = arguments.runs / PurePath(str(arguments.model)).name
    planned = [(recipe, plan(recipe, folder, arguments)) for recipe in recipes]
    for index, (recipe, steps) in enumerate(planned):
        check_steps(recipe, steps)
        check_needs(recipe, {earlier.name for earlier in recipes[:index]}, folder)
    made = []
    for recipe, steps in planned:
        run = folder / recipe.name
        for number, step in enumerate(steps, start=1):
            print(f"\n{recipe.name}, step {number} of {len(steps)}: {step.name}", flush=True)
            status = step.script.main(step.argv)
            if status == 130:
                raise KeyboardInterrupt("told by the step")
            if status:
                raise UserError(
                    f"{recipe.path}: {step.name} has failed. Once that is put right, the same command goes on from "
                    f"there; for other settings, take another --runs or remove {run}"
                )
        for path, scale in [
            (run, 1.0),
            *((run / f"scale-{scale:g}", scale) for scale in recipe.sweep),
        ]:
            write_recipe(
                recipe, path, steps, arguments, scale
            )  # only now: refused settings have made nothing here
            made.append(path)
    print()
    report.report(report.parse_arguments([*map(str, made), "--output", str(folder / "report")]))
    runs = load_runs(made)
    print(f"\n{to_text(row_tables(runs)[0], short_names(runs))}")


def main(argv: list[str] | None = None) -> int:
    return cli.run_script(run_recipes, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
