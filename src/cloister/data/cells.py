"""What a cell of a table means: a number, a day, a value of a category, or that it is missing.

One definition serves the owners of data sets and the inputs of models.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from cloister.data.columns import EPOCH
from cloister.errors import InputError, printable

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "?", "."})
"""Texts that stand for a missing cell, in any case."""
TRUE, FALSE = frozenset({"true", "t", "yes", "y"}), frozenset({"false", "f", "no", "n"})
TRUTHS = ("false", "true")
"""The values of a column that holds truth values, in whatever spelling."""
DATE_FORMATS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d",
    "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y",
)  # fmt: skip
SHOWN_CHARS = 24
MAX_SHOWN = 8
_SPACES = " \u00a0\u2009\u202f"
_MINUS = str.maketrans({"\u2212": "-"})
_PLAIN = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")
_DATE = re.compile(
    r"([0-9]{1,4}([-/.])[0-9]{1,2}\2[0-9]{1,4})"
    r"(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_DATE_LIKE = re.compile(
    r"[0-9]{1,4}[-/. ]+(?:[0-9]{1,2}|[^\W\d_]{3,9}\.?)[-/., ]+[0-9]{1,4}(?:[ T].*)?"
    r"|[^\W\d_]{3,9}\.? [0-9]{1,2},? [0-9]{4}(?: .*)?"
)
_QUANTITY = re.compile(r"[+-]?[0-9][0-9.,]*(?:\s*%|\s+[^\W\d_]\S*|[^\W\d_]{2,}\S*|\s*[°µ]\S*)")
_BOUND = re.compile(r"[<>~\u2264\u2265]=?\s*[+-]?[0-9.,]+")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_GROUPED = {
    mark: re.compile(rf"[+-]?[0-9]{{1,3}}(?:[{mark}][0-9]{{3}})+(?:[{point}][0-9]+)?")
    for mark, point in ((",", "."), (".", ","), ("'", ".,"), (_SPACES, ".,"))
}
_DECIMAL_COMMA = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]{3})*)?,[0-9]+(?:[eE][+-]?[0-9]+)?")
_COMMA_OF_BOTH = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")
"""Either 1.234 or 1234."""
POINT_OF_BOTH = r"[+-]?[1-9][0-9]{0,2}\.[0-9]{3}"
"""The pattern of a number whose point may be a decimal one, or group thousands."""
POINTS_MAY_GROUP = (
    "every number with a point is like 1.234, and is read with a decimal point; say --decimal . if "
    "it is one, or --thousands . if points group thousands"
)
"""Said of a file whose cells are separated by semicolons, as where points group thousands."""


class BadCell(NamedTuple):
    """Why a cell cannot be used, and what to do."""

    why: str
    remedy: str


class CommaUse(NamedTuple):
    """What a text with a comma shows of its file's numbers."""

    decimal: bool
    grouping: bool


def comma_use(text: str) -> CommaUse:
    """Whether the commas of a text may be decimal ones, and whether they may group thousands."""
    text = text.translate(_MINUS)
    return CommaUse(
        _DECIMAL_COMMA.fullmatch(text) is not None, _GROUPED[","].fullmatch(text) is not None
    )


@dataclass(frozen=True)
class CellFormat:
    """How a file writes its cells.

    decimal       point or comma of a number
    thousands     what groups the digits of a number; "": nothing does
    missing       texts that stand for a missing cell, besides `MISSING`
    """

    decimal: str = "."
    thousands: str = ""
    missing: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        if self.decimal not in (".", ","):
            raise InputError(f"--decimal {self.decimal}: give . or ,")
        if self.thousands not in ("", ".", ",", "'", " ") or self.thousands == self.decimal:
            raise InputError(
                f"--thousands {self.thousands}: give . or , or ' or a space, and not the decimal "
                f"mark, which is {self.decimal}"
            )

    @property
    def missing_texts(self) -> frozenset[str]:
        """All texts that stand for a missing cell, in lower case."""
        return MISSING | frozenset(text.strip().lower() for text in self.missing)

    def number(self, text: str) -> float | BadCell:
        """The number that a cell holds."""
        plain = text.translate(_MINUS)
        if self.thousands:
            marks = _SPACES if self.thousands == " " else self.thousands
            if _GROUPED[marks].fullmatch(plain):
                plain = plain.translate(dict.fromkeys(map(ord, marks)))
        if self.decimal == ",":
            plain = "" if "." in plain else plain.replace(",", ".")
        if not _PLAIN.fullmatch(plain):
            return self._no_number(text)
        value = float(plain)
        return value if math.isfinite(value) else _not_finite(text)

    def _no_number(self, text: str) -> BadCell:
        plain, cell = text.translate(_MINUS), shown(text)
        if _INFINITE.fullmatch(plain):
            return _not_finite(text)
        if not self.thousands and _COMMA_OF_BOTH.fullmatch(plain):
            return BadCell(
                f"{cell} may be {plain.replace(',', '.')} or {plain.replace(',', '')}",
                "say which with --decimal , or --thousands ,",
            )
        if self.decimal == "," and _PLAIN.fullmatch(plain):
            return BadCell(
                f"{cell} has a point in a file with decimal commas",
                "correct it, or say --thousands . or --decimal .",
            )
        if self.decimal == "." and _DECIMAL_COMMA.fullmatch(plain):
            return BadCell(
                f"{cell} has a comma in a file with decimal points",
                "correct it, or say --decimal ,",
            )
        for marks, pattern in _GROUPED.items():
            if pattern.fullmatch(plain):
                option = "space" if marks == _SPACES else marks
                return BadCell(f"{cell} groups its digits", f"say --thousands {option}")
        if _QUANTITY.fullmatch(plain):
            return BadCell(
                f"{cell} has a unit", "write numbers alone, or name categories with --categories"
            )
        if _BOUND.fullmatch(plain):
            return BadCell(
                f"{cell} is a bound",
                "write a number, or name what stands for a missing one with --missing",
            )
        return BadCell(
            f"{cell} is not a number such as 1234{self.decimal}5",
            "write one, or name what stands for a missing one with --missing, or columns of "
            "categories with --categories",
        )


