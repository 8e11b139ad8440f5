"""How a table's columns become the elements of a sample, for every owner of a data set alike.

The first owner's notes hold the columns, so that later owners, and a model's export, encode as the
first owner did. A number or a date takes one element, whose range is mapped to [-1, 1]. A category
takes one element for each of its values: 1 for the value of the cell, 0 for every other one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Float64

from cloister.errors import InputError

ColumnKind = Literal["number", "category", "date"]
PublicRange = tuple[float, float] | tuple[str, ...]
"""Ends of a number's range, first and last day (YYYY-MM-DD) of a date's, or a category's values."""
EPOCH = date(1970, 1, 1).toordinal()
_OTHER_DATE = re.compile(r"(?:\d{4}|\d{1,2})([./-])\d{1,2}\1(?:\d{4}|\d{1,2})")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    low, high   ends of the public range of a number, or of a date in days since 1970-01-01
    values      of a category, in the order of its elements
    fill        stands for a missing cell: a number, days, or one of `values`; None: a missing cell
                is refused

    Raises   InputError naming the column
    """

    name: str
    kind: ColumnKind
    low: float = 0.0
    high: float = 0.0
    values: tuple[str, ...] = ()
    fill: float | str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ColumnKind):
            raise InputError(f"column {self.name}: a column is a number, a category or a date")
        if not self.name:
            raise InputError("a column of a table needs a name")
        if self.kind == "category":
            if not self.values or len(set(self.values)) < len(self.values) or "" in self.values:
                raise InputError(f"column {self.name}: a category needs different values")
            filled = self.fill is None or self.fill in self.values
        else:
            if not (-math.inf < self.low <= self.high < math.inf):
                raise InputError(f"column {self.name}: its range needs low <= high")
            filled = self.fill is None or (
                not isinstance(self.fill, str) and self.low <= self.fill <= self.high
            )
        if not filled:
            raise InputError(
                f"column {self.name}: {self.fill} stands for missing cells, but is not in the "
                "column's public range"
            )

    @property
    def elements(self) -> int:
        """Elements of a sample that the column takes."""
        return len(self.values) if self.kind == "category" else 1

    @property
    def middle(self) -> float:
        """The value of a number or a date that becomes 0."""
        return self.low / 2 + self.high / 2

    @property
    def half(self) -> float:
        """How far from the middle a number or a date becomes 1."""
        # A constant column says nothing and becomes zero.
        return self.high / 2 - self.low / 2 if self.high > self.low else 1.0

    @property
    def filled_cell(self) -> float:
        """What stands for a missing cell, as `encode` takes it; NaN: it is refused."""
        if self.fill is None:
            return math.nan
        return float(self.values.index(self.fill) if isinstance(self.fill, str) else self.fill)

    def encode(self, cells: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "m elements"]:
        """The elements of cells: numbers, days, or positions in `values`; NaN is a missing cell.

        Domain   result: -1 to 1 for cells in the range; NaN where nothing fills a missing cell
        """
        cells = np.where(np.isnan(cells), self.filled_cell, cells)[:, None]
        if self.kind == "category":
            chosen = (cells == np.arange(len(self.values))).astype(np.float64)
            return np.where(np.isnan(cells), np.nan, chosen)
        return (cells - self.middle) / self.half

    def to_fields(self) -> dict[str, Any]:
        """The column for a JSON document."""
        fields: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "category":
            fields["values"] = list(self.values)
        else:
            fields |= {"low": self.low, "high": self.high}
        return fields if self.fill is None else fields | {"fill": self.fill}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "Column":
        """Inverse of `to_fields`.

        Raises   InputError; ValueError, TypeError, KeyError, OverflowError of another document
        """
        kind, fill = fields["kind"], fields.get("fill")
        categorical = kind == "category"
        if not (fill is None or isinstance(fill, str if categorical else int | float)):
            raise TypeError
        named = [fields["name"], *(fields["values"] if categorical else ())]
        if not all(isinstance(text, str) for text in named):
            raise TypeError
        return Column(
            named[0],
            kind,
            low=0.0 if categorical else float(fields["low"]),
            high=0.0 if categorical else float(fields["high"]),
            values=tuple(named[1:]),
            fill=fill if fill is None or categorical else float(fill),
        )


def encode_columns(
    columns: Sequence[Column], cells: Float64[np.ndarray, "m columns"]
) -> Float64[np.ndarray, "m elements"]:
    """The elements of rows, column after column: see `Column.encode`."""
    encoded = [column.encode(cells[:, place]) for place, column in enumerate(columns)]
    return np.concatenate(encoded, axis=1)


def column_of(columns: Sequence[Column], element: int) -> Column:
    """The column that an element of a sample belongs to."""
    ends = accumulate(column.elements for column in columns)
    return next(column for column, end in zip(columns, ends, strict=True) if element < end)


def days(text: str) -> float:
    """The days from 1970-01-01 to a date YYYY-MM-DD.

    Raises   ValueError
    """
    return float(date.fromisoformat(text).toordinal() - EPOCH)


def public_column(name: str, given: PublicRange) -> Column:
    """The column that a public range describes: two dates, two numbers, or values.

    Raises   InputError naming the column
    """
    if all(isinstance(end, float | int) for end in given) and len(given) == 2:
        low, high = (float(end) for end in given)
        return Column(name, "number", low=low, high=high)
    if not all(isinstance(value, str) for value in given):
        raise InputError(f"column {name}: give [low, high], two dates YYYY-MM-DD, or texts")
    values = cast(tuple[str, ...], tuple(given))
    if len(values) == 2:
        try:
            return Column(name, "date", low=days(values[0]), high=days(values[1]))
        except ValueError:
            if all(map(_OTHER_DATE.fullmatch, values)):
                raise InputError(
                    f"column {name}: write the dates {values[0]} and {values[1]} of its range as "
                    "YYYY-MM-DD"
                ) from None
    return Column(name, "category", values=values)
