"""The guards there are, by name."""

from common.errors import UserError
from guards.guard import Guard
from guards.llama_guard import LlamaGuard
from guards.qwen3guard import Qwen3Guard
from guards.refusal_phrases import RefusalPhrases, XSTestPrefixes, ZouPhrases

GUARDS: dict[str, Guard] = {
    guard.name: guard
    for guard in (
        Qwen3Guard(),
        LlamaGuard(),
        RefusalPhrases(),
        ZouPhrases(),
        XSTestPrefixes(),
    )
}


def get_guard(name: str) -> Guard:
    """The guard called `name`, as in a summary's field "judge". UserError if there is none."""
    if name not in GUARDS:
        raise UserError(f"unknown guard {name!r}: expected one of {', '.join(GUARDS)}")
    return GUARDS[name]


def find_guard(judge: str) -> Guard | None:
    """The guard of verdicts, whose name may end in a label: `qwen3guard-0.6b`."""
    if judge in GUARDS:
        return GUARDS[judge]
    for guard in sorted(GUARDS.values(), key=lambda guard: -len(guard.name)):
        label = judge.removeprefix(f"{guard.name}-")
        if label not in ("", judge):
            return guard.with_label(label)
    return None


def recognise(policy: str, checkpoint: str) -> Guard:
    """The guard whose policy a checkpoint's chat template prints; see `Guard.recognises`.

    UserError, naming `checkpoint`, if it is none's. Any model can be asked for a verdict. What one
    says that was never trained to judge would look like verdicts.
    """
    for guard in GUARDS.values():
        if guard.recognises(policy):
            return guard
    known = ", ".join(guard.title for guard in GUARDS.values() if guard.has_model)
    raise UserError(
        f"{checkpoint}: its chat template does not ask for a verdict on an answer; the guards "
        f"known here are {known}"
    )