def _not_finite(text: str) -> BadCell:
    return BadCell(f"{shown(text)} is no finite number", "correct it, or leave its row out")


def is_plain_number(text: str) -> bool:
    """Whether a text is a number with a decimal point, if any, and nothing else."""
    return _PLAIN.fullmatch(text) is not None


def is_number_like(text: str) -> bool:
    """Whether a text is a number in some way of writing it, or one with a unit."""
    plain = text.translate(_MINUS)
    return any(
        pattern.fullmatch(plain)
        for pattern in (_PLAIN, _DECIMAL_COMMA, _QUANTITY, _INFINITE, *_GROUPED.values())
    )


def date_formats(text: str) -> tuple[str, ...]:
    """The formats of `DATE_FORMATS` that read a text as a date."""
    found = _DATE.fullmatch(text)
    if found is None:
        return ()
    return tuple(form for form in DATE_FORMATS if found[2] in form and _parsed(found[1], form))


def is_date_like(text: str) -> bool:
    """Whether a text may be a date in a format that is not known."""
    return _DATE_LIKE.fullmatch(text) is not None


def has_time(text: str) -> bool:
    """Whether a date has a time of day, which is left out."""
    found = _DATE.fullmatch(text)
    return found is not None and found[1] != text


def day(text: str, form: str) -> float | BadCell:
    """The days from 1970-01-01 to a date in a format of `strptime`."""
    found = _DATE.fullmatch(text)
    parsed = _parsed(text, form) or (_parsed(found[1], form) if found else None)
    if parsed is None:
        return BadCell(
            f"{shown(text)} is no date in the format {form}",
            "write all dates in one format, or name it with --date-format",
        )
    return float(parsed.toordinal() - EPOCH)


def _parsed(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form)
    except ValueError:
        return None


def truth(text: str) -> str | None:
    """A truth value as one of `TRUTHS`, or None."""
    lowered = text.lower()
    if lowered in TRUE or lowered in ("1", "1.0"):
        return "true"
    return "false" if lowered in FALSE or lowered in ("0", "0.0") else None


def are_truths(texts: Sequence[str]) -> bool:
    """Whether a column's texts are truth values, and not only the numbers 0 and 1."""
    lowered = {text.lower() for text in texts}
    if any(truth(text) is None for text in lowered):
        return False
    words = lowered & (TRUE | FALSE)
    # One letter alone may be any code: f stands for female more often than for false.
    both = bool(lowered & TRUE) and bool(lowered & FALSE)
    return bool(words) and (both or any(len(word) > 1 for word in words))


def category(text: str) -> str:
    """A text as a category's value: 2.0 is 2, and a letter with its accent is one character.

    Some programs write whole numbers so, and some systems letters.
    """
    found = _WHOLE.fullmatch(text)
    return found[1] if found else unicodedata.normalize("NFC", text)


def category_position(text: str, values: Sequence[str]) -> float | BadCell:
    """The position of a cell's value among a category's values."""
    value = truth(text) if tuple(values) == TRUTHS else category(text)
    if value in values:
        return float(values.index(value))
    known = ", ".join(values[:MAX_SHOWN]) + (", ..." if len(values) > MAX_SHOWN else "")
    return BadCell(
        f"{shown(text)} is none of the column's values ({printable(known)})",
        "correct it, or make the data set with all values (--ranges)",
    )


def in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Values by number if all are numbers, else by text."""
    try:
        return tuple(sorted(values, key=lambda value: (float(value), value)))
    except ValueError:
        return tuple(sorted(values))


def shown(text: str) -> str:
    """A cell's text for a message."""
    text = printable(text)
    return repr(text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}...")
