"""Cells of a table that cannot be used, listed all at once with their lines."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from cloister.data.cells import BadCell
from cloister.data.csv_dialect import Dialect
from cloister.data.csv_reader import LISTED
from cloister.errors import CellsError


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

        Raises   CellsError naming lines and columns, and what to do
        """
        if not self.count:
            return
        path, listed = self._dialect.path, self.listed()
        remedies = list(dict.fromkeys(self._remedy or one.bad.remedy for one in self._first))
        if self.count == 1:
            raise CellsError("; ".join([f"{path}: {listed[0]}", *remedies]))
        head = f"{path}: {self.count:,} cells cannot be used"
        said = "; ".join([*listed, *remedies])
        raise CellsError(f"{head}: {said}", lines=(head, *listed, *remedies))

    def listed(self) -> list[str]:
        """Line, column and reason of the first cells, and how many more there are."""
        lines = lines_of(self._dialect, [one.row for one in self._first])
        more = self.count - len(self._first)
        first = [
            f"line {lines[row]}, column {column}: {bad.why}" for row, column, bad in self._first
        ]
        return first + ([f"and {more:,} more"] if more else [])


def lines_of(dialect: Dialect, rows: Sequence[int]) -> dict[int, int]:
    """The lines on which rows begin."""
    wanted, found = set(rows), {}
    for row, (line, _) in enumerate(dialect.records()):
        if row in wanted:
            found[row] = line
            if len(found) == len(wanted):
                break
    return found
