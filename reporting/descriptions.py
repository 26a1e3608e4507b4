"""Descriptions of a run in a few words: its model, adapter, shots and judges."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from reporting.load_runs import Run
from reporting.run_parts import Answers, Judgement
from reporting.scores import judge_title
from reporting.tables import EMPTY


def describe_model(answers: Answers) -> str:
    """The checkpoint's short name: the last part of its folder or Hub id."""
    return _path_end(answers.settings.get("model") or EMPTY, 1)


def describe_adapter(answers: Answers) -> str:
    """'base', or the end of the adapter's path, else its fingerprint; its scale if that is not
    1.
    """
    fingerprint, scale = answers.settings.get("adapter"), answers.settings.get("adapter_scale")
    if fingerprint is None:
        return "base"
    name = _path_end(answers.adapter_path, 2) if answers.adapter_path else str(fingerprint)
    return name if scale in (None, 1) else f"{name} x {scale}"


def describe_shots(answers: Answers) -> str:
    """`3`, or `3 random` where the shots are not the default fixed ones."""
    shots = answers.settings.get("shots")
    selection = answers.settings.get("shot_selection", "fixed")
    if shots is None:
        return EMPTY
    return f"{shots}" if not shots or selection == "fixed" else f"{shots} {selection}"


def describe_runs(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The settings that all runs share, and beside them those of each.

    `("Llama-3.2-1B-Instruct, 3 shots, judged by ...", ["base", "tuned/adapter"])`.
    """
    parts = [_describe_parts(run) for run in runs]
    common = [text for text in parts[0] if len(runs) > 1 and all(text in own for own in parts)]
    each = [", ".join(text for text in own if text not in common) for own in parts]
    return ", ".join(common), each


def _describe_parts(run: Run) -> list[str]:
    """Model, adapter, shots and judges in words; of each all there are where tasks differ."""
    answered = list(run.answers.values())
    shots = [text for text in map(describe_shots, answered) if text != EMPTY]
    texts = [_joined(map(describe_model, answered)), _joined(map(describe_adapter, answered))]
    texts.append(_joined(f"{text} shots" for text in shots))
    judges = describe_judges(run)
    texts.append("" if judges == EMPTY else f"judged by {judges}")
    return [text for text in texts if text]


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))


def describe_judges(run: Run) -> str:
    """The short names of those that have judged the run; '-' where none has."""
    names: list[str] = []
    for judgements in run.judgements.values():
        names += map(describe_judge, judgements.values())
    return ", ".join(dict.fromkeys(names)) or EMPTY


def describe_judge(judgement: Judgement) -> str:
    """`Qwen3Guard-Gen-4B`; the guard's title where it has no model."""
    model = judgement.settings.get("model")
    return _path_end(model, 1) if model else judge_title(judgement.judge)


def _path_end(path: object, parts: int) -> str:
    """The last `parts` of a folder's path or a Hub id."""
    return PurePath(*PurePath(str(path)).parts[-parts:]).as_posix()
