"""The settings of self-instruct: how a question is attempted, and which attempts are trained on."""

from dataclasses import dataclass

from common.errors import UserError
from common.options import Scope, option, positive_int
from data.self_instruct import FALLBACKS, KEEPS, MODES, READINGS, Selection

SELF_INSTRUCT = "self-instruct"


@dataclass(frozen=True, kw_only=True)
class SelfInstructSettings:
    """Options of generate.py --task self-instruct. The attempts depend on the first two alone."""

    mode: str = option("rewrite", "see above (%(default)s)", choices=MODES, group=SELF_INSTRUCT)
    samples: int = option(
        1,
        "attempts at each question; of a task with a score, answers that vote (%(default)s)",
        parse=positive_int,
        metavar="K",
        group=SELF_INSTRUCT,
        scope=Scope.COST,  # a sample does not depend on how many there are
    )
    keep: str = option(
        "first",
        "of several right attempts the first, or each whose equations differ from those of the "
        "ones before it (%(default)s)",
        choices=KEEPS,
        group=SELF_INSTRUCT,
        scope=Scope.CALL,
    )
    per_question: int | None = option(
        None,
        "with --keep distinct, the most attempts that are kept of a question (all)",
        parse=positive_int,
        metavar="N",
        group=SELF_INSTRUCT,
        scope=Scope.CALL,
    )
    fallback: str = option(
        "gold",
        "where no attempt has the right number: train on the gold answer, drop the question, or "
        "with --mode sample have its gold answer rewritten and drop it if that fails "
        "(%(default)s)",
        choices=FALLBACKS,
        group=SELF_INSTRUCT,
        scope=Scope.CALL,
    )

    reading: str = option(
        "number",
        "where a right attempt has its answer: behind '####', or, flexible, without any '####' in "
        "the last number, behind which '#### N' is added (%(default)s)",
        choices=READINGS,
        group=SELF_INSTRUCT,
        scope=Scope.CALL,
    )

    def selection(self) -> Selection:
        """The attempts that become training data."""
        return Selection(self.keep, self.per_question, self.fallback, self.reading)

    def check_attempts(self, temperature: float) -> None:
        """UserError for settings that contradict each other or would have no effect."""
        if self.samples > 1 and (temperature == 0 or self.mode == "rewrite"):
            raise UserError(
                f"--samples {self.samples} with --mode {self.mode} and --temperature "
                f"{temperature:g}: several attempts are for --mode sample with a temperature "
                "above 0"
            )
        if self.keep == "distinct" and self.samples == 1:
            raise UserError(
                "--keep distinct with --samples 1: there is one attempt to keep; give --samples 4, "
                "say, with --mode sample and a temperature above 0"
            )
        if self.per_question is not None and self.keep != "distinct":
            raise UserError(
                f"--per-question {self.per_question} with --keep {self.keep}: that keeps one "
                "attempt of a question; add --keep distinct"
            )
        if self.per_question is not None and self.per_question > self.samples:
            raise UserError(
                f"--per-question {self.per_question} with --samples {self.samples}: no question "
                "has more attempts than samples"
            )
        if self.fallback == "rewrite" and self.mode == "rewrite":
            raise UserError(
                "--fallback rewrite with --mode rewrite: all questions are rewritten already; use "
                "--fallback gold or drop"
            )
