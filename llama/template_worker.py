"""Render chat templates in a process of its own, with bounds on time, memory and output.

A chat template is a program that comes with a checkpoint, often a stranger's. It may loop for ever
or fill the memory inside one operation, where nothing in the same process can stop it. So
`chat_template.py` starts `serve` in a child process, which dies of such a template alone.

The child imports nothing but the standard library and jinja2.
"""

import faulthandler
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, ClassVar, SupportsIndex, TextIO

import jinja2
from jinja2 import ext, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_MEMORY = 2**30  # bytes of address space, of which Python and jinja2 take a twentieth
MAX_OUTPUT = 2**24  # characters beyond four times the messages'
MONTHS = (
    "January February March April May June July August September October November December".split()
)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
STAND_IN = re.compile("[\ud800-\udfff]")


class MessageText(str):
    """A message's text as templates see it.

    The string itself has stand-ins (lone surrogates) in place of the characters that begin or end
    an added token, and so has everything printed from it. What a template may ask, it is told of
    the real text: comparisons, searches, and where to split or strip. An operation that is not
    covered here sees the stand-ins, so a message still cannot write a token.
    """

    # stand-in -> character, of the tokenizer being served, and the other way round
    revealed: ClassVar[dict[int, str]] = {}
    hidden: ClassVar[dict[int, str]] = {}

    def real(self) -> str:
        return str.translate(self, self.revealed)

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return MessageText(str.translate(repr(self.real()), self.hidden))

    def __hash__(self) -> int:
        return hash(self.real())

    def __iter__(self) -> Iterator[str]:
        return map(MessageText, str.__iter__(self))

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        return MessageText(str.__getitem__(self, index))

    def __radd__(self, other: str) -> str:
        return MessageText(str.__add__(other, self))

    def lstrip(self, chars: str | None = None) -> str:
        return self[len(self) - len(self.real().lstrip(_real(chars))) :]

    def rstrip(self, chars: str | None = None) -> str:
        return self[: len(self.real().rstrip(_real(chars)))]

    def strip(self, chars: str | None = None) -> str:
        return MessageText(self.lstrip(chars)).rstrip(chars)

    def removeprefix(self, prefix: str) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(self.real().split(_real(sep), maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(self.real().rsplit(_real(sep), maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return list(map(MessageText, str.splitlines(self, keepends)))

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._cut(self.real().find(_real(sep)), sep, (self, "", ""))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._cut(self.real().rfind(_real(sep)), sep, ("", "", self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old:
            return MessageText(str.replace(self, old, new, count))
        return MessageText(str.join(new, self.split(old, count)))

    def _cut(self, start: int, sep: str, uncut: tuple[str, str, str]) -> tuple[str, str, str]:
        end = start + len(sep)
        return (self[:start], self[start:end], self[end:]) if start >= 0 else uncut

    def _pieces(self, real_pieces: list[str], sep: str | None) -> list[str]:
        """The parts of this text that `real_pieces`, in order, are the real text of."""
        pieces, position, real = [], 0, self.real()
        for piece in real_pieces:
            if sep is None:  # any white space lay between
                position = real.index(piece, position)
            pieces.append(self[position : position + len(piece)])
            position += len(piece) + len(sep or "")
        return pieces


def _real(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_real, value))
    return value.real() if isinstance(value, MessageText) else value


def _message_text(value: Any) -> Any:
    """Make text that has stand-ins in it a `MessageText` again."""
    return MessageText(value) if isinstance(value, str) and STAND_IN.search(value) else value


def _about_real_text(method: Callable) -> Callable:
    def answer(self: MessageText, *arguments: Any) -> Any:
        return method(self.real(), *map(_real, arguments))

    return answer


def _of_hidden_text(method: Callable) -> Callable:
    def result(self: MessageText, *arguments: Any) -> Any:
        value = method(self, *arguments)
        return value if value is NotImplemented else MessageText(value)

    return result


for _name in (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__"),
    *("find", "rfind", "index", "rindex", "count", "startswith", "endswith", "isalnum", "isalpha"),
    *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isprintable", "isspace"),
    *("istitle", "isupper"),
):
    setattr(MessageText, _name, _about_real_text(getattr(str, _name)))
for _name in (
    *("__add__", "__mul__", "__rmul__", "__mod__", "capitalize", "casefold", "center"),
    *("expandtabs", "join", "ljust", "lower", "rjust", "swapcase", "title", "upper", "zfill"),
):
    setattr(MessageText, _name, _of_hidden_text(getattr(str, _name)))


class GenerationBlock(ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant wrote; only its body is
    rendered here.
    """

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class SafeNamespace(Namespace):
    """A namespace without names that begin with "_": no way to Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


class _Generator(CodeGenerator):
    """Compiles `a ~ b` to a call of the environment, which keeps message text what it is."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Offers what transformers offers to a template (its `utils/chat_template_utils.py`), with the
    date pinned.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset("%")

    def __init__(self, day: datetime) -> None:
        extensions = [ext.loopcontrols, GenerationBlock]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        for name, filter_function in self.filters.items():
            self.filters[name] = _keeping_message_text(filter_function)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: _format_date(day, form)
        self.globals["namespace"] = SafeNamespace

    def concatenate(self, operands: tuple[Any, ...]) -> Any:
        return _message_text("".join(map(str, operands)))

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **named: Any) -> Any:
        return _message_text(super().call(__context, __obj, *arguments, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return _message_text(super().call_binop(context, operator, left, right))


def _keeping_message_text(filter_function: Callable) -> Callable:
    @wraps(filter_function)  # copies what jinja2 notes on the function
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return _message_text(filter_function(*arguments, **named))

    return wrapped


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _format_date(day: datetime, form: str) -> str:
    """`strftime` with English names in any locale."""
    names = {"%b": MONTHS[day.month - 1][:3], "%B": MONTHS[day.month - 1]}
    names |= {"%a": WEEKDAYS[day.weekday()][:3], "%A": WEEKDAYS[day.weekday()]}
    return day.strftime(re.sub("%.", lambda match: names.get(match[0], match[0]), form))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes HTML."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if ensure_ascii:
        real = str.translate(text, MessageText.revealed)
        pairs = zip(text, real, strict=True)
        escaped = [_escape(character, stand_in) for stand_in, character in pairs]
        text = "".join(escaped)
    return _message_text(text)


def _escape(character: str, stand_in: str) -> str:
    return stand_in if character.isascii() else json.dumps(character)[1:-1]


class Renderer:
    """A compiled template. `reads_parts`: it wants contents as lists of parts."""

    def __init__(self, source: str, day: datetime, named: dict[str, str]) -> None:
        self.template = TemplateEnvironment(day).from_string(source)
        self.named = named
        # From plain text Llama-Guard-3-1B's template prints an empty turn, without a word.
        ignores_text = self._probe("one") == self._probe("two")
        printed = self._probe(_text_part("one")) or ""
        self.reads_parts = ignores_text and "one" in printed and "'type'" not in printed

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """The chat as text. A message's content has stand-ins already."""
        prepared = []
        for message in messages:
            content: Any = MessageText(message["content"])
            if self.reads_parts:
                content = _text_part(content)
            prepared.append(message | {"content": content})
        return self._render(prepared, add_generation_prompt)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.named,
        )

    def _probe(self, content: Any) -> str | None:
        try:
            return self._render([{"role": "user", "content": content}], True)
        except Exception:  # said of the messages that are really asked for
            return None


def _text_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Render one request: {"text": ...} with stand-ins, or {"error": ...}. A template is a program:
    it may raise anything.
    """
    MessageText.revealed = {int(code): char for code, char in request["revealed"].items()}
    MessageText.hidden = {ord(char): chr(code) for code, char in MessageText.revealed.items()}
    messages = request["messages"]
    try:
        date, named = tuple(request["date"]), json.dumps(request["named"])
        renderer = _compile(request["source"], date, named)
        text = renderer.render(messages, request["add_generation_prompt"])
    except MemoryError:
        return {"error": f"it needs more than {MAX_MEMORY >> 20} MiB"}
    except RecursionError:
        return {"error": "it nests or calls itself too deeply"}
    except Exception as error:
        return {"error": str(error)[:1000] or type(error).__name__}
    longest = MAX_OUTPUT + 4 * sum(len(message["content"]) for message in messages)
    if len(text) > longest:
        return {"error": f"it writes {len(text)} characters, more than {longest}"}
    return {"text": text}


@lru_cache(maxsize=8)
def _compile(source: str, date: tuple[int, int, int], named: str) -> Renderer:
    return Renderer(source, datetime(*date), json.loads(named))


def serve() -> None:
    """Answer each line of JSON on standard input with one on standard output. Exits where an answer
    takes more than the request's `max_seconds` of the processor, even within one operation.
    """
    _limit_memory()
    with open(os.devnull, "w") as nowhere:
        for line in sys.stdin:
            request = json.loads(line)
            _limit_time(request["max_seconds"], nowhere)
            reply = json.dumps(answer(request))
            _limit_time(0, nowhere)
            print(reply, flush=True)


def _limit_time(seconds: float, nowhere: TextIO) -> None:
    """End this process after so many seconds from now; 0 lifts the limit.

    Only those count in which it computes: on a busy machine it may wait for its turn.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the end; a parent may have ignored it
        signal.setitimer(signal.ITIMER_PROF, seconds)
    elif seconds:  # Windows counts all seconds
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    else:
        faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return  # Windows: the time is bounded, the memory is not
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
