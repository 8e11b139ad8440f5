"""A CSV file as samples: its columns become numbers, and its mistakes are listed all at once.

The file is read twice. First its rows are counted, its labels kept, and it is seen what each column
is like. Then the cells are spooled as numbers to an unnamed temporary file, by the columns of the
data set if there is one, so that every owner encodes alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from cloister.data.bad_cells import BadCells, lines_of
from cloister.data.cells import POINTS_MAY_GROUP, BadCell, CellFormat
from cloister.data.column_kinds import (
    ColumnEvidence,
    Reading,
    as_cells,
    file_format,
    points_may_group,
)
from cloister.data.columns import EPOCH, Column, PublicRange, public_column
from cloister.data.csv_dialect import Dialect, find_dialect
from cloister.data.csv_reader import LISTED, TextRows, read_rows
from cloister.data.encoding import Kind, require_no_outlier
from cloister.data.info import Targets
from cloister.data.label_columns import LabelColumns
from cloister.data.spool import Spool
from cloister.data.table_options import STATISTICS, FillRule, TableOptions
from cloister.data.table_remarks import class_balance, suspicions
from cloister.errors import InputError

SHOWN_VALUES = 8
MISSING_LABEL = BadCell(
    "the class is missing", "write it, or leave out rows with missing cells (--drop)"
)
MISSING_CELL = BadCell(
    "the value is missing", "fill it (--fill), or leave out rows with missing cells (--drop)"
)


class TableSource:
    """A CSV file with a header."""

    kind: Kind = "table"
    samples: int
    targets: Targets
    labels: Int64[np.ndarray, "n ..."] | Float64[np.ndarray, "n k"] | None = None
    names: Sequence[str]
    row_numbers: Int64[np.ndarray, " n"]
    """Of each sample in the file, from 0, not counting the header."""
    remarks: Sequence[str]
    """Assumptions and omissions, a sentence each, for the samples' owner."""
    shape: tuple[int, int, int]
    """Of a sample before its columns are encoded."""
    points_may_group: bool
    """Whether points may be no decimal ones (`POINTS_MAY_GROUP`)."""

    def __init__(
        self,
        path: Path | str,
        options: TableOptions | None = None,
        *,
        targets: Targets | None = None,
        labelled: bool = True,
        remedy: str | None = None,
    ) -> None:
        """Read the file once.

        targets   what the samples have to learn; None: one column has classes, several have labels
        labelled  whether the label columns are read; if not, the file need not have them
        remedy    of cells that cannot be used, for a caller without these options

        Raises   InputError, RangeError, ShapeError naming file, line and column
        """
        self._options = options = options or TableOptions()
        self._label = options.label if labelled else ()
        self._path, self._remedy = Path(path), remedy
        path = self._path
        self._fill = FillRule.parse(options.fill)
        self._dialect = find_dialect(
            path, separator=options.separator, encoding=options.encoding, wanted=self._label
        )
        self._places = _places(self._dialect, options)
        self._format = CellFormat(
            options.decimal or ("," if options.thousands == "." else "."),
            options.thousands,
            frozenset(options.missing),
        )
        self._evidence = {
            name: ColumnEvidence(name, date_format=options.date_format) for name in self._places
        }
        self._left_out = {"empty rows": 0, "rows with missing cells": 0}
        # A file has one decimal mark: that of numbers to be predicted as well.
        self._targets_evidence = [
            ColumnEvidence(name) for name in self._label if targets == "numbers"
        ]
        self._read_once(targets)
        nothing = [n for n in self._places if not self._named(n) and not self._evidence[n].present]
        for name in nothing:
            del self._places[name], self._evidence[name]
        unnamed = [name for name in self._places if not self._named(name)]
        if unnamed:
            raise InputError(
                f"{path}: line {self._dialect.first}: {unnamed[0]} has no name; write one, or "
                f"leave it out with --without {unnamed[0]!r}"
            )
        seen = [*self._evidence.values(), *self._targets_evidence]
        if options.decimal is None:
            self._format = file_format(seen, self._format)
        unsaid = self._dialect.separator == ";" and options.decimal is None
        self.points_may_group = (
            unsaid
            and (self._format.decimal, self._format.thousands) == (".", "")
            and points_may_group(seen)
        )
        if targets == "numbers" and self._label:
            self._read_numbers()
        self._readings: dict[str, Reading] = {}
        self._incomplete: dict[str, int] = {}
        """Columns with missing cells, and how many."""
        self._cells: Float64[np.ndarray, "n columns"] = np.empty((0, 0))
        self.shape = (1, 1, len(self._places))
        self._remark(class_balance(self.labels, self.names, self.targets))

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the samples, in the order of `read`."""
        return tuple(self._readings or self._places)

    def columns(self, ranges: Mapping[str, PublicRange] | None = None) -> tuple[Column, ...]:
        """The columns of a new data set, with public ranges or with those of the samples.

        Secret   the ranges of the samples, until they are made public
        Raises   InputError, RangeError naming the column, or lines and columns of all bad cells
        """
        public = {} if ranges is None else _public_columns(ranges, self._places)
        self._fill.require_known(self._places)
        self._read_as(self._suggested(public), set(filter(self._fill.applies_to, self._places)))
        described = [self._described(name, public.get(name)) for name in self._readings]
        self._note_columns(described)
        return tuple(described)

    def use(self, columns: Sequence[Column], *, clip: bool = False) -> None:
        """Read the cells as the columns of a data set say, whatever the file suggests.

        clip     let values outside the public ranges pass

        Raises   InputError, RangeError naming the column, or lines and columns of all bad cells
        """
        wanted = {column.name: column for column in columns}
        _require_same_columns(self._path, self._places, wanted)
        for column in columns:
            self._require_agreed(column)
        readings = {
            name: self._evidence[name].reading(column.kind, column.values)
            for name, column in wanted.items()
        }
        self._read_as(readings, {column.name for column in columns if column.fill is not None})
        if not clip:
            self.outside_ranges(columns).refuse()
        self._note_columns(columns)

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Cells: numbers, days, or positions among a category's values; NaN is a missing one."""
        if not self._readings:
            self.columns()
        return np.asarray(self._cells[positions]).reshape(len(positions), *self.shape)

    def where(self, position: int) -> str:
        """The line of a sample, for errors."""
        row = int(self.row_numbers[position])
        return f"{self._path}: line {lines_of(self._dialect, [row])[row]}"

    # ---- the first reading

    def _named(self, name: str) -> bool:
        return bool(self._dialect.header[self._places[name]])

    def _rows(self) -> Iterator[TextRows]:
        """The file's rows that are used: columns of the samples, then of the labels."""
        self._left_out = dict.fromkeys(self._left_out, 0)
        places = [*self._places.values(), *map(self._dialect.header.index, self._label)]
        for rows in read_rows(self._dialect, places, missing=self._format.missing_texts):
            absent = np.array([c.is_null().to_numpy(zero_copy_only=False) for c in rows.columns])
            # A separator at the end of each line makes a column of nothing.
            absent = absent[[bool(self._dialect.header[place]) for place in places]]
            # The answers to unlabelled rows are counted by row: none is left out unasked.
            empty = np.asarray(absent.all(axis=0)) & bool(self._label)
            self._left_out["empty rows"] += int(empty.sum())
            dropped = absent.any(axis=0) & ~empty & self._options.drop
            self._left_out["rows with missing cells"] += int(dropped.sum())
            yield rows.kept(~(empty | dropped))

    def _read_once(self, targets: Targets | None) -> None:
        """Count rows and cells, and keep the labels."""
        names, numbers = self._label, [np.empty(0, np.int64)]
        cells = LabelColumns(self._path, names)
        bad = BadCells(self._dialect, remedy=self._remedy)
        for rows in self._rows():
            for evidence, texts in zip(self._evidence.values(), rows.columns, strict=False):
                evidence.add(texts)
            numbers.append(rows.numbers)
            found = rows.columns[len(self._places) :]
            for evidence, texts in zip(self._targets_evidence, found, strict=False):
                evidence.add(texts)
            for name, texts in zip(names, found, strict=True):
                absent = rows.numbers[texts.is_null().to_numpy(zero_copy_only=False)]
                bad.add(absent, name, [MISSING_LABEL] * min(LISTED, len(absent)))
            if targets != "numbers" and not bad.count:
                cells.add(found)
        bad.refuse()
        self.row_numbers = np.concatenate(numbers)
        self.samples = len(self.row_numbers)
        if not self.samples:
            raise InputError(f"{self._path}: holds no samples")
        self.targets, self.names = targets or "classes", ()
        if targets is None and len(names) > 1:
            if not cells.are_truths:
                raise InputError(
                    f"{self._path}: say what the columns {', '.join(names)} are: --targets labels, "
                    "of which a row may have any, or numbers"
                )
            self.targets = "labels"
        if names and self.targets == "classes":
            self.labels, self.names = cells.classes()
        elif names and self.targets == "labels":
            self.labels, self.names = cells.labels(), names

    def _read_numbers(self) -> None:
        """Read the numbers to be predicted."""
        bad, found = BadCells(self._dialect, remedy=self._remedy), []
        for rows in self._rows():
            columns = rows.columns[len(self._places) :]
            pairs = zip(self._label, columns, strict=True)
            found.append([self._converted(bad, rows, n, t, Reading("number")) for n, t in pairs])
        bad.refuse()
        self.labels, self.names = np.concatenate(found, axis=1).T, self._label

    def _converted(
        self,
        bad: BadCells,
        rows: TextRows,
        name: str,
        texts: Any,  # noqa: ANN401  (pyarrow has no types)
        reading: Reading,
    ) -> np.ndarray:
        def complain(places: np.ndarray, found: Sequence[BadCell]) -> None:
            bad.add(rows.numbers[places], name, found)

        return as_cells(texts, reading, self._format, complain)

    # ---- the second reading

    def _suggested(self, public: Mapping[str, Column]) -> dict[str, Reading]:
        readings, problems = {}, []
        for name, evidence in self._evidence.items():
            try:
                if name in public:
                    readings[name] = evidence.reading(public[name].kind, public[name].values)
                else:
                    stated = name in self._options.categories
                    readings[name] = evidence.reading("category" if stated else None)
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError(f"{self._path}: {'; '.join(problems)}")
        return readings

    def _read_as(self, readings: dict[str, Reading], fillable: set[str]) -> None:
        """Spool the cells as they are read; a missing cell is refused where nothing fills it."""
        # Readings in another order are others: the spooled file has their order.
        if list(readings.items()) == list(self._readings.items()) and fillable >= set(
            self._incomplete
        ):
            return
        self._readings, self._incomplete = {}, {}
        order = [list(self._places).index(name) for name in readings]
        bad, count = BadCells(self._dialect, remedy=self._remedy), 0
        with Spool(str(self._path)) as spool:
            for rows in self._rows():
                cells = np.empty((len(rows.numbers), len(readings)))
                for at, (name, reading) in enumerate(readings.items()):
                    texts = rows.columns[order[at]]
                    self._complain_of_missing(bad, rows, name, texts, fillable)
                    cells[:, at] = self._converted(bad, rows, name, texts, reading)
                count += len(cells)
                spool.write(cells.tobytes())
            bad.refuse()
            if count != self.samples:
                raise InputError(f"{self._path}: was changed while it was read; try again")
            self._cells = spool.array(np.float64, (count, len(readings)))
        self._readings = readings

    def _complain_of_missing(
        self,
        bad: BadCells,
        rows: TextRows,
        name: str,
        texts: Any,  # noqa: ANN401  (pyarrow has no types)
        fillable: set[str],
    ) -> None:
        if not texts.null_count:
            return
        self._incomplete[name] = self._incomplete.get(name, 0) + texts.null_count
        if name not in fillable:
            absent = rows.numbers[texts.is_null().to_numpy(zero_copy_only=False)]
            bad.add(absent, name, [MISSING_CELL] * min(LISTED, len(absent)))

    # ---- columns

    def _described(self, name: str, public: Column | None) -> Column:
        """A column of a new data set."""
        reading, place = self._readings[name], list(self._readings).index(name)
        cells = np.array(self._cells[:, place])
        fill = self._fill.value(name, reading.kind, cells, reading.values)
        if public is not None:
            return replace(public, fill=fill)
        if reading.kind == "category":
            if isinstance(fill, str) and fill not in reading.values:
                reading = replace(reading, values=(*reading.values, fill))
                self._readings[name] = reading
            return Column(name, "category", values=reading.values, fill=fill)
        present = cells[~np.isnan(cells)]
        ends = (float(present.min()), float(present.max()))
        require_no_outlier(present, ends, what=f"{self._path}: column {name}", option="--ranges")
        stated = [] if fill is None else [float(fill)]
        low, high = min([*ends, *stated]), max([*ends, *stated])
        return Column(name, reading.kind, low=low, high=high, fill=fill)

    def _require_agreed(self, column: Column) -> None:
        """Refuse an option that says something else than the data set."""
        name = column.name
        if name in self._options.categories and column.kind != "category":
            raise InputError(
                f"column {name} is a {column.kind} in the data set; leave it out of --categories"
            )
        stated = self._fill.single.get(name)
        if stated is None or stated in STATISTICS:
            return
        value = self._fill.value(name, column.kind, np.empty(0), column.values)
        if value != column.fill:
            does = "fills no missing cells" if column.fill is None else f"fills {column.fill}"
            raise InputError(f"column {name}: the data set {does}; leave {name} out of --fill")

    def outside_ranges(self, columns: Sequence[Column]) -> BadCells:
        """Numbers and dates outside the public ranges of the columns that the cells are read as."""
        bad = BadCells(self._dialect, remedy=self._remedy)
        for place, column in enumerate(columns):
            if column.kind == "category":
                continue
            cells = np.array(self._cells[:, place])
            outside = np.flatnonzero((cells < column.low) | (cells > column.high))
            remedy = "allow --clip, or make the data set with wider --ranges"
            low, high = _written(column, column.low), _written(column, column.high)
            found = [
                BadCell(
                    f"{_written(column, cells[at])} is outside the range {low} to {high}",
                    remedy,
                )
                for at in outside[:LISTED]
            ]
            bad.add(self.row_numbers[outside], column.name, found)
        return bad

    def _note_columns(self, columns: Sequence[Column]) -> None:
        """Say how the columns are read, and which may be none to learn from."""
        notes: list[str] = []
        for place, column in enumerate(columns):
            cells = np.array(self._cells[:, place])
            said = [*self._read_otherwise(column), *suspicions(column, cells)]
            filled = self._incomplete.get(column.name, 0)
            if filled and column.fill is not None:
                fill = column.fill
                shown = fill if isinstance(fill, str) else _written(column, fill)
                said.append(f"{filled:,} missing cells are filled by {shown}")
            notes += [f"column {column.name}: {one}" for one in said]
        self._remark((*class_balance(self.labels, self.names, self.targets), *notes))

    def _remark(self, notes: Sequence[str]) -> None:
        left_out = [f"{n:,} {what} are left out" for what, n in self._left_out.items() if n]
        commas = ["numbers have decimal commas"] if self._format.decimal == "," else []
        points = [POINTS_MAY_GROUP] if self.points_may_group else []
        unread = [name for name in self._options.label if name in self._dialect.header]
        labels = [f"column {name} is left out" for name in unread if not self._label]
        self.remarks = (*self._dialect.remarks, *commas, *points, *left_out, *labels, *notes)

    def _read_otherwise(self, column: Column) -> Iterator[str]:
        if column.kind == "category":
            more = ", ..." if len(column.values) > SHOWN_VALUES else ""
            yield f"a category of {', '.join(column.values[:SHOWN_VALUES])}{more}"
            folded = {value.casefold() for value in column.values}
            if len(folded) < len(column.values):
                yield "some of its values differ in upper and lower case only"
            if not all(value.isprintable() for value in column.values):
                yield "some of its values hold characters that do not show"
        if column.kind == "number" and self._evidence[column.name].zeros:
            yield (
                "some numbers begin with a zero; if these are codes, name the column with "
                f"--categories {column.name}, or leave it out with --without"
            )
        if column.kind == "date":
            form = self._readings[column.name].date_format
            yield f"dates are read as {form}" + (
                ", their times of day are left out" if self._evidence[column.name].timed else ""
            )


