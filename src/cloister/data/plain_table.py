"""A small CSV file as texts by column, read without pyarrow: the inputs of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.base.reading import parsing
from cloister.data.cells import CellFormat, comma_use
from cloister.data.csv_dialect import find_dialect
from cloister.errors import InputError


@dataclass(frozen=True)
class PlainTable:
    """The cells of every column, by its name, and how the file writes numbers."""

    columns: Mapping[str, Sequence[str]]
    form: CellFormat


def read_plain_table(path: Path) -> PlainTable:
    """Read a whole file.

    Raises   InputError naming the file and the row
    """
    with parsing(f"{path}: not a readable CSV file"):
        dialect = find_dialect(path, columns=1)
        dialect.require_closed_quotes()
        rows = [row for _, row in dialect.records()]
    header = dialect.header
    if "" in header or len(set(header)) < len(header):
        raise InputError(f"{path}: needs a first line with a different name for each column")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} cells, and the header {len(header)}"
            )
    if not rows:
        raise InputError(f"{path}: holds no rows")
    cells = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    columns = dict(zip(header, cells, strict=True))
    return PlainTable(columns, CellFormat(_decimal(columns)))


def _decimal(columns: Mapping[str, Sequence[str]]) -> str:
    """The decimal mark of a file: a comma if more cells show one than a point."""
    commas = points = 0
    for cells in columns.values():
        for cell in cells:
            use = comma_use(cell)
            commas += use == (True, False)
            points += use == (False, True) or (use == (False, False) and "." in cell)
    return "," if commas > points else "."
