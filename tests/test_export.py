"""export.py: what it writes is the tuned model, whole, or nothing."""

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

import export
import train
from data.records import read_json, write_json
from llama import load_model, load_tokenizer
from lora import load_adapter, lora_disabled, set_lora_scale
from lora.merged_checkpoint import DTYPES


@pytest.fixture(scope="module")
def run(chat_checkpoint, tmp_path_factory) -> Path:
    """A finished training of the tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    argv = ["--model", str(chat_checkpoint), "--data", "demo", "--run", str(folder)]
    argv += ["--limit", "8", "--steps", "3", "--lr", "0.05", "--validation", "0"]
    assert train.main([*argv, "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def tuned(run, chat_checkpoint):
    """The tuned model with its adapter beside the weights."""
    model = load_model(chat_checkpoint)
    load_adapter(model, run / "adapter")
    return model


def logits(model, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(torch.tensor([prompt])))[0]


@pytest.fixture
def prompt(chat_checkpoint) -> list[int]:
    chat = [{"role": "user", "content": "How many clips are 3 and 4?"}]
    return load_tokenizer(chat_checkpoint).encode_chat(chat)


def test_transformers_loads_the_tuned_model(run, tuned, prompt, tmp_path, capsys):
    assert export.main(["--run", str(run), "--to", str(tmp_path / "out")]) == 0
    assert "the largest logit difference is" in capsys.readouterr().out
    expected = logits(tuned, prompt)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        found = merged(torch.tensor([prompt])).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)
    with lora_disabled(tuned):
        assert not torch.allclose(logits(tuned, prompt), expected, atol=0.1), "training did matter"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "How many clips are 3 and 4?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == prompt


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_once_from_float32(run, tuned, chat_checkpoint, tmp_path, dtype):
    out = tmp_path / "out"
    assert export.main(["--run", str(run), "--to", str(out), "--dtype", dtype]) == 0
    written = load_model(out, dtype)
    layer = tuned.get_submodule("model.layers.1.self_attn.q_proj")
    update = layer.scaling * layer.lora_B @ layer.lora_A
    expected = (layer.weight + update).to(DTYPES[dtype])
    found = written.get_submodule("model.layers.1.self_attn.q_proj").weight
    assert torch.equal(found, expected)
    assert read_json(out / "config.json")["dtype"] == dtype


def test_the_scale_of_the_adapter_is_merged(run, tuned, prompt, tmp_path):
    out = tmp_path / "out"
    argv = ["--run", str(run), "--to", str(out), "--adapter-scale", "0.5"]
    assert export.main(argv) == 0
    set_lora_scale(tuned, 0.5)
    assert torch.allclose(logits(load_model(out), prompt), logits(tuned, prompt), atol=1e-4)


def test_an_update_that_drowns_in_rounding_is_said(run, tmp_path, capsys):
    argv = ["--run", str(run), "--to", str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert export.main([*argv, "--adapter-scale", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "Rounding to bfloat16 loses" in printed
    assert "most of this adapter is smaller than a step of bfloat16" in printed


def test_adapter_and_model_may_be_named_apart(run, chat_checkpoint, tmp_path):
    adapter = str(run / "adapter")
    assert export.main(["--adapter", adapter, "--to", str(tmp_path / "a")]) == 0
    argv = ["--adapter", adapter, "--model", str(chat_checkpoint), "--to", str(tmp_path / "b")]
    assert export.main(argv) == 0
    assert export.main(["--model", str(chat_checkpoint), "--to", str(tmp_path / "base")]) == 0
    name = "model.safetensors"
    contents = [(tmp_path / folder / name).read_bytes() for folder in ("a", "b", "base")]
    assert contents[0] == contents[1] != contents[2]


def test_the_card_names_base_data_settings_and_rates(run, tmp_path, monkeypatch):
    adapter = read_json(run / "train.summary.json")["adapter_fingerprint"]
    rate = {"count": 2, "total": 4, "rate": 0.5, "low": 0.1504, "high": 0.8496}
    settings = {"adapter": adapter, "adapter_scale": 1.0, "shots": 3, "shot_selection": "random"}
    summary = {"task": "gsm8k", "finished": True, "settings": settings, "questions": 4}
    path = run / "gsm8k.summary.json"
    write_json(path, summary | {"accuracy": {"number": rate, "homework": rate}})
    try:
        assert export.main(["--run", str(run), "--to", str(tmp_path / "out")]) == 0
        card = (tmp_path / "out" / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: transformers\n"), "a local path is no base"
        assert f"fingerprint {adapter}" in card
        assert "| rank | 8 |" in card and "| data | demo |" in card
        assert "| GSM8K | accuracy | - | 50.0 [15.0, 85.0] | 4 | 3 random shots, greedy |" in card
        assert "Not measured of this model: SVAMP, AILuminate" in card

        settings["adapter"] = "another"
        write_json(path, summary | {"accuracy": {"number": rate, "homework": rate}})
        assert export.main(["--run", str(run), "--to", str(tmp_path / "other")]) == 0
        assert "50.0" not in (tmp_path / "other" / "README.md").read_text(), "of another model"
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--to DIR or --gguf FILE is missing"),
        (["--model", "m", "--gguf", "a/b.gguf"], "--gguf a/b.gguf: no such folder"),
        (["--model", "m", "--gguf", "b", "--push", "me/b"], "--push uploads a folder"),
        (["--to", "out"], "nothing to export: give --run, --adapter or --model"),
        (["--run", "nowhere", "--to", "out"], "nowhere/train.summary.json: no such file"),
        (["--adapter", "nowhere", "--to", "out"], "nowhere/adapter_config.json: no such file"),
        (["--model", "m", "--to", "out", "--private"], "--private without --push"),
        (["--model", "m", "--to", "out", "--dtype", "int8"], "argument --dtype: invalid choice"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = export.main(argv)
    except SystemExit as exit:
        status = exit.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_base_of_the_hub_is_named_in_the_cards_front_matter(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "name_for_others", lambda model: "owner/name")
    assert export.main(["--run", str(run), "--to", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: owner/name\n")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"], "readable as the other files"


def test_a_folder_that_is_not_empty_stays_as_it_is(run, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    for target in (tmp_path, tmp_path / "mine"):
        assert export.main(["--run", str(run), "--to", str(target)]) == 2
        assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert export.main(["--run", str(run), "--to", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_dry_run_writes_nothing(run, tmp_path, capsys):
    assert export.main(["--run", str(run), "--to", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "float32" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("break_at", ["write_checkpoint", "model_card", "compare_logits"])
def test_nothing_half_written_looks_whole(run, tmp_path, monkeypatch, capsys, break_at):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, break_at, fail)
    assert export.main(["--run", str(run), "--to", str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scale", "problem"),
    [(2.0, "more than rounding to float32 explains"), (float("nan"), "hold NaN or infinity")],
)
def test_a_broken_export_is_refused(run, tmp_path, monkeypatch, capsys, scale, problem):
    """Guards the check: an update merged twice, or not finite, differs by more than rounding."""
    real = export.merge_lora

    def merge_otherwise(model):
        set_lora_scale(model, scale)
        real(model)

    monkeypatch.setattr(export, "merge_lora", merge_otherwise)
    assert export.main(["--run", str(run), "--to", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_merge_of_another_adapter_would_be_noticed(run, tuned, prompt):
    """Guards the tolerance: the base's own logits are further away than any rounding."""
    expected = export.probe_logits(tuned, [prompt])
    with lora_disabled(tuned):
        check = export.compare_logits(expected, export.probe_logits(tuned, [prompt]))
    assert all(check.is_broken(dtype) for dtype in DTYPES)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("finished", False, "this training is not finished"),
        ("adapter_fingerprint", "0" * 12, "its training wrote 000000000000: it is damaged"),
    ],
)
def test_an_adapter_that_is_not_the_trainings_is_refused(
    run, tmp_path, capsys, field, value, message
):
    path = run / "train.summary.json"
    before = path.read_text()
    write_json(path, read_json(path) | {field: value})
    try:
        assert export.main(["--run", str(run), "--to", str(tmp_path / "out")]) == 2
    finally:
        path.write_text(before)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


