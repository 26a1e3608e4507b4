"""Solutions are told apart by their equations: wording, units and spelling make no difference."""

import pytest

from data.equations import equations
from data.gsm8k import GSM8K

CLIPS = ("48/2=24", "48+24=72")


@pytest.mark.parametrize(
    "solution",
    [
        "She sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
        "In May: 48 / 2 = 24. Then 48 + 24 = 72.",
        "1. May: \\( \\frac{48}{2} = 24 \\)\n2. Both: \\[ 48 + 24 = 72 \\text{ clips} \\]",
        r"\[ 48 \text{ clips} \div 2 \text{ months} = 24 \] \( 48 \text{ } + 24 = \boxed{72} \)",
        "48 clips ÷ 2 = 24 clips, and 48 clips + 24 clips = 72 clips",
        "**48 / 2 = 24**\nso $48.00 + $24 = **$72.0**",
        "x = 48/2 = 24 and (48 + 24) = 72",
        "(In May it was 48/2 = 24) and 48 + (24) = 72",
    ],
)
def test_wording_layout_units_and_spelling_make_no_difference(solution):
    found = equations(solution)
    assert [one.replace("(48+24)", "48+24") for one in found] == list(CLIPS)


@pytest.mark.parametrize(
    ("solution", "found"),
    [
        ("2*3+1 = 6+1 = 7", ("2*3+1=6+1", "6+1=7")),  # a chain, an equation a sign
        ("2 x 3 = 6", ("2*3=6",)),
        ("2 \u00d7 3 = 6", ("2*3=6",)),
        ("1,000 * 2 = 2,000", ("1000*2=2000",)),
        (".50 * 4 = 2.00", ("0.5*4=2",)),
        ("60 km/h * 2 hours = 120 km", ("60*2=120",)),
        ("(2+3)*4 = 20", ("(2+3)*4=20",)),
        ("48 + 24 = 72\n24 + 48 = 72", ("48+24=72", "24+48=72")),  # another order is another way
        ("x = 5, so 5 = 5", ()),  # nothing is computed
        ("Five and five make ten.\n#### 10", ()),
        ("", ()),
    ],
)
def test_what_counts_as_an_equation(solution, found):
    assert equations(solution) == found


def test_every_annotation_of_the_embedded_solutions_is_found_outside_of_it_too():
    for record in GSM8K().load("demo", "train")[:200]:
        annotated = record["answer"].count("<<")
        assert len(equations(record["answer"])) >= annotated > 0, record["answer"]


def test_long_text_without_end_takes_no_time():
    assert equations("(" * 3000 + "1+" * 3000 + "a b c " * 3000) == ()
