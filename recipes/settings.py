"""The settings of experiment.py: which recipes, on which model and data, judged by whom."""

from dataclasses import dataclass
from pathlib import Path, PurePath

from common.defaults import DEFAULT_MODEL, DTYPES
from common.errors import UserError
from common.options import option, positive_int
from common.ranks import world_size
from data.registry import TASKS, get_task

JUDGES = ("guard", "refusal")
DEFAULT_GUARD = "qwen3guard"
PHRASES = "refusal-phrases"


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings:
    """The options of experiment.py."""

    recipes: tuple[str, ...] = option(
        (),
        "YAML file, as in recipes/, or the name of one that is there, as in 03-greedy-3-shots",
        nargs="+",
        metavar="RECIPE",
        positional=True,
    )
    model: str = option(DEFAULT_MODEL, "see train.py (%(default)s)")
    runs: Path = option(
        Path("runs"), "where runs go: DIR/MODEL/RECIPE (%(default)s)", parse=Path, metavar="DIR"
    )
    data: str = option(
        "official", "to train and test on (%(default)s)", choices=("official", "demo")
    )
    limit: tuple[str, ...] = option(
        (),
        "test records of each task, or with TASK=N of this one; may be repeated (all)",
        metavar="N|TASK=N",
        repeated=True,
    )
    train_limit: int | None = option(
        None, "training questions (all)", parse=positive_int, metavar="N"
    )
    kl_limit: int = option(
        200, "see divergence.py --limit (%(default)s)", parse=positive_int, metavar="N"
    )
    seeds: int = option(
        1,
        "trainings of each recipe, with seeds of their own in run folders of their own: RECIPE, "
        "RECIPE-seed1, ... (%(default)s)",
        parse=positive_int,
        metavar="N",
    )
    set: tuple[str, ...] = option(
        (),
        "overrules every recipe that has the section, as in train.lr=1e-3; may be repeated",
        metavar="SECTION.OPTION=VALUE",
        repeated=True,
    )
    judge: str = option(
        "guard",
        "who judges the answers: --guard, or refusal phrases where no guard is to be had "
        "(%(default)s)",
        choices=JUDGES,
    )
    guard: tuple[str, ...] = option(
        (),
        "see judge.py (qwen3guard); may be repeated for several verdicts on each answer",
        metavar="NAME|CHECKPOINT",
        repeated=True,
    )
    embedder: str | None = option(
        None, "of similar shots, instead of the recipe's", metavar="MODEL"
    )
    untuned: str | None = option(
        None, "untuned base of --model for Safe LoRA, instead of the recipe's", metavar="MODEL"
    )
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: see train.py (%(default)s)")
    dtype: str = option("auto", "see train.py (%(default)s)", choices=DTYPES, metavar="TYPE")
    processes: int = option(
        1,
        "processes of each step but the divergence, one a GPU, started by torchrun (%(default)s)",
        parse=positive_int,
        metavar="N",
    )
    dry_run: bool = option(False, "list the steps and write nothing", flag=True)

    def __post_init__(self) -> None:
        self.limits()
        if world_size() > 1:
            raise UserError(
                f"experiment.py starts the processes of each step itself: without torchrun, python "
                f"experiment.py --processes {world_size()} ..."
            )
        if self.guard and self.judge == "refusal":
            raise UserError(
                f"--judge refusal with --guard {self.guard[0]}: --guard {PHRASES} --guard "
                f"{self.guard[0]} judges by both"
            )

    @property
    def folder(self) -> Path:
        """The folder of the runs of all recipes on this model."""
        return self.runs / PurePath(self.model).name

    def judges(self) -> tuple[str, ...]:
        """The guards that judge the answers, as judge.py --guard takes them."""
        if self.judge == "refusal":
            return (PHRASES,)
        return self.guard or (DEFAULT_GUARD,)

    def limits(self) -> dict[str, int]:
        """The number of test records by task, of those that --limit bounds.

        UserError for what is neither N nor TASK=N with a registered task.
        """
        limits: dict[str, int] = {}
        for text in self.limit:
            name, equals, number = text.rpartition("=")
            if not number.isdecimal() or int(number) < 1:
                raise UserError(f"--limit {text}: expected N or TASK=N, N a whole number from 1")
            names = [get_task(name).name] if equals else list(TASKS)
            for task in names:
                limits[task] = int(number)
        return limits
