"""Inputs of a model from a CSV file with a header: a row is a sample.

A model with several inputs takes the columns of their names, in any order; other columns are left
out. A model with one input takes the columns as its features, in the file's order or in one that
the caller names.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cloister.base.reading import open_regular, parsing
from cloister.data.columns import Column, days
from cloister.errors import InputError
from cloister.graph.array_conversion import as_input, convert
from cloister.graph.batch import element_type
from cloister.graph.graph import Graph
from cloister.graph.sample_form import sample_form

MAX_BAD = 20


def read_csv(
    graph: Graph, path: Path, columns: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The rows of a file as a batch.

    columns   the features of a model with one input, in its order; None: all, as in the file

    Raises   InputError naming the file, line and column
    """
    table = _table(path)
    form = sample_form(graph)
    if form is not None and form.columns:
        return _encoded(graph, form.columns, table, path, columns)
    several = len(graph.inputs) > 1
    if several and columns is not None:
        raise InputError("--columns: the model takes columns by their names; leave it out")
    wanted = columns or (graph.inputs if several else tuple(table))
    missing = [name for name in wanted if name not in table]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; its columns are {', '.join(table)}")
    chosen = {name: table[name] for name in wanted}
    if several:
        made = {name: _column(graph, name, cells, path) for name, cells in chosen.items()}
    else:
        (name,) = graph.inputs
        made = {name: _features(graph, name, chosen, path)}
    return {
        name: as_input(graph, name, array, f"{path}: input {name!r}", whole=False)
        for name, array in made.items()
    }


def _encoded(
    graph: Graph,
    described: Sequence[Column],
    table: Mapping[str, Sequence[str]],
    path: Path,
    columns: Sequence[str] | None,
) -> dict[str, np.ndarray]:
    """The columns that an exported model describes; all bad cells are named at once."""
    if columns is not None:
        raise InputError("--columns: the model takes columns by their names; leave it out")
    missing = [column.name for column in described if column.name not in table]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; its columns are {', '.join(table)}")
    bad: list[str] = []
    made: dict[str, np.ndarray] = {}
    for column in described:
        cells: list[float | str] = []
        for row, text in enumerate(table[column.name], 1):
            try:
                cells.append(_cell(column, text))
            except InputError as error:
                cells.append(math.nan)
                bad.append(f"row {row}, column {column.name}: {error}")
        dtype = element_type(graph, column.name)
        made[column.name] = np.array(cells, dtype).reshape(-1, 1)
    if bad:
        more = f"; and {len(bad) - MAX_BAD:,} more" if len(bad) > MAX_BAD else ""
        raise InputError(f"{path}: {'; '.join(bad[:MAX_BAD])}{more}")
    return made


def _cell(column: Column, text: str) -> float | str:
    """What a cell is for its column's input.

    Raises   InputError
    """
    if not text and column.fill is None:
        raise InputError("the value is missing; fill it")
    if column.kind == "category":
        if text and text not in column.values:
            raise InputError(f"{text!r} is none of {', '.join(column.values)}")
        return text
    if not text:
        return math.nan
    try:
        value = days(text) if column.kind == "date" else float(text)
    except ValueError:
        wanted = "a date YYYY-MM-DD" if column.kind == "date" else "a number such as 1234.5"
        raise InputError(f"{text!r} is not {wanted}") from None
    if not math.isfinite(value):
        raise InputError(f"{text!r} is not finite")
    return value


def _features(
    graph: Graph, name: str, table: Mapping[str, Sequence[str]], path: Path
) -> np.ndarray:
    dtype = element_type(graph, name)
    columns = [_numbers(cells, dtype, path, column) for column, cells in table.items()]
    return np.stack(columns, axis=1)


def _column(graph: Graph, name: str, cells: Sequence[str], path: Path) -> np.ndarray:
    return _numbers(cells, element_type(graph, name), path, name)


def _numbers(cells: Sequence[str], dtype: np.dtype, path: Path, column: str) -> np.ndarray:
    """Cells as a model's element type; whole numbers are read exactly."""
    what = f"{path}, column {column!r}"
    if dtype.kind == "O":
        return np.array(cells, object)
    try:
        return convert(np.array([int(cell) for cell in cells]), dtype, what, 0)
    except (ValueError, OverflowError):
        pass
    found = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            found[row] = float(cell)
        except ValueError:
            why = "is no number such as 1234.5" if cell else "is missing; fill it, or write nan"
            raise InputError(f"{what}: the value of row {row + 1} {why}") from None
    return convert(found, dtype, what, 0)


def _table(path: Path) -> dict[str, list[str]]:
    """The cells of every column, by its name."""
    with parsing(f"{path}: not a readable CSV file; save it as UTF-8"), open_regular(path) as file:
        text = file.read().decode("utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    if not header or "" in header or len(set(header)) < len(header):
        raise InputError(f"{path}: needs a first line with a different name for each column")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} cells, and the header {len(header)}"
            )
    if len(rows) < 2:
        raise InputError(f"{path}: holds no rows")
    cells = zip(*rows[1:], strict=True)
    return {name: [cell.strip() for cell in one] for name, one in zip(header, cells, strict=True)}
