"""Every table of a report, in the order in which it shows them."""

from collections.abc import Sequence

from reporting.agreement_table import agreement_table
from reporting.comparison import Comparisons
from reporting.headline import headline_table
from reporting.load_runs import Run
from reporting.paired_tables import paired_tables
from reporting.reproduction_table import row_tables
from reporting.run_tables import run_tables
from reporting.tables import Table
from reporting.yardstick import yardstick_table


def all_tables(runs: Sequence[Run], comparisons: Comparisons) -> list[Table]:
    """The main scores first, then what was compared in pairs, then the details."""
    pairs = [yardstick_table(runs), *paired_tables(runs, comparisons)]
    first = [headline_table(runs), *pairs, agreement_table(runs)]
    return [table for table in (*first, *run_tables(runs), *row_tables(runs)) if table]