class FakeHub:
    """Records the calls; each must fit the signature of the real client's method."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.errors = errors

    def __getattr__(self, name: str):
        signature = inspect.signature(getattr(HfApi, name))

        def call(*args, **kwargs):
            bound = signature.bind(self, *args, **kwargs).arguments
            if name == "upload_folder":
                files = {path.name for path in Path(bound["folder_path"]).iterdir()}
                bound["files"] = files
            self.calls.append((name, bound))
            if name in self.errors:
                raise self.errors[name]

        return call


@pytest.fixture
def hub(monkeypatch):
    def make(**errors: Exception) -> FakeHub:
        fake = FakeHub(errors)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
        return fake

    return make


def test_pushing_uploads_the_whole_folder(run, tmp_path, hub, capsys):
    fake = hub()
    argv = ["--run", str(run), "--to", str(tmp_path / "out"), "--push", "me/model", "--private"]
    assert export.main(argv) == 0
    assert [name for name, _ in fake.calls] == ["whoami", "create_repo", "upload_folder"]
    assert fake.calls[1][1]["private"] is True and fake.calls[1][1]["repo_id"] == "me/model"
    uploaded = fake.calls[2][1]["files"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= uploaded
    assert "https://huggingface.co/me/model" in capsys.readouterr().out


def refused(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, "refused")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("step", "error", "message", "written"),
    [
        ("whoami", LocalTokenNotFoundError("none"), "not logged in to the Hub; log in", False),
        ("whoami", ConnectionError("no route"), "the Hub cannot be reached (no route)", False),
        ("create_repo", refused(403), "the Hub refuses it (403): is the token valid", True),
        ("upload_folder", refused(500), "the Hub refuses it (refused)", True),
    ],
)
def test_a_push_that_fails_is_one_line(run, tmp_path, hub, capsys, step, error, message, written):
    hub(**{step: error})
    argv = ["--run", str(run), "--to", str(tmp_path / "out"), "--push", "me/model"]
    assert export.main(argv) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert (tmp_path / "out").exists() == written, "no token: refused before the work"


def test_a_repository_without_owner_is_refused(run, tmp_path, hub, capsys):
    hub()
    assert export.main(["--run", str(run), "--to", str(tmp_path / "o"), "--push", "model"]) == 2
    assert "--push model: expected OWNER/NAME" in capsys.readouterr().err


@pytest.fixture(scope="module")
def gguf_checkpoint(chat_checkpoint, tmp_path_factory) -> Path:
    """The tiny model with a tokenizer that llama.cpp has a name for."""
    folder = tmp_path_factory.mktemp("gguf") / "tiny"
    shutil.copytree(chat_checkpoint, folder)
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, tokenizer["pre_tokenizer"]],
    }
    write_json(path, tokenizer)
    return folder


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_gguf_file_holds_the_tuned_model(run, gguf_checkpoint, tuned, tmp_path, capsys, kind):
    pytest.importorskip("gguf")
    file = tmp_path / "tuned.gguf"
    argv = ["--adapter", str(run / "adapter"), "--model", str(gguf_checkpoint)]
    assert export.main([*argv, "--gguf", str(file), "--gguf-type", kind]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.gguf"]
    prompt = load_tokenizer(gguf_checkpoint).encode_chat([{"role": "user", "content": "3 and 4?"}])
    difference = (logits(load_model(file), prompt) - logits(tuned, prompt)).abs().max()
    assert difference < {"F32": 1e-4, "F16": 0.1, "BF16": 0.5, "Q8_0": 0.5}[kind]

    out = tmp_path / "folder"
    assert export.main(["--model", str(file), "--to", str(out)]) == 0, "and back"
    assert load_tokenizer(out).encode_chat([{"role": "user", "content": "3 and 4?"}]) == prompt
    assert torch.allclose(
        logits(load_model(out), prompt), logits(load_model(file), prompt), atol=1e-4
    )


def test_a_gguf_file_that_is_there_or_cannot_be_written_is_refused(
    run, chat_checkpoint, tmp_path, capsys
):
    file = tmp_path / "mine.gguf"
    assert export.main(["--run", str(run), "--gguf", str(file)]) == 2
    assert "splits text in a way that no GGUF name known here" in capsys.readouterr().err
    file.write_text("mine")
    assert export.main(["--run", str(run), "--gguf", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err and file.read_text() == "mine"
