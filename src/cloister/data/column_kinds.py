"""Which kind of column a table's cells suggest, from counts over all of its rows."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloister.data.cells import (
    DATE_FORMATS,
    POINT_OF_BOTH,
    TRUTHS,
    BadCell,
    CellFormat,
    are_truths,
    category,
    category_position,
    comma_use,
    date_formats,
    day,
    has_time,
    in_order,
    is_date_like,
    is_number_like,
    is_plain_number,
    shown,
)
from cloister.data.columns import ColumnKind
from cloister.data.csv_reader import LISTED, arrow
from cloister.errors import InputError

FEW_VALUES = 20
FIRST_CELLS = 1000
MAX_VALUES = 256
"""Of a category: each is an element of every sample, and public."""


@dataclass(frozen=True)
class Reading:
    """How a column's cells are read."""

    kind: ColumnKind
    values: tuple[str, ...] = ()
    date_format: str = ""


class ColumnEvidence:
    """What a column's cells are like."""

    def __init__(self, name: str, *, date_format: str | None = None) -> None:
        self.name = name
        self._date_format = date_format
        self.cells = self.missing = self.numbers = self.points = 0
        self.decimal_commas = self.grouping_commas = 0
        self.zeros = 0
        """Numbers that begin with a zero, as codes do."""
        self.points_may_group = True
        """Whether every number with a point is like 1.234."""
        self.timed = False
        self.values: Counter[str] = Counter()
        """Of at most `MAX_VALUES` + 1 texts."""
        self._dates: Counter[str] = Counter()
        self._quantities = self._other_dates = 0

    def add(self, texts: Any) -> None:  # noqa: ANN401  (pyarrow has no types)
        """Count more cells."""
        compute = arrow("pyarrow.compute")
        self.cells += len(texts)
        self.missing += texts.null_count
        # A format of dates may be one of digits alone.
        plain = as_numbers(texts) if self._date_format is None else None
        if plain is not None:
            self.numbers += len(texts) - texts.null_count
            pointed = texts.filter(compute.match_substring(texts, "."))
            self.points += len(pointed)
            self.points_may_group = self.points_may_group and _may_group(pointed)
            # Codes show at once, and the pattern takes longer than all else here.
            zeros = compute.match_substring_regex(texts.slice(0, FIRST_CELLS), "^0[0-9]")
            self.zeros += compute.sum(zeros).as_py() or 0
        if plain is not None and len(self.values) > MAX_VALUES:
            return
        for counted in compute.value_counts(texts.drop_null()).to_pylist():
            text, count = counted["values"], counted["counts"]
            if len(self.values) <= MAX_VALUES:
                self.values[text] += count
            if plain is None:
                self._add_text(text, count)

    def _add_text(self, text: str, count: int) -> None:
        form = self._date_format
        if form is not None and not isinstance(day(text, form), BadCell):
            self._dates[form] += count
            return
        if is_number_like(text):
            self._quantities += count
            use = comma_use(text)
            if use == (False, False) and "." in text:
                self.points += count
                self.points_may_group &= re.fullmatch(POINT_OF_BOTH, text) is not None
            self.decimal_commas += count * (use == (True, False))
            self.grouping_commas += count * (use == (False, True))
            return
        self._other_dates += count * is_date_like(text)
        for known in date_formats(text):
            self._dates[known] += count
            self.timed |= has_time(text)

    @property
    def present(self) -> int:
        """Cells that are not missing."""
        return self.cells - self.missing

    def reading(self, kind: ColumnKind | None, values: Sequence[str] = ()) -> Reading:
        """How the column is read; None: as its cells suggest.

        Raises   InputError naming the column
        """
        if kind is None:
            if not self.present:
                raise InputError(
                    f"column {self.name}: every cell is missing; leave it out (--without)"
                )
            kind = self._suggested()
        if kind == "date":
            return Reading(kind, date_format=self._format())
        if kind == "category":
            return Reading(kind, tuple(values) or self._categories())
        return Reading(kind)

    def _suggested(self) -> ColumnKind:
        if are_truths(list(self.values)):
            return "category"
        dates = max(self._dates.values(), default=0)
        if 2 * dates > self.present:
            return "date"
        if 2 * (self.numbers + self._quantities) >= self.present:
            return "number"
        if 2 * self._other_dates > self.present:
            raise InputError(
                f"column {self.name}: texts such as {shown(next(iter(self.values)))} may be dates; "
                "name their format with --date-format, as %d.%m.%y, or the column with --categories"
            )
        many = len(self.values)
        if many > MAX_VALUES or (many > FEW_VALUES and 2 * many > self.present):
            example = shown(next(iter(self.values)))
            raise InputError(
                f"column {self.name}: holds texts such as {example}, more different ones than a "
                "category has; write numbers alone, or leave the column out (--without): text is "
                "not encoded, make numbers of it before (scikit-learn's HashingVectorizer)"
            )
        return "category"

    def _categories(self) -> tuple[str, ...]:
        if len(self.values) > MAX_VALUES:
            raise InputError(
                f"column {self.name}: has more than {MAX_VALUES} different values, too many for a "
                "category; group them, or leave the column out (--without)"
            )
        if are_truths(list(self.values)):
            return TRUTHS
        return in_order({category(text) for text in self.values})

    def _format(self) -> str:
        if self._date_format is not None:
            return self._date_format
        if not self.present:
            return DATE_FORMATS[0]
        most = max(self._dates.values(), default=0)
        formats = [form for form, count in self._dates.items() if count == most]
        if len(formats) == 1:
            return formats[0]
        if not formats:
            raise InputError(
                f"column {self.name}: holds no dates such as 2024-01-31; name their format with "
                "--date-format"
            )
        raise InputError(
            f"column {self.name}: dates such as {shown(next(iter(self.values)))} may begin with "
            f"the day or the month; write them as YYYY-MM-DD, or say which with "
            f"--date-format {' or '.join(sorted(formats))}"
        )


