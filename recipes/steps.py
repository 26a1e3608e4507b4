"""The steps of a recipe: which script is called with which options, in which order."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.command_line import read_number
from common.errors import UserError
from common.options import positive_float, positive_int
from data.records import read_json
from data.registry import TASKS
from data.self_instruct import training_file
from data.voting import samples_stem
from guards import own_answers
from guards.registry import GUARDS
from recipes.own_options import OWN_ANSWERS, SELF_INSTRUCT
from recipes.schema import SHOTS_DATA, Recipe
from recipes.settings import ExperimentSettings
from recipes.sources import Options

TRAIN = "train"
SHARED = (TRAIN, "generate", "judge")  # the scripts that run under torchrun
SEED_STRIDE = 1000  # between the seeds of two trainings of one recipe
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Work:
    """The records that a step goes through: training examples, or prompts to answer."""

    kind: str  # TRAIN, SELF_INSTRUCT or a task
    limit: int | None  # of the records in the set
    passes: float = 1.0
    count: int | None = None  # the records themselves, if that does not depend on the set


@dataclass(frozen=True)
class Step:
    """A script and the options it is called with."""

    name: str  # as the terminal names it
    script: str
    argv: list[str]
    summary: Path | None = None  # says that the step is finished; None: it is quick to repeat
    work: Work | None = None  # what takes long in it

    def is_finished(self) -> bool:
        """True if an earlier call has finished the step; whether its settings agree is not seen."""
        if self.summary is None or not self.summary.is_file():
            return False
        return bool(read_json(self.summary).get("finished"))

    @property
    def is_shared(self) -> bool:
        """True if several processes can share the step's work."""
        return self.script in SHARED

    @property
    def command(self) -> str:
        return f"{self.script}.py {shlex.join(self.argv)}"


@dataclass(frozen=True)
class Training:
    """One training of a recipe, the first or a repetition with other seeds, with its run folder."""

    recipe: Recipe
    number: int  # 0, then 1, 2, ... with --seeds
    settings: ExperimentSettings

    @property
    def run_name(self) -> str:
        return run_name(self.recipe.name, self.number)

    @property
    def run(self) -> Path:
        return self.settings.folder / self.run_name

    def sweep_run(self, scale: float) -> Path:
        """The run folder of the answers with the adapter at `scale`."""
        return self.run / f"scale-{scale:g}"

    def stages(self) -> list[Options]:
        """The options of the recipe's training stages, with the seeds of this training."""
        stages = []
        for stage in self.recipe.train:
            if self.number:
                stage = stage | {"seed": stage_seed(stage, self.number, self.recipe.path)}
            stages.append(stage)
        return stages

    def own_words(self) -> Path | None:
        """The file of answers that self-instruct wrote for this recipe, or for the one it names."""
        source = self.recipe.self_instruct
        if source is None:
            return None
        name = source if isinstance(source, str) else self.recipe.name
        return training_file(self.settings.folder / name)

    def training_data(self, data: str) -> list[str]:
        """The words of train.py --data: `data`, or its mixture with the recipe's own answers."""
        recipe = self.recipe
        if recipe.own_answers is None:
            return [data]
        own = own_answers.training_file(self.settings.folder / recipe.name)
        return [f"{data}:{1 - recipe.own_weight:g}", f"{own}:{recipe.own_weight:g}"]

    def adapter_source(self) -> Path | None:
        """The run folder of the recipe whose adapter this one answers with, if it borrows one."""
        if self.recipe.adapter is None:
            return None
        return self.settings.folder / run_name(self.recipe.adapter, self.number)


def answered_tasks(recipe: Recipe, data: str) -> dict[str, Options]:
    """The recipe's tasks that have such data: not every one has an embedded demo set."""
    if data != "demo":
        return recipe.tasks
    return {name: options for name, options in recipe.tasks.items() if TASKS[name].demo}


def run_name(recipe: str, number: int) -> str:
    """The name of the run folder of a recipe's training `number`."""
    return f"{recipe}-seed{number}" if number else recipe


