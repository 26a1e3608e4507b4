"""The exception for bad input, as opposed to a bug in this code."""

import re

# Control characters, line separators and the marks that reverse the order of what follows them:
# a file or name from a stranger must not move the cursor, colour or rewrite a terminal's lines.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Bad input: an option, a file, a field. Its message is one line that says what to do next.

    Scripts print it and exit with status 2. Every other exception is a bug of ours and shows its
    traceback. Control characters in the message are escaped.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(escape_controls(str(message)))


def escape_controls(text: str) -> str:
    r"""Return `text` on one line, with its control characters as escapes ("\x1b")."""
    line = re.sub(r"\s*[\r\n]\s*", " ", text)
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), line)
