"""Finding the number in a GSM8K answer, and the share of answers whose number is right.

    ... so she sold 48+24 = <<48+24=72>>72 clips.\\n#### 72    ->    "72"

Numbers are handled as text in one canonical spelling (no sign but a minus, no separators, no
needless zeros), so that two strings are equal exactly when the numbers are, however many digits a
model writes.
"""

import re

from common.errors import UserError

METHODS = ("homework", "strict", "flexible")
MARKER = "####"

# The official scorer's expression:
# https://github.com/openai/grade-school-math/blob/master/grade_school_math/dataset.py
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")

_NUMBER = re.compile(
    r"""
    (?P<minus> (?<![\w)\]]) [-\u2212] )?                  # not the one in 48-24
    (?: \\? [$€£] )?
    (?P<digits>
        [0-9]+ (?: ,[0-9]{3} (?![0-9]) )* (?: \.[0-9]+ )?
      | (?<![\w.]) \.[0-9]+                               # .5, but not the 5 of "apples.5" or "...5"
    )
    (?P<rest>                                             # what makes it another number than its digits say:
        (?: \ ? / \ ? [0-9][0-9.,]* )+                    #   1/2, 24/12/2020
      | \ [0-9]+ / [0-9]+                                 #   3 1/2
      | [eE][-+]?[0-9]+                                   #   1e5
    )?
    """,
    re.VERBOSE,
)


def extract_number(text: str, method: str) -> str | None:
    """Find the answer in `text` and return it in canonical spelling, or None.

    - `homework`: the first number after the last `####`;
    - `strict`: what follows the first `#### `, by the official scorer's expression;
    - `flexible`: the last number anywhere.

    `homework` and `flexible` read "$1,000.00" and "\\$1,000" as 1000, "50%" as 50, "12 apples" and
    "12km" as 12, "72." as 72, and both kinds of minus. A fraction or a power of ten ("1/2", "1e5")
    in that place gives None: it is neither of the numbers it is written with. So do "inf" and
    "nan".
    """
    if method == "strict":
        match = _STRICT.search(text)
        return _canonical(match[1].replace(",", "")) if match else None
    if method == "homework":
        _, marker, tail = text.rpartition(MARKER)
        match = _NUMBER.search(tail) if marker else None
    elif method == "flexible":
        match = next(reversed(list(_NUMBER.finditer(text))), None)
    else:
        raise UserError(f"unknown scoring method {method!r}: expected one of {', '.join(METHODS)}")
    if match is None or match["rest"]:
        return None
    return _canonical(("-" if match["minus"] else "") + match["digits"].replace(",", ""))


def _canonical(number: str) -> str | None:
    """Write -007.50 as -7.5; None for what is no decimal number, such as 1.2.3 or a lone full
    stop.
    """
    match = re.fullmatch(r"(-?)([0-9]*)\.?([0-9]*)", number)
    if match is None or not (match[2] or match[3]):
        return None
    whole, fraction = match[2].lstrip("0") or "0", match[3].rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else match[1] + value