def _places(dialect: Dialect, options: TableOptions) -> dict[str, int]:
    """The columns of the samples, and their places in the header.

    Raises   InputError
    """
    path, header = dialect.path, dialect.header
    numbered = [name or f"column {place}" for place, name in enumerate(header, 1)]
    for what, names in (("without", options.without), ("categories", options.categories)):
        unknown = [name for name in names if name not in numbered]
        if unknown:
            raise InputError(
                f"{path}: --{what} {unknown[0]}: there is no such column but {', '.join(numbered)}"
            )
    if len(set(options.label)) != len(options.label) or set(options.label) & set(options.without):
        raise InputError(f"--label {','.join(options.label)}: name every column once")
    places = {
        name: place
        for place, name in enumerate(numbered)
        if name not in options.without and header[place] not in options.label
    }
    named = [name for name in header if name and name not in options.without]
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise InputError(
            f"{path}: the header needs different names, but has {twice[0]!r} "
            f"{named.count(twice[0])} times; rename the columns"
        )
    if not places:
        raise InputError(f"{path}: has no columns besides --label {','.join(options.label)}")
    return places


def _public_columns(
    ranges: Mapping[str, PublicRange], names: Mapping[str, int]
) -> dict[str, Column]:
    missing = [name for name in names if name not in ranges]
    if missing:
        several = len(missing) > 1
        raise InputError(
            f"--ranges: column{'s' if several else ''} {', '.join(missing)} "
            f"{'are' if several else 'is'} missing; give [low, high] of a number, two dates "
            "YYYY-MM-DD, or all values of a category, or leave columns out with --without"
        )
    return {name: public_column(name, ranges[name]) for name in names}


def _require_same_columns(path: Path, own: Mapping[str, int], wanted: Mapping[str, Column]) -> None:
    absent = [name for name in wanted if name not in own]
    more = [name for name in own if name not in wanted]
    if absent:
        raise InputError(
            f"{path}: has no column {', '.join(absent)}, which the data set has: its columns are "
            f"{', '.join(wanted)}"
        )
    if more:
        raise InputError(
            f"{path}: column {', '.join(more)} is not in the data set; leave it out with --without "
            f"{','.join(more)}"
        )


def _written(column: Column, value: float) -> str:
    if column.kind == "date":
        return date.fromordinal(int(value) + EPOCH).isoformat()
    return f"{value:g}"
