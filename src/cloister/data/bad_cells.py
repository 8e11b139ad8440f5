"""Cells of a table that cannot be used, listed all at once with their lines."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from cloister.data.cells import BadCell
from cloister.data.csv_dialect import Dialect
from cloister.data.csv_reader import LISTED
from cloister.errors import RangeError


class _Listed(NamedTuple):
    row: int
    column: str
    bad: BadCell


class BadCells:
    """Bad cells of a file: all are counted, and those of the first rows kept."""

    def __init__(self, dialect: Dialect, *, remedy: str | None = None) -> None:
        """`remedy` is what the reader of the refusal can do; None: as each cell says."""
        self._dialect, self._remedy = dialect, remedy
        self.count = 0
        self._first: list[_Listed] = []

    def add(self, rows: Int64[np.ndarray, " m"], column: str, found: Sequence[BadCell]) -> None:
        """Count cells of a column; `found` says what is wrong with the first of them."""
        self.count += len(rows)
        listed = zip(rows.tolist(), found, strict=False)
        self._first += [_Listed(row, column, bad) for row, bad in listed]
        self._first.sort(key=lambda one: one.row)
        del self._first[LISTED:]

    def refuse(self) -> None:
        """Refuse the file if it has one.

        Raises   RangeError naming lines and columns, and what to do
        """
        if not self.count:
            return
        several = f"{self.count:,} cells cannot be used: " if self.count > 1 else ""
        remedies = dict.fromkeys(self._remedy or one.bad.remedy for one in self._first)
        raise RangeError(
            f"{self._dialect.path}: {several}{self.listed()}"
            + "".join(f"; {remedy}" for remedy in remedies)
        )

    def listed(self) -> str:
        """Line, column and reason of the first cells, and how many more there are."""
        lines = lines_of(self._dialect, [one.row for one in self._first])
        more = self.count - len(self._first)
        return "; ".join(
            f"line {lines[row]}, column {column}: {bad.why}" for row, column, bad in self._first
        ) + (f"; and {more:,} more" if more else "")


def lines_of(dialect: Dialect, rows: Sequence[int]) -> dict[int, int]:
    """The lines on which rows begin."""
    wanted, found = set(rows), {}
    for row, (line, _) in enumerate(dialect.records()):
        if row in wanted:
            found[row] = line
            if len(found) == len(wanted):
                break
    return found
