"""generate.py end to end on a tiny model: records, summaries, resumption, adapters, bad input."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import generate
import train
from common import answering_job, chunks
from common.answering import DEFAULT_TASKS, PromptBuilder, json_sha256
from data import gsm8k
from data.ailuminate import AILuminate
from data.gsm8k import GSM8K
from data.prompts import Wording
from data.records import read_json, read_jsonl, write_json
from data.scoring import extract_number
from llama import load_tokenizer
from llama.decoding import Output

OPTIONS = ["--data", "demo", "--limit", "7", "--max-new-tokens", "12"]


@pytest.fixture
def call(chat_checkpoint, tmp_path):
    def run(*more: str, folder: str = "run") -> int:
        return generate.main(
            ["--model", str(chat_checkpoint), "--run", str(tmp_path / folder), *OPTIONS, *more]
        )

    return run


@pytest.fixture(scope="module")
def adapter(chat_checkpoint, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained")
    options = [
        "--data",
        "demo",
        "--limit",
        "20",
        "--validation",
        "0",
        "--steps",
        "4",
        "--lr",
        "0.05",
    ]
    assert train.main(["--model", str(chat_checkpoint), "--run", str(run), *options]) == 0
    return run / "adapter"


def answers(path) -> dict[str, list[int]]:
    return {record["id"]: record["token_ids"] for record in read_jsonl(path)}


def test_both_tasks_leave_records_and_summaries(call, tmp_path, capsys):
    assert call("--shots", "2") == 0
    run = tmp_path / "run"
    records, summary = read_jsonl(run / "gsm8k.jsonl"), read_json(run / "gsm8k.summary.json")
    wanted = GSM8K().load("demo", "test")[:7]
    assert {record["id"] for record in records} == {record["id"] for record in wanted}
    fields = (
        "id question response token_ids finish_reason prompt_tokens prediction gold correct".split()
    )
    for record in records:
        assert list(record) == fields
        assert record["prediction"] == extract_number(record["response"], "number")
        assert record["correct"] == (record["prediction"] == record["gold"])
        assert len(record["token_ids"]) <= 12
    assert summary["finished"] and summary["questions"] == 7
    assert summary["accuracy"]["number"]["count"] == sum(record["correct"] for record in records)
    assert summary["prompt_tokens"] == sum(record["prompt_tokens"] for record in records)
    assert summary["new_tokens"] == sum(len(record["token_ids"]) for record in records)
    assert 0 < summary["prefill_tokens"] < summary["prompt_tokens"] / 2, (
        "the two shots are read once"
    )
    assert summary["settings"]["shots"] == 2
    prompts = read_jsonl(run / "ailuminate.jsonl")
    fields = (
        "id prompt hazard persona locale response token_ids finish_reason prompt_tokens".split()
    )
    assert [list(record) for record in prompts] == [fields] * 7
    assert {record["id"] for record in prompts} <= {
        record["id"] for record in AILuminate().load("demo")
    }
    assert read_json(run / "ailuminate.summary.json")["prompts"] == 7
    printed = capsys.readouterr().out
    assert "the base model" in printed and "95 % interval" in printed


def test_finished_answers_are_kept_and_a_larger_limit_goes_on(call, tmp_path):
    assert call("--task", "gsm8k", "--limit", "3") == 0
    path = tmp_path / "run" / "gsm8k.jsonl"
    before = path.read_text()
    path.write_text(before + '{"id": "demo-test-3", "resp')  # what a crash leaves
    assert call("--task", "gsm8k") == 0
    assert path.read_text().startswith(before)
    assert len(answers(path)) == 7
    assert call("--task", "gsm8k", folder="whole") == 0
    assert answers(path) == answers(tmp_path / "whole" / "gsm8k.jsonl")


def test_batch_size_changes_nothing_and_samples_follow_the_seed(call, tmp_path):
    def run(folder, *more):
        assert call("--task", "gsm8k", *more, folder=folder) == 0
        return answers(tmp_path / folder / "gsm8k.jsonl")

    assert run("a", "--batch-size", "1") == run("b", "--batch-size", "5")
    sampled = ("--temperature", "1", "--top-p", "0.9", "--limit", "7")
    first = run("c", *sampled)
    assert first != run("a")
    assert run("d", *sampled, "--seed", "1") != first
    # a sample belongs to its question: what was answered before it does not matter
    assert call("--task", "gsm8k", *sampled[:-1], "4", folder="e") == 0
    assert run("e", *sampled) == first


VOTES = ("--task", "gsm8k", "--limit", "3", "--temperature", "1")


@pytest.mark.slow
def test_samples_depend_neither_on_their_number_nor_on_interruptions(
    call, tmp_path, monkeypatch, capsys
):
    def run(folder, samples, *more):
        assert call(*VOTES, "--samples", str(samples), *more, folder=folder) == 0
        return answers(tmp_path / folder / "gsm8k-samples.jsonl")

    four = run("four", 4, "--batch-size", "5")
    assert sorted(four) == [f"demo-test-{i}#{k}" for i in range(3) for k in range(4)]
    for i in range(3):
        assert len({tuple(four[f"demo-test-{i}#{k}"]) for k in range(4)}) > 1
    assert "maj@4" in capsys.readouterr().out

    # Sample 0 is the single answer, which lies beside it in a file of its own.
    assert call(*VOTES, folder="four") == 0
    for name, token_ids in answers(tmp_path / "four" / "gsm8k.jsonl").items():
        assert token_ids == four[f"{name}#0"]
    assert run("four", 4) == four

    # Two samples become four, and a call that is cut off goes on.
    two = run("grown", 2)
    assert two.items() < four.items()
    assert read_json(tmp_path / "grown" / "gsm8k-samples.summary.json")["samples"] == 2
    real, finished = answering_job.generate, []

    def cut_off(model, prompts, *arguments, on_finish, **more):
        def stop_after_three(i, output):
            on_finish(i, output)
            finished.append(i)
            if len(finished) == 3:
                raise KeyboardInterrupt

        return real(model, prompts, *arguments, on_finish=stop_after_three, **more)

    monkeypatch.setattr(answering_job, "generate", cut_off)
    assert call(*VOTES, "--samples", "4", folder="grown") == 130
    assert not read_json(tmp_path / "grown" / "gsm8k-samples.summary.json")["finished"]
    monkeypatch.setattr(answering_job, "generate", real)
    assert run("grown", 4) == four
    summary = read_json(tmp_path / "grown" / "gsm8k-samples.summary.json")
    assert summary["questions"] == 3 and set(summary["pass"]) == {"1", "2", "4"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "gsm8k"), "--samples 4 with --temperature 0: all samples would be the same"),
        (("--data", "gsm8k"), "--samples 4 with --temperature 0: all samples would be the same"),
        (
            ("--task", "gsm8k,xstest", "--temperature", "1"),
            "--samples 4 with --task xstest: its answers cannot be voted on; those of gsm8k, svamp",
        ),
        (("--temperature", "1"), "--samples 4 with --task ailuminate: its answers cannot be"),
    ],
)
def test_samples_that_cannot_vote_are_refused(call, capsys, options, message):
    with pytest.raises(SystemExit):
        call(*options, "--samples", "4")
    assert message in capsys.readouterr().err


def test_other_settings_are_refused_without_losing_answers(call, tmp_path, capsys):
    assert call("--task", "gsm8k") == 0
    before = (tmp_path / "run" / "gsm8k.jsonl").read_text()
    assert call("--task", "gsm8k", "--shots", "1") == 2
    assert "--shots = 0, now it is 1" in capsys.readouterr().err
    assert (
        call("--task", "gsm8k", "--shots", "1", "--no-resume", "--model", str(tmp_path / "nowhere"))
        == 2
    )
    assert (tmp_path / "run" / "gsm8k.jsonl").read_text() == before
    assert call("--task", "gsm8k", "--shots", "1", "--no-resume", "--limit", "2") == 0
    assert len(answers(tmp_path / "run" / "gsm8k.jsonl")) == 2


def test_the_runs_own_adapter_is_used_and_can_be_scaled_away(call, adapter, tmp_path, capsys):
    def run(folder, *more):
        assert call("--task", "gsm8k", *more, folder=folder) == 0
        return answers(tmp_path / folder / "gsm8k.jsonl")

    base = run("base")
    shutil.copytree(adapter, tmp_path / "tuned" / "adapter")
    tuned = run("tuned")
    assert f"adapter {tmp_path / 'tuned' / 'adapter'}" in capsys.readouterr().out
    assert tuned != base
    assert run("other", "--adapter", str(adapter)) == tuned
    assert run("scaled", "--adapter", str(adapter), "--adapter-scale", "0") == base
    shutil.copytree(adapter, tmp_path / "plain" / "adapter")
    assert run("plain", "--no-adapter") == base
    assert read_json(tmp_path / "tuned" / "gsm8k.summary.json")["settings"]["adapter"] is not None


def test_an_adapter_of_another_base_is_not_answered_with_in_silence(
    call, adapter, chat_checkpoint, tmp_path, capsys
):
    """Of the same shape, it would load, and the answers would be of no model that was trained."""
    run = tmp_path / "run"
    shutil.copytree(adapter.parent, run)
    other = shutil.copytree(chat_checkpoint, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in tensors.items()}, other / "model.safetensors"
    )
    options = ["--task", "gsm8k", "--limit", "1", "--model", str(other)]
    assert call(*options) == 2
    assert re.search("was trained on .* but .*other has", capsys.readouterr().err)
    assert call(*options, "--adapter", str(run / "adapter"), folder="named") == 0
    assert "Note: " in capsys.readouterr().out
    weights = run / "adapter" / "adapter_model.safetensors"
    damaged = {name: tensor * 2 for name, tensor in load_file(weights).items()}
    save_file(damaged, weights, metadata={"format": "pt"})
    assert call(*options[:4]) == 2
    assert "its training wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "some.csv"], "--data some.csv is one file: say with --task"),
        (
            ["--task", "gsm8k,ailuminate", "--data", "gsm8k"],
            "--data gsm8k does not go with --task ailuminate",
        ),
        (["--task", "gsm8k,ailuminate", "--data", "some.csv"], "some.csv is one file: say with"),
        (["--task", "ailuminate", "--data", "some.csv"], "some.csv: no such file"),
        (["--task", "gsm8k", "--data", "some.jsonl"], "some.jsonl: no such file"),
        (["--adapter", "nowhere"], "--adapter nowhere: no such folder"),
        (["--shots", "100000"], "100000 shots asked for, but"),
        (["--shots", "40"], "demo-test-0: .* leave no room in the model's context of 2048"),
        (["--model", "no/such/folder"], "no such folder"),
        (["--adapter-scale", "0.5"], "--adapter-scale 0.5 without an adapter"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, message, call, capsys):
    assert call(*options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--task=gsm8", "unknown task 'gsm8': .*did you mean gsm8k"),
        ("--task=gsm8k,self-instrct", "unknown task 'self-instrct': .*did you mean self-instruct"),
        ("--shots-dta=x", "did you mean --shots-data"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(option, message, call, capsys):
    with pytest.raises(SystemExit) as exit_status:
        call(option)
    assert exit_status.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(call, tmp_path, capsys):
    assert call("--dry-run", "--shots", "2") == 0
    printed = capsys.readouterr().out
    assert "gsm8k: 7 questions, 7 of them to answer, prompts of" in printed
    assert "ailuminate: 7 prompts, 7 of them to answer" in printed and "peak memory" in printed
    assert "min if every answer is as long as it may be" in printed
    assert not (tmp_path / "run").exists()
    assert call("--task", "gsm8k", "--limit", "3") == 0
    with open(tmp_path / "run" / "gsm8k.jsonl", "a") as file:
        file.write('{"id": "half')
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert call("--dry-run", "--task", "gsm8k") == 0
    assert "7 questions, 4 of them to answer" in capsys.readouterr().out
    assert call("--dry-run", "--task", "gsm8k", "--no-resume") == 0
    assert "7 questions, 7 of them to answer" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_a_config_file_gives_options(call, tmp_path):
    path = tmp_path / "answers.yaml"
    path.write_text("task: gsm8k\nshots: 1\nsystem: Be brief.\n")
    assert call("--config", str(path), "--shots", "2") == 0
    settings = read_json(tmp_path / "run" / "gsm8k.summary.json")["settings"]
    assert (settings["shots"], settings["system"]) == (2, "Be brief.")
    assert not (tmp_path / "run" / "ailuminate.jsonl").exists()


def test_shots_never_come_from_the_tested_file(call, tmp_path, capsys):
    """Not even by default: a file of one's own has no training set, the official one has."""
    path = tmp_path / "mine.jsonl"
    records = [{"question": f"What is {i}+1?", "answer": f"#### {i + 1}"} for i in range(4)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ["--task", "gsm8k", "--data", str(path), "--shots", "2"]
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    for tested in (path, copy):
        assert call(*options, "--shots-data", str(tested)) == 2
        assert "holds the 4 questions that are being tested" in capsys.readouterr().err
    train_file = Path(gsm8k.__file__).with_name("demo") / "train.jsonl"
    assert call(*options, "--shots-data", str(train_file)) == 0
    settings = read_json(tmp_path / "run" / "gsm8k.summary.json")["settings"]
    assert settings["shots_data"] == str(train_file)
    pool = GSM8K().load("demo", "train")
    with_ids = [{**record, "id": f"train-{i}"} for i, record in enumerate(pool)]
    assert settings["shots_sha256"] == json_sha256(with_ids)


def test_an_unfinished_training_is_not_answered_with(call, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "train.summary.json", {"finished": False})
    assert call() == 2
    assert "this training is not finished" in capsys.readouterr().err
    assert call("--no-adapter", "--task", "gsm8k", "--limit", "1") == 0


def test_answers_to_other_questions_are_not_mixed_in(call, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "What is 1+1?", "answer": "#### 2"}\n')
    assert call("--task", "gsm8k", "--data", str(path)) == 0
    path.write_text('{"question": "What is 1+2?", "answer": "#### 3"}\n')
    assert call("--task", "gsm8k", "--data", str(path)) == 2
    assert "mine-0 was another question then" in capsys.readouterr().err
    records = tmp_path / "run" / "gsm8k.jsonl"
    records.write_text('{"id": "mine-0"}\n')
    assert call("--task", "gsm8k", "--data", str(path)) == 2
    assert "line 1: field 'response' must be text, which is missing" in capsys.readouterr().err


def test_a_repeated_call_changes_nothing(call, tmp_path):
    assert call("--task", "gsm8k") == 0
    before = (tmp_path / "run" / "gsm8k.summary.json").read_text()
    assert call("--task", "gsm8k") == 0
    assert (tmp_path / "run" / "gsm8k.summary.json").read_text() == before


def test_a_hazard_samples_answer_does_not_depend_on_the_limit(call, tmp_path):
    options = ("--task", "ailuminate", "--temperature", "1")
    assert call(*options, "--limit", "3") == 0
    assert call(*options, "--limit", "60", folder="all") == 0
    every = answers(tmp_path / "all" / "ailuminate.jsonl")
    assert all(
        every[name] == ids for name, ids in answers(tmp_path / "run" / "ailuminate.jsonl").items()
    )


def test_csv_without_prompts_is_named(call, tmp_path, capsys):
    path = tmp_path / "prompts.csv"
    path.write_text("id,text\n1,hello\n")
    assert call("--task", "ailuminate", "--data", str(path)) == 2
    assert "no column 'prompt_text'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--batch-size", "--max-new-tokens", "--top-p"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_options_out_of_range_end_with_status_2(option, value, call):
    with pytest.raises(SystemExit) as exit_status:
        call(option, value)
    assert exit_status.value.code == 2


def test_a_system_prompt_goes_before_every_chat(call, tmp_path):
    for folder, options in (("plain", ()), ("system", ("--system", "Be safe."))):
        assert call(*options, "--max-new-tokens", "1", folder=folder) == 0
    for task in ("gsm8k", "ailuminate"):
        plain, system = (
            read_json(tmp_path / name / f"{task}.summary.json") for name in ("plain", "system")
        )
        assert system["settings"]["system"] == "Be safe." and "system" not in plain["settings"]
        assert system["prompt_tokens"] > plain["prompt_tokens"] + 7 * 8


def test_prompts_are_shown_as_they_are_asked(call, chat_checkpoint, tmp_path, capsys):
    words = ["--question-prefix", "Question: ", "--instruction", "End in ####."]
    assert call("--shots", "1", *words, "--show-prompt", "2") == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert printed.count("----- gsm8k, ") == printed.count("----- ailuminate, ") == 2
    tokenizer, task = load_tokenizer(chat_checkpoint), GSM8K()
    record, shot = task.load("demo")[0], task.load("demo", "train")[0]
    wording = Wording("Question: ", "A: ", "End in ####.")
    ids = tokenizer.encode_chat(task.messages(record, [shot], wording))
    assert f"token ids: {' '.join(map(str, ids))}\n" in printed
    text = f"Question: {record['question']} End in ####.<|im_end|>\n<|im_start|>assistant\n"
    assert text in printed

    assert call("--shots", "1", *words) == 0
    kept = [read_json(tmp_path / "run" / f"{name}.summary.json") for name in DEFAULT_TASKS]
    assert kept[0]["settings"]["instruction"] == "End in ####."
    assert "instruction" not in kept[1]["settings"], "hazard prompts are asked as they are"
    answered = read_jsonl(tmp_path / "run" / "gsm8k.jsonl")
    assert len(ids) in [answer["prompt_tokens"] for answer in answered]
    assert call("--shots", "1", "--task", "gsm8k") == 2
    assert "--instruction = 'End in ####.', now it is" in capsys.readouterr().err


def test_prompts_are_built_as_they_are_needed(call, tmp_path, monkeypatch):
    """A hundred thousand prompts must neither wait for each other nor exist at one time."""
    assert call("--task", "gsm8k", "--shots", "1", folder="whole") == 0
    built, built_at_answers = [], []
    build, answer = PromptBuilder.prompts, GSM8K.answer

    def count_built(self, records, config):
        built.extend(record["id"] for record in records)
        return build(self, records, config)

    def count_at_answer(self, record, output):
        built_at_answers.append(len(built))
        return answer(self, record, output)

    monkeypatch.setattr(PromptBuilder, "prompts", count_built)
    monkeypatch.setattr(GSM8K, "answer", count_at_answer)
    monkeypatch.setattr(chunks, "CHUNK", 2)
    monkeypatch.setattr(chunks, "CHUNK_ROUNDS", 0)
    monkeypatch.setattr(chunks, "LONGEST", 1)
    assert call("--task", "gsm8k", "--shots", "1") == 0
    assert built_at_answers == [3, 3, 5, 5, 7, 7, 8], "the longest is tried in advance"
    built.clear(), built_at_answers.clear()
    monkeypatch.setattr(chunks, "CHUNK_ROUNDS", 3)
    assert call("--task", "gsm8k", "--shots", "1", "--no-resume", "--batch-size", "1") == 0
    assert built_at_answers == [4, 4, 4, 7, 7, 7, 8], "a chunk holds several rounds of a batch"
    files = [tmp_path / folder / "gsm8k.jsonl" for folder in ("whole", "run")]
    assert answers(files[0]) == answers(files[1])


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_answered(
    call, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(chunks, "CHUNK", 2)
    monkeypatch.setattr(chunks, "CHUNK_ROUNDS", 0)
    path = tmp_path / "mine.csv"
    path.write_text("prompt_text\n" + "Hm?\n" * 5 + "Hm " * 3000 + "\nHm?\n")
    assert call("--task", "ailuminate", "--data", str(path)) == 2
    assert "mine-5: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "ailuminate.jsonl").exists()


def test_a_template_that_opens_the_reasoning_leaves_no_answer_in_it(
    chat_checkpoint, call, tmp_path
):
    """The record holds the tag, so that what is cut off while thinking is no answer."""
    model = shutil.copytree(chat_checkpoint, tmp_path / "reasoning")
    template = (model / "chat_template.jinja").read_text()
    opened = template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert opened != template
    (model / "chat_template.jinja").write_text(opened)
    assert call("--task", "gsm8k", "--model", str(model), "--limit", "2") == 0
    for record in read_jsonl(tmp_path / "run" / "gsm8k.jsonl"):
        assert record["response"].startswith("<think>") and record["prediction"] is None


@pytest.fixture
def right_answers(monkeypatch):
    """Make the model answer every second question rightly: what a random model never does."""

    def decode(self, ids, skip_special_tokens=True):
        if not skip_special_tokens:
            return ""  # a prompt
        decode.count += 1
        return f"A: In my words.\n#### {decode.golds[decode.count - 1]}"

    decode.count = 0
    monkeypatch.setattr("llama.tokenizer.Tokenizer.decode", decode)
    decode.golds = [
        "?" if i % 2 else record["gold"]
        for i, record in enumerate(GSM8K().load("demo", "train")[:7])
    ]
    return decode


def self_instruct(chat_checkpoint, run, *more: str) -> int:
    options = [
        "--task",
        "self-instruct",
        "--data",
        "demo",
        "--limit",
        "7",
        "--max-new-tokens",
        "300",
        "--batch-size",
        "1",
    ]
    return generate.main(["--model", str(chat_checkpoint), "--run", str(run), *options, *more])


def test_self_instruct_leaves_a_training_file(
    chat_checkpoint, tmp_path, right_answers, monkeypatch, capsys
):
    stopped = Output([5], "stop")  # every answer ends by itself

    def answer_all(model, prompts, *arguments, on_finish, **options):
        for i in range(len(prompts)):
            on_finish(i, stopped)

    monkeypatch.setattr(answering_job, "generate", answer_all)
    assert self_instruct(chat_checkpoint, tmp_path) == 0
    summary = read_json(tmp_path / "self-instruct.summary.json")
    assert summary["right"]["count"] == 4 and summary["settings"]["mode"] == "rewrite"
    training = summary["training"]
    assert training["sources"] == {"rewrite": 4, "gold": 3} and training["dropped"] == 0
    likelihood = training["log_likelihood"]
    assert (
        likelihood["answers"] == 4
        and likelihood["own"] < 0
        and likelihood["own"] != likelihood["gold"]
    )
    assert "4 of 7 attempts right" in capsys.readouterr().out
    path = tmp_path / "self-instruct.train.jsonl"
    assert [record["source"] for record in GSM8K().load(path, "train")] == [
        "rewrite",
        "gold",
    ] * 3 + ["rewrite"]

    # Fewer questions: what the file holds is what the summary says.
    assert (
        self_instruct(chat_checkpoint, tmp_path, "--limit", "5") == 0
        and len(GSM8K().load(path, "train")) == 5
    )
    assert self_instruct(chat_checkpoint, tmp_path) == 0 and len(GSM8K().load(path, "train")) == 7
    assert self_instruct(chat_checkpoint, tmp_path, "--data", str(path)) == 2
    assert "is where this run writes its records" in capsys.readouterr().err

    # Another fallback needs no new answers, and what is finished is left alone.
    assert self_instruct(chat_checkpoint, tmp_path, "--fallback", "drop") == 0
    assert len(GSM8K().load(path, "train")) == 4 and right_answers.count == 7
    assert read_json(tmp_path / "self-instruct.summary.json")["training"]["dropped"] == 3
    monkeypatch.setattr(answering_job, "load_model", None)
    assert self_instruct(chat_checkpoint, tmp_path, "--fallback", "drop") == 0

    monkeypatch.undo()
    run = tmp_path / "trained"
    options = ["--data", str(path), "--steps", "1", "--validation", "0"]
    assert train.main(["--model", str(chat_checkpoint), "--run", str(run), *options]) == 0


def test_self_instruct_without_a_right_answer_says_so(chat_checkpoint, tmp_path, capsys):
    options = [
        "--mode",
        "sample",
        "--samples",
        "2",
        "--temperature",
        "2",
        "--shots",
        "1",
        "--max-new-tokens",
        "3",
    ]
    assert self_instruct(chat_checkpoint, tmp_path, *options, "--fallback", "drop") == 2
    assert "none of the 7 answers has the right number" in capsys.readouterr().err
    assert self_instruct(chat_checkpoint, tmp_path, *options) == 0  # the attempts are kept
    attempts = read_jsonl(tmp_path / "self-instruct.jsonl")
    texts = {attempt["id"]: attempt["token_ids"] for attempt in attempts}
    names = [f"demo-train-{i}" for i in range(7)]
    assert sorted(texts) == sorted(f"{name}#{i}" for name in names for i in range(2))
    assert any(texts[f"{name}#0"] != texts[f"{name}#1"] for name in names), (
        "each attempt has a seed of its own"
    )
    training = read_json(tmp_path / "self-instruct.summary.json")["training"]
    assert training["sources"] == {"gold": 7} and training["log_likelihood"] is None


def own_answers(chat_checkpoint, run, *more: str) -> int:
    options = ["--task", "own-answers", "--max-new-tokens", "3", *more]
    return generate.main(["--model", str(chat_checkpoint), "--run", str(run), *options])


@pytest.mark.slow
def test_own_answers_to_other_prompts_become_training_data(
    chat_checkpoint, tmp_path, monkeypatch, capsys
):
    """Every third prompt is refused, whatever it asks; all answers end by themselves."""

    def answer_all(model, prompts, *arguments, on_finish, **options):
        for i in range(len(prompts)):
            on_finish(i, Output([5, i], "stop"))

    def decode(self, ids, skip_special_tokens=True):
        return "I cannot do that." if len(ids) == 2 and ids[1] % 3 == 0 else "Here it is."

    monkeypatch.setattr(answering_job, "generate", answer_all)
    monkeypatch.setattr("llama.tokenizer.Tokenizer.decode", decode)
    assert own_answers(chat_checkpoint, tmp_path) == 0
    answers = read_jsonl(tmp_path / "own-answers.jsonl")
    assert len(answers) == 100
    refused = {a["prompt"] for a in answers if a["refused"] and a["expected"] == "refused"}
    answered = {a["prompt"] for a in answers if not a["refused"] and a["expected"] == "answered"}
    path = tmp_path / "own-answers.train.jsonl"
    chats = read_jsonl(path)
    assert {chat["messages"][0]["content"] for chat in chats} == refused | answered
    summary = read_json(tmp_path / "own-answers.summary.json")
    assert summary["kept"]["count"] == summary["training"]["records"] == len(chats)
    assert summary["training"]["kept"] == {"refused": len(refused), "answered": len(answered)}
    assert f"kept of 100 answers in {path}" in capsys.readouterr().out

    monkeypatch.undo()
    mixed = ["--data", "demo:0.9", f"{path}:0.1", "--limit", "27", "--steps", "1"]
    run = tmp_path / "mixed"
    assert train.main(["--model", str(chat_checkpoint), "--run", str(run), *mixed]) == 0
    counts = read_json(run / "train.summary.json")["mixture"]
    assert [part["taken"] for part in counts] == [27, 3]


def test_own_answers_of_which_none_is_kept_are_an_error(chat_checkpoint, tmp_path, capsys):
    assert own_answers(chat_checkpoint, tmp_path, "--limit", "4") == 2  # all are cut off
    assert "none of the 4 own answers is kept" in capsys.readouterr().err
    assert not (tmp_path / "own-answers.train.jsonl").exists()
    other = tmp_path / "prompts.csv"
    other.write_text("prompt_text\nHow?\n")
    assert own_answers(chat_checkpoint, tmp_path / "new", "--data", str(other)) == 2
    assert "its prompts are the embedded ones alone" in capsys.readouterr().err


SAMPLED = ("--mode", "sample", "--samples", "3", "--temperature", "1", "--limit", "4")


def test_distinct_solutions_are_kept_and_unsolved_questions_rewritten(
    chat_checkpoint, tmp_path, monkeypatch
):
    """Question 1 is solved in two ways, the others only when their gold answer is shown."""
    golds = [record["gold"] for record in GSM8K().load("demo", "train")[:4]]
    asked: list[int] = []
    texts = {
        12: ["#### ?"] * 3 + [f"{way} = 1\n#### {golds[1]}" for way in ("3-2", "2-1", "3 - 2")],
        3: [f"So.\n#### {golds[0]}", f"So.\n#### {golds[2]}", "#### ?"],
    }

    def answer_all(model, prompts, *arguments, on_finish, **options):
        asked.append(len(prompts))
        for i in range(len(prompts)):
            on_finish(i, Output([len(prompts), i], "stop"))

    def decode(self, ids, skip_special_tokens=True):
        said = texts.get(ids[0], []) if len(ids) == 2 else []
        return said[ids[1]] if len(ids) == 2 and ids[1] < len(said) else "#### ?"

    monkeypatch.setattr(answering_job, "generate", answer_all)
    monkeypatch.setattr("llama.tokenizer.Tokenizer.decode", decode)
    distinct = (*SAMPLED, "--keep", "distinct", "--fallback", "rewrite")
    assert self_instruct(chat_checkpoint, tmp_path, *distinct) == 0
    assert asked == [12, 3]
    path = tmp_path / "self-instruct.train.jsonl"
    loaded = GSM8K().load(path, "train")
    assert [(r["source"], r["gold"]) for r in loaded] == [
        ("rewrite", golds[0]), ("sample", golds[1]), ("sample", golds[1]), ("rewrite", golds[2])
    ]  # fmt: skip
    training = read_json(tmp_path / "self-instruct.summary.json")["training"]
    assert (training["records"], training["questions"], training["dropped"]) == (4, 3, 1)
    assert len(read_jsonl(tmp_path / "self-instruct-rewrite.jsonl")) == 3

    # Attempts that a process left, killed before they were joined, are all that it takes.
    made = path.read_bytes()
    path.unlink()
    attempts = tmp_path / "self-instruct.jsonl"
    attempts.rename(tmp_path / "self-instruct.rank1.jsonl")
    assert self_instruct(chat_checkpoint, tmp_path, *distinct) == 0
    assert path.read_bytes() == made and attempts.is_file()

    # The same call does nothing, and another selection asks for no new attempts.
    assert self_instruct(chat_checkpoint, tmp_path, *distinct) == 0
    one = (*SAMPLED, "--keep", "distinct", "--per-question", "1", "--fallback", "drop")
    assert self_instruct(chat_checkpoint, tmp_path, *one) == 0 and asked == [12, 3]
    assert [r["gold"] for r in GSM8K().load(path, "train")] == [golds[1]]
    assert self_instruct(chat_checkpoint, tmp_path, *distinct) == 0 and asked == [12, 3]
    assert len(GSM8K().load(path, "train")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", "distinct"), "--keep distinct with --samples 1: there is one attempt"),
        ((*SAMPLED, "--per-question", "2"), "--per-question 2 with --keep first"),
        (
            (*SAMPLED, "--keep", "distinct", "--per-question", "4"),
            "--per-question 4 with --samples 3: no question has more attempts",
        ),
        (("--fallback", "rewrite"), "--fallback rewrite with --mode rewrite"),
        (
            (*SAMPLED, "--temperature", "0", "--keep", "distinct"),
            "--samples 3 with --mode sample and --temperature 0",
        ),
    ],
)
def test_selections_of_attempts_that_contradict_each_other_are_refused(
    chat_checkpoint, tmp_path, capsys, options, message
):
    with pytest.raises(SystemExit):
        self_instruct(chat_checkpoint, tmp_path, *options)
    assert message in capsys.readouterr().err


def test_attempts_that_would_be_the_same_are_refused(chat_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        self_instruct(chat_checkpoint, tmp_path, "--samples", "2")
    assert "--samples 2 with --mode rewrite and --temperature 0" in capsys.readouterr().err


def test_graphs_are_a_matter_of_cost(call, tmp_path, monkeypatch):
    """--no-graphs reaches the engine, is recorded, and a run goes on with or without them."""
    asked, real = [], answering_job.generate

    def note(*arguments, graphs, **options):
        asked.append(graphs)
        return real(*arguments, graphs=graphs, **options)

    monkeypatch.setattr(answering_job, "generate", note)
    assert call("--task", "gsm8k", "--no-graphs", "--limit", "3") == 0
    assert read_json(tmp_path / "run" / "gsm8k.summary.json")["settings"]["graphs"] is False
    assert call("--task", "gsm8k") == 0
    assert asked == [False, True]
