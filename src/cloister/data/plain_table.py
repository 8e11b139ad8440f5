"""A small CSV file as texts by column, read without pyarrow: the inputs of a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.base.reading import parsing
from cloister.data.cells import POINT_OF_BOTH, CellFormat, comma_use, is_plain_number
from cloister.data.csv_dialect import find_dialect
from cloister.data.table_options import TableOptions
from cloister.errors import InputError


@dataclass(frozen=True)
class PlainTable:
    """The cells of every column, by its name, and how the file writes numbers.

    points_may_group   whether points may be no decimal ones (`POINTS_MAY_GROUP`)
    """

    columns: Mapping[str, Sequence[str]]
    form: CellFormat
    points_may_group: bool


def read_plain_table(path: Path, options: TableOptions) -> PlainTable:
    """Read a whole file.

    options   how its text and cells are written; what they say of columns and rows is not used

    Raises   InputError naming the file and the row
    """
    with parsing(f"{path}: not a readable CSV file"):
        dialect = find_dialect(
            path, separator=options.separator, encoding=options.encoding, columns=1
        )
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
    found = options.decimal or _decimal(columns, options.thousands)
    form = CellFormat(found, options.thousands, frozenset(options.missing))
    unsaid = dialect.separator == ";" and options.decimal is None
    may_group = unsaid and (found, options.thousands) == (".", "") and _points_may_group(columns)
    return PlainTable(columns, form, may_group)


def _decimal(columns: Mapping[str, Sequence[str]], thousands: str) -> str:
    """The decimal mark of a file: a comma if more cells show one than a point."""
    if thousands in (".", ","):
        return "," if thousands == "." else "."
    commas = points = 0
    for cells in columns.values():
        for cell in cells:
            use = comma_use(cell)
            commas += use == (True, False)
            points += use == (False, True) or (use == (False, False) and "." in cell)
    return "," if commas > points else "."


def _points_may_group(columns: Mapping[str, Sequence[str]]) -> bool:
    """Whether there are numbers with a point, all of them like 1.234, and no decimal commas."""
    cells = [cell for column in columns.values() for cell in column]
    pointed = [cell for cell in cells if "." in cell and is_plain_number(cell)]
    commas = any(comma_use(cell) == (True, False) for cell in cells)
    alike = all(re.fullmatch(POINT_OF_BOTH, cell) for cell in pointed)
    return bool(pointed) and alike and not commas
