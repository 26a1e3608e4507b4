"""A checkpoint is recognised by the policy that its chat template prints."""

import os
from pathlib import Path

import jinja2
import pytest

from common.errors import UserError
from guards.registry import GUARDS, find_guard, get_guard, recognise

FIXTURES = Path(os.environ.get("UNFORGET_FIXTURES", "/nowhere"))
EMPTY = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize("size", ["0.6b", "8b"])
def test_the_published_template_is_recognised(size):
    template = FIXTURES / f"qwen3guard-gen-{size}" / "chat_template.jinja"
    if not template.is_file():
        pytest.skip("UNFORGET_FIXTURES names no folder with published templates")
    policy = jinja2.Template(template.read_text()).render(messages=EMPTY)
    assert recognise(policy, size).name == "qwen3guard"


def test_a_chat_model_is_no_guard():
    with pytest.raises(
        UserError, match=r"some/model: its chat template does not ask .* Qwen3Guard"
    ):
        recognise("<|im_start|>user\n<|im_end|>", "some/model")


def test_names():
    for name, guard in GUARDS.items():
        assert get_guard(name) is guard and guard.name == name
        assert guard.labels <= {"safety", "refusal"} and guard.labels
        assert guard.has_model == (guard.max_new_tokens > 0)
    with pytest.raises(UserError, match="unknown guard 'gpt': expected one of qwen3guard"):
        get_guard("gpt")


def test_a_label_makes_a_guard_of_another_name_and_is_found_again():
    for guard in GUARDS.values():
        named = guard.with_label("0.6b")
        assert named.name == f"{guard.name}-0.6b" and named.title == f"{guard.title} (0.6b)"
        found = find_guard(named.name)
        assert found is not None and (found.name, type(found).__bases__[0]) == (
            named.name,
            type(guard),
        )
        assert GUARDS[guard.name] is guard and guard.name == guard.name.removesuffix("-0.6b")
    assert find_guard("nobody") is None and find_guard("qwen3guard-") is None
