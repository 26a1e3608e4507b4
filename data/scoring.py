"""The number in a GSM8K answer, read in four ways, and the gold number of a data file.

    ... so she sold 48+24 = <<48+24=72>>72 clips.\\n#### 72    ->    "72"

Numbers are handled as text in one canonical spelling (no sign but a minus, no separators, no
needless zeros), so that two strings are equal exactly when the numbers are, however many digits a
model writes.
"""

import re

from common.errors import UserError
from data.reasoning import strip_reasoning

METHODS = ("number", "homework", "strict", "flexible")
MARKER = "####"

# The official scorer's expression:
# https://github.com/openai/grade-school-math/blob/master/grade_school_math/dataset.py
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
# What the homework's public code removes (ML2025 HW6, extract_ans_from_response).
_HOMEWORK_REMOVES = str.maketrans("", "", ",$%g")

# One spelling for what is written in many: dashes, spaces, signs of multiplication and division.
_SPELLINGS = {
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d",
    " ": "\u00a0\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
    "": "\u200b\u200c\u200d\u2060\ufeff",  # of no width
    "'": "\u2019",
    "*": "\u00d7\u00b7\u22c5\u2217",
    "/": "\u00f7\u2044\u2215",
}
_CHARACTERS = {ord(old): new for new, every in _SPELLINGS.items() for old in every}
_LATEX = (
    (re.compile(r"\{ ?(?:\\!)?, ?(?:\\!)?\}"), ","),  # 1{,}500
    (re.compile(r"\{ ?\\[,;: ] ?\}|\\[,;: ]|~|\\thinspace(?![a-z])"), " "),  # 1\,500
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\(?:text|math)(?:bf|rm|it|sf|tt)?\{([^{}]*)\}"), r"\1"),
)

