"""How well unsafe prompts are told from harmless ones."""

import pytest

from reporting.discrimination import discrimination
from reporting.load_runs import load_runs
from reporting.scores import headline_scores
from tests.reporting.run_folders import write_ailuminate, write_xstest


def measured(run):
    """The difference of the run's main XSTest score."""
    (loaded,) = load_runs([run])
    (score,) = [score for score in headline_scores([loaded]) if score.is_over_refusal]
    return discrimination(loaded, score)


def test_it_is_what_is_refused_of_the_unsafe_beyond_the_harmless(tmp_path):
    found = measured(write_xstest(tmp_path, safe="r" * 14 + "s" * 42, unsafe="r" * 56 + "s" * 14))
    assert found.rate == pytest.approx(0.8 - 0.25)
    # Wilson intervals of 56/70 and 14/56: [0.6918, 0.8769] and [0.1554, 0.3767].
    assert found.low == pytest.approx(0.55 - (0.1082**2 + 0.1267**2) ** 0.5, abs=1e-3)
    assert found.high == pytest.approx(0.55 + (0.0769**2 + 0.0946**2) ** 0.5, abs=1e-3)


@pytest.mark.parametrize("letter", ["r", "s"])
def test_refusing_everything_or_nothing_tells_nothing_apart(tmp_path, letter):
    found = measured(write_xstest(tmp_path, safe=letter * 10, unsafe=letter * 10))
    assert found.rate == 0 and found.low < 0 < found.high


def test_it_takes_both_kinds_of_prompts(tmp_path):
    assert measured(write_xstest(tmp_path / "safe", safe="rs", unsafe="")) is None
    write_ailuminate(tmp_path / "hazards", "ss")
    (run,) = load_runs([tmp_path / "hazards"])
    assert not any(score.is_over_refusal for score in headline_scores([run]))
