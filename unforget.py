"""The console command: `unforget train --model smollm2` is `python train.py --model smollm2`.

Each command is the script of its name, which is imported only when it is called. The packages and
scripts have short names (`data`, `train`); `prefer_our_modules` keeps Python from importing a
user's own data.py, train.py or report/ in the current folder instead.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

COMMANDS = {
    "train": "fine-tune a model",
    "generate": "answer questions and prompts",
    "judge": "judge the answers",
    "report": "compare runs: tables, plots, one HTML page",
    "experiment": "run recipes from the first step to the table",
    "divergence": "measure how far a tuned model has moved from its base",
    "export": "write a tuned model that others can load",
    "chat": "talk with base and tuned model side by side",
}
PACKAGES = ("llama", "lora", "data", "guards", "reporting", "common", "recipes")
FOLDER = str(Path(__file__).resolve().parent)


class OurModules(MetaPathFinder):
    """Finds our packages and scripts beside this file, whatever comes first on sys.path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in PACKAGES or fullname in COMMANDS:
            return PathFinder.find_spec(fullname, [FOLDER], target)
        return None


def prefer_our_modules() -> None:
    """Import `data`, `train` and the like from this project, not from the current folder."""
    if not any(isinstance(finder, OurModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, OurModules())


def version() -> str:
    """This project's version, as `unforget --version` prints it."""
    from common import __version__  # only now: a user's own common.py is not it

    return __version__


def usage() -> str:
    """The text of `unforget --help`."""
    lines = ["usage: unforget COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    lines += ["", "unforget COMMAND --help lists a command's options.", f"Version {version()}."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Call the script that the first word names with the others; return its exit status."""
    prefer_our_modules()
    if argv is None:  # the real command: before the script's imports, which take seconds
        from common.interrupts import exit_on_signals

        exit_on_signals()
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, *options = words
    if name == "--version":
        print(f"unforget {version()}")
        return 0
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: unforget has no command {name!r}; {hint}", file=sys.stderr)
        return 2
    sys.argv[0] = f"unforget {name}"  # what --help and errors call the command
    status: int = import_module(name).main(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
