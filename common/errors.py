"""The one exception that means bad input. It lives in `llama`, which imports nothing else of
ours.
"""

from llama.errors import UserError

__all__ = ["UserError"]