_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]}%]) - )?                               # not the one in 48-24
    (?: \\? [$€£¥₹] -? )?
    (?P<digits>
        [0-9]{1,3} (?P<separator> [,\ '_])
            [0-9]{3} (?: (?P=separator) [0-9]{3} )* (?![0-9]) (?: \.[0-9]+ )?
      | [0-9]+ (?: \.[0-9]+ )?
      | (?<![\w.]) \.[0-9]+                               # .5, but not that of "apples.5" or "...5"
      | [¼-¾⅐-⅞]                                          # never a number that is read
    )
    """,
    re.VERBOSE,
)
_OPERATOR = r"(?: \*{1,2} | [-+/xX] | \\(?:times|cdot|div|ast|over|pm)\b | to\b )"
# Behind the digits: what makes it another number than they say.
_REST = re.compile(
    rf"""
        \ ? (?: [¼-¾⅐-⅞²³¹⁰⁴-⁹ⁿ√π] | \^ (?! \{{? \\circ ) )            # 2½, 2³, 2^10, but 90^\circ
      | [eE] [-+]? [0-9]                                               # 1e5
      | [.,'_] [0-9] | , \ [0-9]{{3}} (?![0-9])                        # 1.2.3; 1,2345; 1, 500
      | [\ )}}\]]* {_OPERATOR} [\ ({{\[\\]* [$€£¥₹]? -? \.? [0-9]      # 48-24, 48 / 2, (7)/(2)
      | (?: : | \ :\  ) [0-9]                                          # 3:30
      | \ [0-9]+ \ ? / \ ? [0-9]                                       # 3 1/2
      | \ (?: and | & ) \ (?: an?\ half | [0-9]+ \ ? / | [¼-¾⅐-⅞] )
      | \ ? \\ (?: [dtc]?frac | sqrt | pi\b | binom )                  # 3\frac{{1}}{{2}}
      | \ ? k (?! \w ) | \ (?: hundred | thousand | [mbtr]+illion ) \b
    """,
    re.VERBOSE,
)
# Before the sign or the digits: what they are only a part of.
_PART = re.compile(
    rf"""
    (?: \\ (?: [dtc]?frac | sqrt (?: \[ [^\]]* \] )? | binom | log | ln ) \ ? [{{(]?
      | [\^_√±] [{{(]? | \}} \ ? \{{ | - [({{] | \\sqrt\ ?\[
      | [0-9)\]}}] \ * {_OPERATOR} [\ ({{\[\\$]*
      | [0-9] (?: [.,'_:] | \ :\  | [eE] [-+]? )
      | [¼-¾⅐-⅞]
    ) $
    """,
    re.VERBOSE,
)
_LOOK_BACK = 40  # characters in which `_PART` is searched
_GOLD_FRAME = re.compile(r"\\boxed|\\[()\[\]]|[\s{}$%.*]")


def extract_number(text: str, method: str) -> str | None:
    """Find the answer in `text`, without its reasoning, and return it; None if there is none.

    - `number`: the first number behind the last `####`, in canonical spelling;
    - `homework`: the text behind the last `####` (all of it, without one), without `, $ % g`;
    - `strict`: what follows the first `#### `, by the official scorer's expression, without commas;
    - `flexible`: the last number anywhere, in canonical spelling.

    An answer is right if this equals the gold number. `homework` and `strict` compare text, as the
    code they come from does: "72." and "72 clips" are no 72 there.

    `number` and `flexible` read "$1,000.00", "\\$1\\,000" and "1 000" as 1000, "50%" as 50, "12
    apples" and "12km" as 12, "72." as 72, and every dash as a minus. What is only a part of another
    number gives None: a fraction, power, root, product, range or time ("1/2", "2^{10}", "3:30").
    """
    text = strip_reasoning(text)
    tail = text.rpartition(MARKER)[2].strip()
    if method == "homework":
        return tail.translate(_HOMEWORK_REMOVES) or None
    if method == "strict":
        match = _STRICT.search(text)
        return match[1].replace(",", "") if match else None
    if method == "flexible":
        return _last_number(one_spelling(text))
    if method != "number":
        raise ValueError(f"unknown scoring method {method!r}: one of {', '.join(METHODS)}")
    if MARKER not in text:
        return None
    tail = one_spelling(tail)
    match = _NUMBER.search(tail)
    return _whole_number(tail, match) if match else None


def extract_gold(answer: str) -> str:
    """The number behind the last `####` of a worked answer, in canonical spelling.

    UserError unless it is all that stands there, a currency or percent sign, a full stop and
    LaTeX's frame aside: a model would learn the wrong number.
    """
    _, marker, tail = answer.rpartition(MARKER)
    spelled = one_spelling(tail.strip())
    match = _NUMBER.search(spelled) if marker else None
    number = _whole_number(spelled, match) if match else None
    if match is None or number is None or _beside_number(spelled, match):
        raise UserError(f"the answer does not end in '#### number' but in {answer[-30:]!r}")
    return number


def _beside_number(gold: str, match: "re.Match[str]") -> str:
    return _GOLD_FRAME.sub("", gold[: match.start()] + gold[match.end() :])


def one_spelling(text: str) -> str:
    """Write dashes, spaces, signs of multiplication and division and LaTeX's numbers in one way."""
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return _whole_number(text, last) if last else None


def _whole_number(text: str, match: "re.Match[str]") -> str | None:
    """The matched number in canonical spelling; None if it is a part of something else."""
    before = text[max(0, match.start() - _LOOK_BACK) : match.start()]
    if _REST.match(text, match.end()) or _PART.search(before):
        return None
    negative = "-" in match[0]
    digits = re.sub(r"[,'_ ]", "", match["digits"])
    return canonical_number(("-" if negative else "") + digits)


def canonical_number(number: str) -> str | None:
    """Write -007.50 as -7.5.

    None for what is no decimal number, such as a lone fraction sign.
    """
    match = re.fullmatch(r"(-?)([0-9]*)\.?([0-9]*)", number)
    if match is None or not (match[2] or match[3]):
        return None
    whole, fraction = match[2].lstrip("0") or "0", match[3].rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else match[1] + value
