"""Nothing that a file or a model says is executed, unpickled or fetched: by the code, and seen."""

import ast
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import divergence
import export
import generate
import judge
import report
import train
from llama import UserError, load_model
from reporting import plot_style
from tests.test_style import source_files
from tests.watch import watching

BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "code", "codeop", "runpy"}
CALLS = {"torch.load", "os.system", "os.popen", "numpy.load", "np.load", "yaml.unsafe_load"}
CALLS |= {"yaml.full_load", "importlib.import_module", "import_module"}
# Their own modules, and one of the trackers that --track names: from tables in the code.
MAY_IMPORT_BY_NAME = {"unforget.py", "docs/options_page.py", "llama/__init__.py"}
MAY_IMPORT_BY_NAME |= {"common/tracking.py"}
NETWORK = {"urllib.request", "http.client", "requests", "socket", "httpx", "ftplib", "smtplib"}
# Pinned hashes; the Hub's client; the name of the host, for who holds a run folder.
MAY_USE_THE_NETWORK = {"data/sources.py", "common/run_folder.py", "llama/hub.py"}


def problems_of(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(name, node)
        elif isinstance(node, ast.Call):
            yield from _calls(name, node)


def _imports(name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    modules = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    for module in modules:
        if module.partition(".")[0] in MODULES:
            yield f"{name}:{node.lineno}: imports {module}"
        if module in NETWORK and name not in MAY_USE_THE_NETWORK:
            yield f"{name}:{node.lineno}: imports {module}"


def _calls(name: str, node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    where = f"{name}:{node.lineno}: {ast.unparse(node)[:100]}"
    if called in BUILTINS or (called in CALLS and name not in MAY_IMPORT_BY_NAME):
        yield where
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if keywords.get("shell", "False") != "False" or "trust_remote_code" in keywords:
        yield where
    if called == "yaml.load" and keywords.get("Loader") != "_Loader":  # a SafeLoader
        yield where


def test_the_code_executes_unpickles_and_fetches_nothing():
    found = []
    for path, tree in source_files():
        name = path.relative_to(Path(__file__).parents[1]).as_posix()
        if not name.startswith("benchmarks/"):
            found += problems_of(name, tree)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "torch.load(path)",
        "import pickle",
        "from marshal import loads",
        "subprocess.run(text, shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "import urllib.request",
    ],
)
def test_what_must_not_be_there_would_be_seen(line):
    assert list(problems_of("x.py", ast.parse(line)))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_no_script_does_anything_outside_its_run_folder(chat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(plot_style, "is_available", lambda: False)  # matplotlib keeps a cache
    run = tmp_path / "run"
    model = ["--model", str(chat_checkpoint), "--run", str(run), "--device", "cpu"]
    training = ["--data", "demo", "--limit", "6", "--validation", "2", "--steps", "2"]
    answering = ["--data", "demo", "--limit", "2", "--max-new-tokens", "3"]
    with watching(run) as watch:
        assert train.main([*model, *training]) == 0
        assert generate.main([*model, *answering]) == 0
        assert judge.main(["--run", str(run), "--guard", "refusal-phrases"]) == 0
        assert divergence.main(["--run", str(run), "--limit", "1", "--device", "cpu"]) == 0
        assert report.main([str(run), "--output", str(run / "report")]) == 0
        assert export.main(["--run", str(run), "--to", str(run / "exported")]) == 0
    # git tells the commit, uname the processor; where torch keeps its caches is its own affair.
    others = [deed for deed in watch.deeds if "torchinductor" not in deed]
    assert set(others) <= {"subprocess.Popen git", "subprocess.Popen uname"}


@pytest.mark.slow
def test_pickled_weights_are_refused_unopened(chat_checkpoint, tmp_path):
    for path in chat_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for name in ("pytorch_model.bin", "model.safetensors", "consolidated.00.pth"):
        (tmp_path / name).write_bytes(bomb)
        with watching() as watch, pytest.raises(UserError):
            load_model(tmp_path)
        assert watch.deeds == [] and not (tmp_path / "exploded").exists()


def test_the_watch_sees_what_it_is_there_for(tmp_path):
    with watching(tmp_path / "run") as watch:
        pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
        (tmp_path / "file").write_text("x")
        subprocess.run(["/bin/true"], check=True)
        os.system("true")
        os.rename(tmp_path / "file", tmp_path / "run")
    seen = [deed.partition(" ")[0] for deed in watch.deeds]
    expected = ["pickle.find_class", "os.mkdir", "open", "subprocess.Popen", "os.system"]
    assert [name for name in seen if name in expected] == expected
    assert seen.count("os.rename") == 1, "its new place alone is inside"
