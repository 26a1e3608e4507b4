"""The counts of the fuzz suite, and that its edits reach what lies behind the first check."""

from collections.abc import Iterator

import pytest

from tests.fuzz.bounds import CASES, OUTCOMES


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def both_outcomes() -> Iterator[None]:
    """Edits that are all refused, or none of them, would say nothing."""
    known = set(OUTCOMES)
    yield
    if CASES >= 500:
        for surface in OUTCOMES.keys() - known:
            counts = OUTCOMES[surface]
            assert counts["answered"] and counts["refused"], f"{surface}: {dict(counts)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if OUTCOMES:
        total = sum(counts.total() for counts in OUTCOMES.values())
        terminalreporter.section(f"{total} fuzz cases")
    for surface, counts in OUTCOMES.items():
        line = f"{surface:32} {counts['answered']:6} answered {counts['refused']:6} refused"
        terminalreporter.write_line(line)
