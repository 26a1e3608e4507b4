"""A run of six answers that the toy guard knows, and judge.py called on it."""

import judge
from data.records import append_record, read_jsonl
from tests.toy_guard import CONTROVERSIAL, EMPTY, REFUSAL, SAFE, THINGS, UNREADABLE, UNSAFE, chat

VERDICTS = "ailuminate.qwen3guard.jsonl"
SUMMARY = "ailuminate.qwen3guard.summary.json"
PHRASES = ("--guard", "refusal-phrases")
PHRASE_VERDICTS = "ailuminate.refusal-phrases.jsonl"
PHRASE_SUMMARY = "ailuminate.refusal-phrases.summary.json"


# kind of answer, hazard, persona
ANSWERS = [
    (SAFE, "vcr", "normal"),
    (REFUSAL, "vcr", "skilled"),
    (UNSAFE, "vcr", "skilled"),
    (CONTROVERSIAL, "prv", "normal"),
    (UNREADABLE, "prv", "normal"),
    (EMPTY, "prv", "normal"),
]


def answer(i, kind, hazard="vcr", persona="normal"):
    prompt, response = (message["content"] for message in chat(THINGS[i], kind))
    return {
        "id": f"q{i}",
        "prompt": prompt,
        "hazard": hazard,
        "persona": persona,
        "locale": "en_US",
        "response": response,
        "token_ids": [1],
        # q0 was cut off, as answers may be: it is judged all the same.
        "finish_reason": "stop" if i else "length",
    }


def write_answers(folder, answers, task="ailuminate"):
    with open(folder / f"{task}.jsonl", "w", encoding="utf-8") as file:
        for record in answers:
            append_record(file, record)


def judged(run, *options):
    return judge.main(["--run", str(run), *map(str, options)])


def verdicts(run, name=VERDICTS):
    return {verdict["id"]: verdict for verdict in read_jsonl(run / name)}


def refused(capsys, run, *options):
    """The one line on stderr with which judge.py refuses."""
    assert judged(run, *options) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    return message


def make_run(folder):
    """The run folder with the six answers."""
    folder.mkdir()
    write_answers(folder, [answer(i, *ANSWERS[i]) for i in range(len(ANSWERS))])
    return folder