def stage_seed(stage: Options, number: int, path: Path) -> int:
    """The seed of a stage in training `number`. UserError if the recipe's own is no number."""
    seed = stage.get("seed", 0)
    if not isinstance(seed, int):
        raise UserError(f"{path}: train: seed should be a whole number, found {seed!r}")
    return seed + number * SEED_STRIDE


def trainings(recipe: Recipe, settings: ExperimentSettings) -> list[Training]:
    """The trainings of a recipe: itself, and with --seeds its repetitions if it has a seed.

    UserError if two trainings would share a seed, or a seed would be too large.
    """
    repeated = bool(recipe.train or recipe.adapter)
    numbers = range(settings.seeds if repeated else 1)
    owner: dict[int, int] = {}
    for number in numbers:
        for stage in recipe.train:
            seed = stage_seed(stage, number, recipe.path)
            other = owner.setdefault(seed, number)
            if other != number:
                raise UserError(
                    f"{recipe.path}: with --seeds {settings.seeds}, trainings {other} and {number} "
                    f"would both use the seed {seed}; give its stages seeds less than "
                    f"{SEED_STRIDE} apart"
                )
            if number and seed > MAX_SEED:
                raise UserError(
                    f"{recipe.path}: with --seeds {settings.seeds}, training {number} would have "
                    f"the seed {seed}, above {MAX_SEED}; give its stages smaller ones"
                )
    return [Training(recipe, number, settings) for number in numbers]


def plan(training: Training) -> list[Step]:
    """The steps of a training in the order they run."""
    recipe, settings, run = training.recipe, training.settings, training.run
    steps: list[Step] = []
    if recipe.own_answers is not None and training.number == 0:
        steps.append(own_answers_step(training, recipe.own_answers))
    if isinstance(recipe.self_instruct, dict) and training.number == 0:
        steps += self_instruct_steps(training, recipe.self_instruct)
    own_words = training.own_words()
    data = str(own_words) if own_words else settings.data
    source_run = training.adapter_source()
    adapter = source_run / "adapter" if source_run else None
    if recipe.train:
        steps += training_steps(training, run, data, adapter)
        adapter = run / "adapter"
    steps += answering_steps(training, run, adapter, 1.0)
    for scale in recipe.sweep:
        steps += answering_steps(training, training.sweep_run(scale), adapter, scale)
    return steps


def training_steps(
    training: Training, run: Path, data: str, adapter: Path | None, of_round: str = ""
) -> Iterator[Step]:
    """Train the recipe's stages, one after the other, the first from `adapter` if there is one."""
    settings = training.settings
    for number, stage in enumerate(training.stages(), start=1):
        last = number == len(training.recipe.train)
        stage_run = run if last else run / f"stage-{number}"
        argv = ["--run", str(stage_run), *_machine(settings), *_amount(settings)]
        argv += ["--data", *training.training_data(data), *to_argv(stage), *_embedder(settings)]
        if "safe-lora" in stage and settings.untuned:
            argv += ["--safe-lora", settings.untuned]
        if adapter:
            argv += ["--init-adapter", str(adapter)]
        name = f"training{of_round}" if last else f"training{of_round}, stage {number}"
        work = training_work(stage, training)
        yield Step(name, "train", argv, stage_run / "train.summary.json", work)
        adapter = stage_run / "adapter"


def training_work(stage: Options, training: Training) -> Work:
    """The training examples that a stage sees."""
    path, limit = training.recipe.path, training.settings.train_limit
    if "steps" in stage:
        steps = read_number(stage, "steps", 1, positive_int, path)
        examples = read_number(stage, "batch-size", 16, positive_int, path)
        return Work(TRAIN, None, count=int(steps * examples))
    return Work(TRAIN, limit, read_number(stage, "epochs", 1, positive_float, path))


def own_answers_step(training: Training, options: Options) -> Step:
    """Have the untouched model answer the embedded prompts."""
    run = training.run
    argv = ["--task", OWN_ANSWERS, "--run", str(run), "--no-adapter", *_machine(training.settings)]
    summary = run / f"{OWN_ANSWERS}.summary.json"
    return Step("own answers", "generate", [*argv, *to_argv(options)], summary)


