"""A checkpoint's chat template: found, checked and rendered by a child process within bounds."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from llama.checkpoint_files import CHAT_TEMPLATE, locate, read_chat_template, read_json
from llama.errors import UserError
from llama.template_worker import MONTHS, TemplateEnvironment

DEFAULT_DATE = "26 Jul 2024"  # what Llama 3.2's template prints where no date is given
MAX_SECONDS = 10.0  # of the processor, for one rendering, which takes milliseconds
MAX_SOURCE = 2**20  # characters: the longest published templates have some thousands
ROOT = Path(__file__).resolve().parents[1]


class ChatTemplate:
    """The template of one checkpoint with its named special tokens and the date it prints."""

    def __init__(self, origin: Path, source: str, date: str, named: Mapping[str, str]) -> None:
        """Check the syntax of `source`, read from `origin`. UserError for a broken template or
        date.
        """
        self.origin, self.source, self.named = origin, source, dict(named)
        self.date = parse_date(date)
        if len(source) > MAX_SOURCE:
            raise UserError(
                f"{origin}: broken chat template: {len(source)} characters, more than {MAX_SOURCE}"
            )
        try:
            TemplateEnvironment(self.date).parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"{origin}: broken chat template, line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:
            raise UserError(
                f"{origin}: broken chat template: {type(error).__name__}: {error}"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        revealed: Mapping[int, str],
    ) -> str:
        """Return the chat as text. Contents have stand-ins for some characters, and so has what the
        template prints of them; `revealed` maps these to what the template sees in their place.

        Raises UserError if the template refuses the messages, fails, or exceeds its bounds.
        """
        request = {
            "source": self.source,
            "date": [self.date.year, self.date.month, self.date.day],
            "named": self.named,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "revealed": dict(revealed),
            "max_seconds": MAX_SECONDS,
        }
        answer = _worker.ask(request)
        if answer is None:
            raise UserError(
                f"{self.origin}: the chat template took more than {MAX_SECONDS:g} seconds of the "
                "processor, or its process was killed; use another template"
            )
        if "error" in answer:
            reason = " ".join(answer["error"].split())
            raise UserError(
                f"{self.origin}: the chat template refuses these messages: {reason}"
            ) from None
        return answer["text"]


class _Worker:
    """The child process that renders templates, started by the first request and, if a template
    killed it, again by the next.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0  # the process id that started it: a fork must not share its pipes
        self.lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, str] | None:
        """Return the answer, or None if the process died of the request."""
        with self.lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            line = ""
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                pass
            finally:  # also after Ctrl-C: the next request must not read this one's answer
                if not line:
                    self.close()
            return json.loads(line) if line else None

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            search_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            # In the folder that `llama` lies in, so that no other package of that name is found;
            # in a session of its own, so that Ctrl-C does not print a traceback from there.
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from llama.template_worker import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(search_path)},
                start_new_session=True,
            )
            self.owner = os.getpid()
        return self.process

    def close(self) -> None:
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not sent any more
                assert pipe is not None
                pipe.close()
        process.wait()


_worker = _Worker()
atexit.register(_worker.close)


def load_chat_template(source: Path, date: str, named: Mapping[str, str]) -> ChatTemplate | None:
    """Return the template in `chat_template.jinja`, a GGUF file or tokenizer_config.json, or None.

    Of several templates by name, the one named "default".
    """
    parse_date(date)
    origin = locate(source, CHAT_TEMPLATE)
    template: Any = read_chat_template(source)
    if template is None:
        origin = locate(source, "tokenizer_config.json")
        config = read_json(source, "tokenizer_config.json") or {}
        template = config.get("chat_template")
    if isinstance(template, list):
        template = _templates_by_name(template, origin)
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"{origin}: chat_template must be text, found {type(template).__name__}")
    return ChatTemplate(origin, template, date, named)


def _templates_by_name(entries: list[Any], path: Path) -> dict[str, Any]:
    templates = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise UserError(
                f"{path}: chat_template: expected objects with name and template, found {entry!r}"
            )
        templates[str(entry.get("name"))] = entry.get("template")
    return templates


def parse_date(date: str) -> datetime:
    """Parse a day like '26 Jul 2024', whatever the locale. UserError for another form."""
    months = [name[:3] for name in MONTHS]
    try:
        day, month, year = date.split()
        return datetime(int(year), months.index(month) + 1, int(day))
    except (AttributeError, ValueError):
        raise UserError(f"date {date!r}: expected a day like '26 Jul 2024'") from None
