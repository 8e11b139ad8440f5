"""The rows of a CSV file, as columns of texts, piece by piece: memory does not grow with the file.

pyarrow parses: it reads quotes, line breaks in cells and any line ending at the speed of a disk.
"""

import csv
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
from jaxtyping import Bool, Int64

from cloister.base.reading import parsing
from cloister.data.csv_dialect import Dialect
from cloister.errors import InputError, ShapeError

BLOCK_BYTES = 1 << 22
"""Of text that is parsed at once; a longer row is refused."""
LISTED = 20


def arrow(module: str = "pyarrow") -> Any:  # noqa: ANN401  (pyarrow has no types)
    """A module of pyarrow.

    Raises   InputError without pyarrow
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError("a .csv needs pyarrow: pip install 'cloister[tables]'") from error


@dataclass(frozen=True, eq=False)
class TextRows:
    """Some rows of a file: their numbers in it from 0, and their columns as pyarrow's texts.

    A missing cell is a null; spaces around a text are removed.
    """

    numbers: Int64[np.ndarray, " m"]
    columns: Sequence[Any]

    def kept(self, which: Bool[np.ndarray, " m"]) -> "TextRows":
        """The rows for which `which` is true."""
        if which.all():
            return self
        return TextRows(self.numbers[which], [column.filter(which) for column in self.columns])


def read_rows(
    dialect: Dialect, places: Sequence[int], *, missing: frozenset[str]
) -> Iterator[TextRows]:
    """All rows of a file, with the columns at some places of its header.

    missing   texts of missing cells, in lower case

    Raises   InputError, ShapeError naming lines that have too few or too many cells
    """
    pa, compute = arrow(), arrow("pyarrow.compute")
    missing_texts = pa.array(sorted(missing), pa.string())
    last_place = len(dialect.header) - 1
    ragged, first, last = _Ragged(dialect), 0, ""
    for batch in _batches(dialect, ragged, sorted({*places, last_place})):
        columns = []
        for place in places:
            texts = compute.utf8_trim_whitespace(batch.column(str(place)))
            absent = compute.is_in(compute.utf8_lower(texts), value_set=missing_texts)
            columns.append(compute.if_else(absent, pa.scalar(None, pa.string()), texts))
        numbers = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        if batch.num_rows:
            last = batch.column(str(last_place))[-1].as_py()
        yield TextRows(numbers, columns)
    if ragged.count:
        raise ragged.error()
    if "\n" in last or "\r" in last:
        dialect.require_closed_quotes()


def _batches(dialect: Dialect, ragged: "_Ragged", places: Sequence[int]) -> Iterator[Any]:
    pa, csv_module = arrow(), arrow("pyarrow.csv")
    names = [str(place) for place in range(len(dialect.header))]
    with dialect.rows_text() as text:
        stream = _Utf8Stream(text)
        if stream.is_empty:
            return
        with parsing(f"{dialect.path}: not a readable CSV file"):
            reader = csv_module.open_csv(
                pa.PythonFile(stream, "r"),
                csv_module.ReadOptions(
                    use_threads=False, block_size=BLOCK_BYTES, column_names=names
                ),
                csv_module.ParseOptions(
                    delimiter=dialect.separator,
                    newlines_in_values=True,
                    invalid_row_handler=ragged.add,
                ),
                csv_module.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=[names[place] for place in places],
                ),
            )
        while True:
            with parsing(f"{dialect.path}: not a readable CSV file"):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch


class _Utf8Stream(io.RawIOBase):
    """A text's UTF-8 bytes, for pyarrow."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._rest = text.read(1).encode()
        self.is_empty = not self._rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes."""
        if len(self._rest) < max(size, 0):
            self._rest += self._text.read(size - len(self._rest)).encode()
        elif size < 0:
            self._rest += self._text.read().encode()
            size = len(self._rest)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


class _Ragged:
    """TextRows with another number of cells than the header."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.count = 0

    def add(self, row: Any) -> str:  # noqa: ANN401  (pyarrow has no types)
        """Count one, unless it is blank; pyarrow leaves it out."""
        cells = csv.reader(io.StringIO(row.text, newline=""), delimiter=self._dialect.separator)
        if any(cell.strip() for line in cells for cell in line):
            self.count += 1
        return "skip"

    def error(self) -> ShapeError:
        """Says where they are."""
        wanted = len(self._dialect.header)
        listed: list[str] = []
        for line, row in self._dialect.records():
            if len(row) != wanted and len(listed) < LISTED:
                quote = " (a quote that is not closed?)" if "\n" in "".join(row) else ""
                listed.append(f"line {line}: {len(row)} cells{quote}")
        more = f", and {self.count - len(listed)} more" if self.count > len(listed) else ""
        return ShapeError(
            f"{self._dialect.path}: {', '.join(listed)}{more}, but the header has {wanted}; "
            "correct them, or name what separates cells with --separator"
        )
