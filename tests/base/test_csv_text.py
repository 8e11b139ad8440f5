"""Texts of CSV files: what another party has named is no formula."""

import csv
import io

from cloister.base.csv_text import csv_text


def test_cells_are_read_back_and_formulas_are_texts():
    rows = [["=HYPERLINK(1)", 1.5, "a,b"], ["-1.5", 2, 'c "d"'], ["@x", "+cmd", "\tx"]]
    found = list(csv.reader(io.StringIO(csv_text(["-name", "=1", "e"], rows), newline="")))
    assert found == [
        ["'-name", "'=1", "e"],
        ["'=HYPERLINK(1)", "1.5", "a,b"],
        ["-1.5", "2", 'c "d"'],
        ["'@x", "'+cmd", "'\tx"],
    ]
