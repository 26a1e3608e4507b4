"""The notebook and the cluster script in examples/ do what they say."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from common.command_line import build_parser
from docs.options_page import load_settings
from tests.test_docs import script_calls

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
CLUSTER = ROOT / "examples" / "slurm.sh"
SMALL = """
MODEL = {model!r}
RUNS = {runs!r}
QUESTIONS, TRAINING_EXAMPLES, NEW_TOKENS, EPOCHS = 3, 12, 8, 1
"""


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(chat_checkpoint, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    runs = tmp_path / "runs"
    [settings] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    names = {line.split("=")[0].strip() for line in settings.source.splitlines()}
    settings.source = SMALL.format(model=str(chat_checkpoint), runs=str(runs))
    assert all(name in settings.source for name in names), "each setting is made small here"
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert "report.html" in str(notebook.cells)
    assert (runs / "report" / "report.html").is_file()
    assert (runs / "tuned" / "gsm8k.summary.json").is_file()
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    printed = "".join(output.get("text", "") for output in last.outputs)
    assert "base: " in printed and "tuned:" in printed


def test_the_cluster_script_calls_scripts_with_options_that_they_have():
    text = CLUSTER.read_text(encoding="utf-8")
    checked = subprocess.run(["bash", "-n", str(CLUSTER)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    calls = []
    for line in text.splitlines():
        for script, words in script_calls(line.removeprefix("#")):
            build_parser(load_settings(script), None).parse_args(words)
            calls.append(script)
    answered = ["generate", "judge"]
    assert calls == ["train", "generate", *answered, "train", *answered, "report"]
