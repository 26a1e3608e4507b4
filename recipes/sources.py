"""The sources of a recipe's values: which are the original's record's, which its code's, and so on.

sources:
  record: [gsm8k.shots, train.epochs]
  code: [train, gsm8k]                      # every other option of these sections
  assumed: {train.alpha: as in the code}    # a remark for the reader
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.command_line import check_keys
from common.errors import UserError

SOURCES = ("record", "code", "assumed", "ours")

Options = dict[str, Any]
Sections = Mapping[str, Sequence[Options]]  # the stages of each section, by its name
Sources = dict[str, dict[str, str]]  # kind -> "SECTION.OPTION" -> a remark, which may be empty


def read_sources(raw: Mapping[str, Any], sections: Sections, where: str) -> Sources:
    """The recipe's sources. UserError for an option that is not there or is named twice.

    A section named alone stands for those of its options that have no source of their own.
    """
    given = raw.get("sources", {})
    if not isinstance(given, dict):
        raise UserError(f"{where}: sources should be keys and values, found {given!r:.60}")
    check_keys(given, SOURCES, where, "key of sources")
    options = {section: _option_names(section, stages) for section, stages in sections.items()}
    known = {*options, *(name for names in options.values() for name in names)}
    sources: Sources = {}
    kind_of: dict[str, str] = {}
    for kind, listed in given.items():
        sources[kind] = _read_remarks(listed, f"{where}: sources: {kind}")
        check_keys(sources[kind], sorted(known), where, f"option in sources: {kind}")
        for option in sources[kind]:
            if option in kind_of:
                raise UserError(f"{where}: sources: {option} has two sources")
            kind_of[option] = kind
    for section, names in options.items():
        if section in kind_of:
            remarks = sources[kind_of[section]]
            remark = remarks.pop(section)
            remarks |= {name: remark for name in names if name not in kind_of}
    return sources


def _option_names(section: str, stages: Sequence[Options]) -> list[str]:
    """The section's options as "SECTION.OPTION", each once, in the order of the file."""
    return list(dict.fromkeys(f"{section}.{option}" for stage in stages for option in stage))


def _read_remarks(listed: Any, where: str) -> dict[str, str]:
    """Remarks by option, empty ones for a list of options."""
    remarks = listed
    if isinstance(listed, list):
        remarks = dict.fromkeys((_text(option, where) for option in listed), "")
    if not isinstance(remarks, dict):
        raise UserError(f"{where} should be a list or keys and values, found {listed!r:.60}")
    return {option: _text(remark, f"{where}: {option}") for option, remark in remarks.items()}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} should be text, found {value!r:.60}")
    return value


def values_by_source(sources: Sources, sections: Sections) -> dict[str, list[str]]:
    """Every setting with its value, by kind of source: "train.seed 0, then 1 (as in the code)"."""
    shown: dict[str, list[str]] = {}
    for kind, remarks in sources.items():
        shown[kind] = []
        for name, remark in remarks.items():
            section, _, option = name.partition(".")
            values = [str(stage[option]) for stage in sections[section] if option in stage]
            text = values[0] if len(set(values)) == 1 else ", then ".join(values)
            shown[kind].append(f"{name} {text}{f' ({remark})' if remark else ''}")
    return shown
