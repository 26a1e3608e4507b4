"""Text of others, such as a model's, made safe to show: nothing in it steers a terminal or a
page.
"""

import unicodedata

KEPT = "\n\t"
# Control, format (among them the marks that turn the direction of writing) and surrogate code
# points, and line separators: none of them is seen, and all of them change what is.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # within words of several scripts, and within emoji


def visible(text: str, keep: str = KEPT) -> str:
    """`text` with hidden code points written out, as in `\\x1b` and `\\u202e`.

    Line breaks and tabs stay, or whatever of them is in `keep`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep) for character in text)


def one_line(text: str) -> str:
    """The same on one line: line breaks and tabs are written out too."""
    return visible(text, keep="")


def _shown(character: str, keep: str) -> str:
    if character in keep or character in JOINERS or character.isprintable():
        return character
    if unicodedata.category(character) not in HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, longest: int) -> str:
    """The beginning of a text, saying how much of it is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} […{len(text) - longest:,} more characters]"
