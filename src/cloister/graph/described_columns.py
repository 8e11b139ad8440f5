"""The cells of a file as inputs of a model that describes its columns.

Such a model was exported by the owner of a data set (`cloister export`): it takes the columns as
the owner's files have them.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from cloister.data.cells import (
    BadCell,
    CellFormat,
    category_position,
    date_formats,
    day,
)
from cloister.data.columns import Column
from cloister.data.plain_table import PlainTable
from cloister.errors import InputError

MAX_BAD = 20


def described_values(
    described: Sequence[Column], table: PlainTable, path: Path
) -> dict[str, list[float | str]]:
    """Numbers, days, or the texts of categories, by column; a missing cell that is filled is NaN,
    or the empty text.

    Raises   InputError naming the file, and every cell that cannot be used
    """
    missing = [column.name for column in described if column.name not in table.columns]
    if missing:
        listed = ", ".join(table.columns)
        raise InputError(f"{path}: no column {missing[0]!r}; its columns are {listed}")
    bad: list[str] = []
    made: dict[str, list[float | str]] = {}
    for column in described:
        cells = table.columns[column.name]
        dates = _date_format(column, cells, path) if column.kind == "date" else ""
        made[column.name] = values = []
        for row, text in enumerate(cells, 1):
            value = _value(column, text, table.form, dates)
            if isinstance(value, BadCell):
                bad.append(f"row {row}, column {column.name}: {value.why}")
                value = math.nan
            values.append(value)
    if bad:
        more = f"; and {len(bad) - MAX_BAD:,} more" if len(bad) > MAX_BAD else ""
        raise InputError(f"{path}: {'; '.join(bad[:MAX_BAD])}{more}; correct or fill these cells")
    return made


def _value(column: Column, text: str, form: CellFormat, dates: str) -> float | str | BadCell:
    if text.lower() in form.missing_texts and text not in column.values:
        if column.fill is None:
            return BadCell("the value is missing", "fill it")
        return "" if column.kind == "category" else math.nan
    if column.kind == "category":
        position = category_position(text, column.values)
        return position if isinstance(position, BadCell) else column.values[int(position)]
    return day(text, dates) if column.kind == "date" else form.number(text)


def _date_format(column: Column, cells: Sequence[str], path: Path) -> str:
    """The one format in which all dates of a column can be read.

    Raises   InputError when there are several
    """
    readable = [set(date_formats(text)) for text in cells]
    known = [formats for formats in readable if formats]
    common = set.intersection(*known) if known else set()
    if len(common) > 1:
        listed = " or as ".join(sorted(common))
        raise InputError(
            f"{path}: column {column.name}: its dates can be read as {listed}; write YYYY-MM-DD"
        )
    return common.pop() if common else "%Y-%m-%d"
