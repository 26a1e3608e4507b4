"""The equations of a worked solution, by which two solutions are told apart.

    She sold 48 / 2 = <<48/2=24>>24 clips in May.    ->    ("48/2=24",)

Rejection sampling keeps several right solutions a question, and only those that reason in another
way: with another list of equations (RFT, Yuan et al. 2023, https://arxiv.org/abs/2308.01825).
Wording, layout, units and the spelling of numbers make no difference.
"""

import re
from itertools import pairwise

from data.scoring import canonical_number, one_spelling

_ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator repeats the equation in front of it
_LATEX = (
    (re.compile(r"\\[dtc]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\(?:times|cdot|ast)\b"), "*"),
    (re.compile(r"\\div\b"), "/"),
    (re.compile(r"\\text[a-z]*\{[^{}]*\}"), " "),
    (re.compile(r"\\[()\[\]]|\\left|\\right|\\boxed"), " "),
)
# Currency, percent and braces; bold type, which is no power.
_BESIDE_NUMBERS = re.compile(r"\\?[$€£¥₹]|\\?%|[{}]|(?<![0-9)])\*\*|\*\*(?![0-9(])")
_NUMBER = r"(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)"
# Units behind a number: at most five words, up to an operator.
_UNIT = re.compile(
    r"(?<=[0-9)]) ?/?[A-Za-z'][A-Za-z'/]*(?: [A-Za-z'/]+){0,4}(?= ?(?:[-+*/=)]|[xX] ?[(0-9]))"
)
_TIMES = re.compile(r"(?<=[0-9)]) ?[xX] ?(?=[(0-9])")
_SIDE = rf"[(]*-?{_NUMBER}[)]*(?:[-+*/][(]*-?{_NUMBER}[)]*)*"
_CHAIN = re.compile(rf"(?<![0-9.+*/()-]){_SIDE}(?:={_SIDE})+")
_NEEDS = re.compile(r"[0-9)][-+*/]")  # an operator between two numbers
_LONE = re.compile(rf"\((-?{_NUMBER})\)")


def equations(solution: str) -> tuple[str, ...]:
    """List the equations of a solution in their order, each in one spelling, without spaces.

    A chain "2*3+1=6+1=7" gives an equation for each of its signs. What computes nothing, such as
    "x = 5" or "5 = 5", is none.
    """
    text = one_spelling(_ANNOTATION.sub("", solution))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _BESIDE_NUMBERS.sub("", text)
    found: list[str] = []
    for line in text.splitlines():
        found += _equations_of_line(line)
    return tuple(found)


def _equations_of_line(line: str) -> list[str]:
    line = _UNIT.sub("", re.sub(r"\s+", " ", line))
    line = _TIMES.sub("*", line)
    packed = re.sub(r" ?([-+*/=()]) ?", r"\1", line)
    found = []
    for match in _CHAIN.finditer(packed):
        sides = [_one_spelling_of_side(side) for side in match[0].split("=")]
        for left, right in pairwise(sides):
            if _NEEDS.search(left) or _NEEDS.search(right):
                found.append(f"{left}={right}")
    return found


def _one_spelling_of_side(side: str) -> str:
    side = _LONE.sub(r"\1", side)
    side = re.sub(_NUMBER, _canonical, side)
    if side.count("(") != side.count(")"):  # one belongs to the sentence around
        side = side.replace("(", "").replace(")", "")
    return side


def _canonical(match: "re.Match[str]") -> str:
    return canonical_number(match[0].replace(",", "")) or match[0]
