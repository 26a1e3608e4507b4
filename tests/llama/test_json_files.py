"""JSON files of a checkpoint: an object, or one line that names the file."""

import pytest

from llama.errors import UserError
from llama.json_files import read_json_object


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"a": "\\ud83d"}', '{"\\udE00": 1}', '{"a": ' * 100_000]
)
def test_anything_else_is_named(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        read_json_object(path)


def test_a_character_in_two_halves_is_whole(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json_object(path) == {"a": "\N{GRINNING FACE}"}