def file_format(evidence: Iterable[ColumnEvidence], given: CellFormat) -> CellFormat:
    """How a file writes its numbers: with decimal commas if more of them show one than a point."""
    found = list(evidence)
    commas = sum(column.decimal_commas for column in found)
    others = sum(column.points + column.grouping_commas for column in found)
    if commas > others and given.thousands != ",":
        return replace(given, decimal=",")
    return given


def _may_group(texts: Any) -> bool:  # noqa: ANN401  (pyarrow has no types)
    """Whether all texts are like 1.234; most files show at their beginning that they are not."""
    compute = arrow("pyarrow.compute")
    alike = (
        compute.all(compute.match_substring_regex(some, f"^{POINT_OF_BOTH}$")).as_py()
        for some in (texts.slice(0, LISTED), texts)
    )
    return all(one in (True, None) for one in alike)


def points_may_group(evidence: Iterable[ColumnEvidence]) -> bool:
    """Whether a file has numbers with points, all of them like 1.234, and no decimal commas."""
    columns = list(evidence)
    return any(column.points for column in columns) and all(
        column.points_may_group and not column.decimal_commas for column in columns
    )


def as_numbers(texts: Any) -> np.ndarray | None:  # noqa: ANN401  (pyarrow has no types)
    """Texts as numbers, null as NaN; None if one of them is no finite number."""
    pa, compute = arrow(), arrow("pyarrow.compute")
    # A conversion that fails takes longer than one that does not: most show at their beginning.
    begin = texts.slice(0, LISTED).drop_null().to_pylist()
    if not all(map(is_plain_number, begin)):
        return None
    try:
        cast = compute.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        return None
    values: np.ndarray = cast.to_numpy(zero_copy_only=False)
    present = values if not texts.null_count else cast.drop_null().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64) if np.isfinite(present).all() else None


def as_cells(
    texts: Any,  # noqa: ANN401  (pyarrow has no types)
    reading: Reading,
    form: CellFormat,
    complain: Callable[[np.ndarray, Sequence[BadCell]], None],
) -> np.ndarray:
    """A column's texts as numbers, days or positions of values; null is NaN.

    complain   called with the positions of bad cells, and what is wrong with the first of them
    """
    if reading.kind == "number":
        plain = _plain_numbers(texts, form)
        if plain is not None:
            return plain
    encoded = texts.dictionary_encode()
    meanings = [_meaning(text, reading, form) for text in encoded.dictionary.to_pylist()]
    values = np.array([math.nan if isinstance(m, BadCell) else m for m in meanings] + [math.nan])
    # The last meaning is that of a missing cell.
    which = encoded.indices.fill_null(len(meanings)).to_numpy(zero_copy_only=False)
    wrong = np.array([isinstance(meaning, BadCell) for meaning in meanings] + [False])[which]
    if wrong.any():
        places = np.flatnonzero(wrong)
        first = [meanings[which[place]] for place in places[:LISTED].tolist()]
        complain(places, [bad for bad in first if isinstance(bad, BadCell)])
    cells: np.ndarray = values[which]
    return cells


def _meaning(text: str, reading: Reading, form: CellFormat) -> float | BadCell:
    if reading.kind == "number":
        return form.number(text)
    if reading.kind == "date":
        return day(text, reading.date_format)
    return category_position(text, reading.values)


def _plain_numbers(texts: Any, form: CellFormat) -> np.ndarray | None:  # noqa: ANN401
    compute = arrow("pyarrow.compute")
    if form.decimal == ",":
        if compute.any(compute.match_substring(texts, ".")).as_py():
            return None
        texts = compute.replace_substring(texts, ",", ".")
    # With groups of digits, 1.234 is not what it seems: `CellFormat.number` reads these.
    return None if form.thousands else as_numbers(texts)