def self_instruct_steps(training: Training, options: Options) -> Iterator[Step]:
    """Have the training data written: by the untouched model, and in each later round by the model
    that the data of the round before have made of it.
    """
    adapter, rounds = None, training.recipe.rounds
    for number in range(1, rounds + 1):
        last = number == rounds
        run = training.run if last else training.run / f"round-{number}"
        of_round = f", round {number}" if rounds > 1 else ""
        yield self_instruct_step(training, options, run, adapter, f"{SELF_INSTRUCT}{of_round}")
        if not last:
            data = str(training_file(run))
            yield from training_steps(training, run, data, None, of_round)
            adapter = run / "adapter"


def self_instruct_step(
    training: Training, options: Options, run: Path, adapter: Path | None, name: str
) -> Step:
    """Have the untouched model, or the one with `adapter`, write training data into `run`."""
    settings = training.settings
    which = ["--adapter", str(adapter)] if adapter else ["--no-adapter"]
    argv = ["--task", "self-instruct", "--run", str(run), *which, *_machine(settings)]
    argv += [*_amount(settings), "--data", settings.data, *to_argv(options), *_embedder(settings)]
    samples = read_number(options, "samples", 1, positive_int, training.recipe.path)
    work = Work(SELF_INSTRUCT, settings.train_limit, samples)
    return Step(name, "generate", argv, run / "self-instruct.summary.json", work)


def answering_steps(
    training: Training, run: Path, adapter: Path | None, scale: float
) -> Iterator[Step]:
    """Answer, judge and measure with one adapter at one scale."""
    recipe, settings = training.recipe, training.settings
    at_scale = f", scale {scale:g}" if scale != 1 else ""
    which = ["--no-adapter"]
    if adapter:
        which = ["--adapter", str(adapter), "--adapter-scale", f"{scale:g}"]
    limits = settings.limits()
    for task, options in answered_tasks(recipe, settings.data).items():
        argv = ["--task", task, "--run", str(run), *which, *_machine(settings)]
        argv += ["--data", settings.data]
        if task in limits:
            argv += ["--limit", str(limits[task])]
        if options.get(SHOTS_DATA) == SELF_INSTRUCT:
            options = options | {SHOTS_DATA: str(training.own_words())}
        argv += to_argv(options)
        if "shots" in options:
            argv += _embedder(settings)
        samples = int(options.get("samples", 1))
        stem = samples_stem(TASKS[task]) if samples > 1 else task
        work = Work(task, limits.get(task), float(samples))
        yield Step(f"{stem}{at_scale}", "generate", argv, run / f"{stem}.summary.json", work)
    for guard in settings.judges() if recipe.judged else ():
        argv = ["--run", str(run), "--guard", guard]
        if guard not in GUARDS or GUARDS[guard].has_model:  # else judge.py refuses them
            argv += ["--device", settings.device, "--dtype", settings.dtype]
            argv += to_argv(recipe.judge)
        yield Step(f"judging by {guard}{at_scale}", "judge", argv)
    if recipe.only_votes:
        return
    argv = ["--run", str(run), "--device", settings.device, "--limit", str(settings.kl_limit)]
    yield Step(f"divergence{at_scale}", "divergence", argv)


def _machine(settings: ExperimentSettings) -> list[str]:
    return ["--model", settings.model, "--device", settings.device, "--dtype", settings.dtype]


def _amount(settings: ExperimentSettings) -> list[str]:
    return ["--limit", str(settings.train_limit)] if settings.train_limit else []


def _embedder(settings: ExperimentSettings) -> list[str]:
    return ["--embedder", settings.embedder] if settings.embedder else []


def to_argv(options: Options) -> list[str]:
    """`{"shots": 3, "system-header": False}` -> `["--shots=3", "--no-system-header"]`."""
    argv: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        else:
            argv.append(f"--{name}={value}")  # one word: it may begin with a dash
    return argv
