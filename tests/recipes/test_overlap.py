"""A recipe trains on nothing that it is tested on, whatever the file is called."""

import pytest

from common.errors import UserError
from data.registry import TASKS
from recipes.overlap import check_overlap
from recipes.schema import load_recipe

OPTIONS = {
    "train": {"kl-weight", "kl-prompts"},
    "own-answers": {"max-new-tokens"},
    **{task: {"shots"} for task in TASKS},
}


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "row.yaml"
        path.write_text(f"title: row\n{text}\n")
        return load_recipe(path, OPTIONS)

    return load


@pytest.mark.parametrize(
    ("text", "tested", "found"),
    [
        ("train: {}\nown-answers: {weight: 0.1}", "ailuminate", "60 of the 60 ailuminate prompts"),
        ("train: {}\nown-answers: {weight: 0.1}", "xstest", "of the 60 xstest prompts"),
        ("train: {kl-weight: 1}", "ailuminate", "the demo ailuminate prompts of kl-prompts"),
        (
            "train: {kl-weight: 1, kl-prompts: demo+look-alikes}",
            "xstest",
            "xstest prompts that are tested are among",
        ),
    ],
)
def test_embedded_prompts_are_not_trained_on_where_they_are_tested(load, text, tested, found):
    recipe = load(f"{text}\n{tested}:")
    with pytest.raises(UserError, match=found):
        check_overlap(recipe, "demo", {})


def test_what_is_not_tested_may_be_trained_on(load):
    text = "train: {kl-weight: 1, kl-prompts: demo+look-alikes}\nown-answers: {weight: 0.1}"
    check_overlap(load(f"{text}\ngsm8k:"), "demo", {"gsm8k": 5})
