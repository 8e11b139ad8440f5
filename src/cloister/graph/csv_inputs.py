"""Inputs of a model from a CSV file with a header: a row is a sample.

A model with several inputs takes the columns of their names, in any order; other columns are left
out. A model with one input takes the columns as its features, in the file's order or in one that
the caller names.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cloister.data.cells import POINTS_MAY_GROUP, BadCell, CellFormat
from cloister.data.columns import Column
from cloister.data.csv_dialect import find_dialect
from cloister.data.csv_source import TableSource
from cloister.data.plain_table import read_plain_table
from cloister.data.table_options import TableOptions
from cloister.errors import InputError
from cloister.graph.array_conversion import as_input, convert
from cloister.graph.batch import element_type
from cloister.graph.graph import Graph
from cloister.graph.sample_form import sample_form

_NOT_FINITE = frozenset({"nan", "inf", "+inf", "-inf", "infinity", "-infinity"})
"""What a model may take, unlike a data set."""
_REWRITE = "correct it, or say how cells are written with --decimal, --thousands and --missing"
_CORRECT = f"{_REWRITE}, and dates with --date-format; a missing cell is empty"


def read_csv(
    graph: Graph,
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    written: TableOptions,
    note: Callable[[str], None] | None = None,
) -> dict[str, np.ndarray]:
    """The rows of a file as a batch.

    columns   the features of a model with one input, in its order; None: all, as in the file
    written   how the file's text and cells are written
    note      called with the cells outside the ranges that a model was trained on, and with doubts

    Raises   InputError naming the file, line and column
    """
    form = sample_form(graph)
    if form is not None and form.columns:
        if columns is not None:
            raise InputError("--columns: the model takes columns by their names; leave it out")
        return _described(graph, form.columns, path, written, note)
    if written.date_format is not None:
        raise InputError("--date-format: the model takes no dates; leave it out")
    read = read_plain_table(path, written)
    if note is not None and read.points_may_group:
        note(f"{path}: {POINTS_MAY_GROUP}")
    table = read.columns
    several = len(graph.inputs) > 1
    if several and columns is not None:
        raise InputError("--columns: the model takes columns by their names; leave it out")
    wanted = columns or (graph.inputs if several else tuple(table))
    missing = [name for name in wanted if name not in table]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; its columns are {', '.join(table)}")
    chosen = {name: table[name] for name in wanted}
    if several:
        made = {
            name: _numbers(cells, element_type(graph, name), path, name, read.form)
            for name, cells in chosen.items()
        }
    else:
        (name,) = graph.inputs
        made = {name: _features(graph, name, chosen, path, read.form)}
    return {
        name: as_input(graph, name, array, f"{path}: input {name!r}", whole=False)
        for name, array in made.items()
    }


def _described(
    graph: Graph,
    columns: Sequence[Column],
    path: Path,
    written: TableOptions,
    note: Callable[[str], None] | None,
) -> dict[str, np.ndarray]:
    """The columns that an exported model describes, read as the data set's owners read them.

    Raises   InputError, RangeError naming lines and columns of all bad cells
    """
    wanted = {column.name for column in columns}
    header = find_dialect(path, separator=written.separator, encoding=written.encoding).header
    others = tuple(
        name or f"column {place}"
        for place, name in enumerate(header, 1)
        if name not in wanted
    )  # fmt: skip
    source = TableSource(path, replace(written, label=(), without=others), remedy=_CORRECT)
    source.use(columns, clip=True)
    if note is not None and source.points_may_group:
        note(f"{path}: {POINTS_MAY_GROUP}")
    outside = source.outside_ranges(columns)
    if note is not None and outside.count:
        note(
            f"{path}: the model was trained on no such values ({outside.count:,} cells), and its "
            f"answers for them are guesses: {'; '.join(outside.listed())}"
        )
    cells = source.read(np.arange(source.samples)).reshape(source.samples, -1)
    return {
        column.name: _own_cells(column, cells[:, place]).astype(element_type(graph, column.name))
        for place, column in enumerate(columns)
    }


def _own_cells(column: Column, cells: np.ndarray) -> np.ndarray:
    """Cells as a model's input takes them: numbers, days or texts, of which "" is a missing one."""
    if column.kind != "category":
        return cells[:, None]
    texts = ["" if math.isnan(cell) else column.values[int(cell)] for cell in cells.tolist()]
    return np.array(texts, object)[:, None]


def _features(
    graph: Graph, name: str, table: Mapping[str, Sequence[str]], path: Path, form: CellFormat
) -> np.ndarray:
    dtype = element_type(graph, name)
    columns = [_numbers(cells, dtype, path, column, form) for column, cells in table.items()]
    return np.stack(columns, axis=1)


def _numbers(
    cells: Sequence[str], dtype: np.dtype, path: Path, column: str, form: CellFormat
) -> np.ndarray:
    """Cells as a model's element type; whole numbers are read exactly."""
    what = f"{path}, column {column!r}"
    missing = {text.strip().lower() for text in form.missing}
    # What is written for a missing cell becomes one, which a model may fill.
    absent = "" if dtype.kind == "O" else "nan"
    cells = [absent if cell.lower() in missing else cell for cell in cells]
    if dtype.kind == "O":
        return np.array(cells, object)
    try:
        return convert(np.array([int(cell) for cell in cells]), dtype, what, 0)
    except (ValueError, OverflowError):
        pass
    found = np.empty(len(cells))
    for row, cell in enumerate(cells, 1):
        value = form.number(cell) if cell.lower() not in _NOT_FINITE else float(cell)
        if isinstance(value, BadCell):
            why = f": {value.why}; {_REWRITE}" if cell else " is missing; fill it, or write nan"
            raise InputError(f"{what}: the value of row {row}{why}")
        found[row - 1] = value
    return convert(found, dtype, what, 0)
