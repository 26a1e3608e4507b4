"""Data, recipes and --config files as people write and damage them: records, or one line."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

import experiment
import generate
import judge
import train
from common.command_line import read_config
from data.chats import is_chat_file, load_chats
from data.examples import build_chat_examples, build_example
from data.gsm8k import GSM8K
from data.registry import TASKS
from data.task import DEMO_FOLDER
from llama import load_tokenizer
from recipes.schema import SHIPPED
from tests.fuzz.bounds import call, cases, replaced, within_bounds
from tests.fuzz.edits import VALUES, edit_bytes, edit_json, edit_lines, edit_text

pytestmark = pytest.mark.slow
DATA = st.data()
QUESTIONS = [
    {"question": "What is 1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2", "source": "gold"},
    {"question": "And 1,000 + 500?", "answer": "Together\n#### 1,500", "source": "rewrite"},
]
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CHATS = {
    "messages": {"messages": [USER, ASSISTANT, USER, ASSISTANT]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    },
    "alpaca": {"instruction": "Add", "input": "1 and 2", "output": "3"},
    "completion": {"prompt": "1 + 2 =", "completion": " 3"},
}
NUMBERS = [
    r"\frac{1}{2}",
    "½",
    "\u20137",
    "1 500",
    "#### ",
    "####",
    "7.",
    "1e5",
    "<think>",
    "</think>",
]


@pytest.fixture(scope="module")
def tokenizer(chat_checkpoint):
    return load_tokenizer(chat_checkpoint)


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "data.file"
    file.touch()
    return file


@cases(20)
@hypothesis.given(DATA)
def test_questions_with_answers(path, tokenizer, data):
    records = [dict(record) for record in QUESTIONS]
    if data.draw(st.booleans()):
        records[0]["answer"] = edit_text(data.draw, records[0]["answer"], NUMBERS)
    content = edit_lines(data.draw, [json.dumps(record) for record in records])
    task = GSM8K()
    with replaced(path, content), within_bounds("GSM8K's format"):
        for record in task.load(path, "train"):
            build_example(tokenizer, task.training_messages(record), "answer", True)
            task.score(record, record["answer"])


@cases(25)
@hypothesis.given(DATA, st.sampled_from(sorted(CHATS)))
def test_chats(path, tokenizer, data, name):
    content = edit_lines(data.draw, [json.dumps(CHATS[name])] * 2)
    with replaced(path, content), within_bounds("chats"):
        if is_chat_file(path):
            for chat in load_chats(path):
                build_chat_examples(tokenizer, chat["messages"])


@cases(10)
@hypothesis.given(DATA)
def test_svamp(path, tokenizer, data):
    problem = {"ID": "chal-1", "Body": "Two cows.", "Question": "How many?", "Answer": 2.0}
    document = edit_json(data.draw, [problem, problem | {"ID": "chal-2"}])
    content = json.dumps(document).encode("utf-8", "surrogatepass")
    if data.draw(st.integers(0, 5)) == 5:
        content = edit_bytes(data.draw, content)
    with replaced(path, content), within_bounds("SVAMP's format"):
        for record in TASKS["svamp"].load(path):
            tokenizer.encode_chat(TASKS["svamp"].messages(record))


def edit_csv(draw, rows: Sequence[Sequence[str]]) -> bytes:
    changed = [list(row) for row in rows]
    place = draw(st.integers(0, len(rows) - 1))
    column = draw(st.integers(0, len(rows[0]) - 1))
    action = draw(st.integers(0, 9))
    if action < 6:
        changed[place][column] = str(draw(VALUES))
    elif action == 6:
        changed[place] += ["more"]
    elif action == 7:
        del changed[place][column]
    text = io.StringIO()
    csv.writer(text).writerows(changed)
    content = text.getvalue().encode("utf-8", "surrogatepass")
    return edit_bytes(draw, content) if action > 7 else content


@cases(20)
@hypothesis.given(DATA, st.sampled_from(["ailuminate", "xstest"]))
def test_prompts_in_csv(path, tokenizer, data, name):
    task = TASKS[name]
    original = (DEMO_FOLDER / task.demo["test"]).read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(original)))[:5]
    with replaced(path, edit_csv(data.draw, rows)), within_bounds("CSV"):
        for record in task.load(path):
            tokenizer.encode_chat(task.messages(record))


YAML_PIECES = (
    "*a",
    "&a ",
    "!!python/object:os.system ",
    "!!int ",
    "[",
    "{",
    "- ",
    ": ",
    "\n",
    "\t",
)
YAML_PIECES += ("? ", "<<: ", "---\n", "2026-07-01", "0x10", "1e400", "null", "|\n", "'", "\x00")
YAML_PIECES += ("[" * 3000, "a: " * 50, "99999999999999999999", ".inf", ".nan", "~", "=", "%YAML")


def edit_yaml(draw, text: str) -> bytes:
    """Edit the values and write them anew, or put pieces of YAML into the text."""
    if draw(st.booleans()):
        edited = yaml.safe_dump(edit_json(draw, yaml.safe_load(text)), sort_keys=False)
    else:
        edited = edit_text(draw, text, YAML_PIECES)
    return edited.encode("utf-8", "surrogatepass")


RECIPES = sorted(SHIPPED.glob("*.yaml"))


@cases(25)
@hypothesis.given(DATA, st.sampled_from(RECIPES))
def test_recipes(chat_checkpoint, tmp_path, data, recipe):
    path = tmp_path / "recipe.yaml"
    path.touch()
    content = edit_yaml(data.draw, recipe.read_text(encoding="utf-8"))
    options = ["--model", chat_checkpoint, "--data", "demo", "--judge", "refusal", "--dry-run"]
    options += ["--runs", tmp_path / "runs"]
    with replaced(path, content), within_bounds("recipe"):
        call(experiment.main, path, *options)


CONFIGS = {
    generate: "model: smollm2\nshots: 3\ntask: gsm8k\ntemperature: 0.6\nlimit: 3\n",
    train: "rank: 8\nlr: 1e-3\ntarget: [q_proj, v_proj]\nsystem-header: false\nsteps: 3\n",
    judge: "guard: qwen3guard\ntask: ailuminate\nlimit: 5\ngrammar: false\n",
}


@cases(20)
@hypothesis.given(DATA, st.sampled_from(sorted(CONFIGS, key=lambda script: script.__name__)))
def test_config_files(path, data, script):
    content = edit_yaml(data.draw, CONFIGS[script])
    settings = type(script.parse_arguments([]))
    with replaced(path, content), within_bounds("--config"):
        read_config(path, settings)
        call(lambda argv: bool(script.parse_arguments(argv)) - 1, "--config", path)
