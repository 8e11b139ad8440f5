"""How an owner's table is read, and what stands for its missing cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from cloister.data.columns import ColumnKind, days
from cloister.errors import InputError

STATISTICS = ("median", "mean")


@dataclass(frozen=True)
class TableOptions:
    """How a table is read; None: as the file suggests.

    label        columns of the classes or targets; none: the samples are unlabelled
    without      columns that are left out
    categories   columns of numbers that stand for categories
    separator    of cells: one character, or tab, comma, semicolon, space, pipe
    encoding     of the file's text
    decimal      mark of numbers, point or comma
    thousands    mark that groups the digits of numbers
    date_format  of dates, as `strptime` has it
    missing      more texts that stand for a missing cell
    fill         what stands for missing cells: see `FillRule`
    drop         leave out rows with missing cells
    """

    label: tuple[str, ...] = ("label",)
    without: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    separator: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    thousands: str = ""
    date_format: str | None = None
    missing: tuple[str, ...] = ()
    fill: str | None = None
    drop: bool = False


@dataclass(frozen=True)
class FillRule:
    """What stands for missing cells: of every column, and of single ones.

    median and mean are those of the column's numbers. Of a category, both are its most frequent
    value, and of a date, the day before or at the median or mean.
    """

    every: str | None = None
    single: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str | None) -> "FillRule":
        """The rule median, mean, VALUE or COLUMN=VALUE, or several with commas between them.

        Raises   InputError
        """
        every, single = None, {}
        for item in filter(None, (text or "").split(",")):
            name, stated, value = (part.strip() for part in item.partition("="))
            if stated and name and value and name not in single:
                single[name] = value
            elif not stated and every is None:
                every = name
            else:
                raise InputError(
                    f"--fill {text}: give median, mean, VALUE or COLUMN=VALUE, with commas between"
                )
        return FillRule(every, single)

    def require_known(self, names: Iterable[str]) -> None:
        """Refuse a rule for a column that there is not.

        Raises   InputError
        """
        unknown = sorted(set(self.single) - set(names))
        if unknown:
            raise InputError(f"--fill {unknown[0]}=...: there is no such column")

    def applies_to(self, name: str) -> bool:
        """Whether something stands for the missing cells of a column."""
        return self.every is not None or name in self.single

    def value(
        self,
        name: str,
        kind: ColumnKind,
        cells: Float64[np.ndarray, " n"],
        values: Sequence[str] = (),
    ) -> float | str | None:
        """What stands for the missing cells of a column.

        cells     the column: numbers, days, or positions in `values`; NaN is a missing cell

        Raises   InputError where the rule gives no value of the column's kind
        """
        rule = self.single.get(name, self.every)
        if rule is None:
            return None
        present = cells[~np.isnan(cells)]
        try:
            if rule not in STATISTICS:
                return _stated(rule, kind)
            if not len(present):
                raise ValueError
        except ValueError:
            if name not in self.single and len(present) == len(cells):
                return None
            raise InputError(
                f"--fill {rule}: column {name} is a {kind} and needs another value; say "
                f"{name}=VALUE"
            ) from None
        if kind == "category":
            return values[int(np.bincount(present.astype(np.int64)).argmax())]
        middle = float(np.median(present) if rule == "median" else present.mean())
        return middle if kind == "number" else float(np.floor(middle))


def _stated(text: str, kind: ColumnKind) -> float | str:
    if kind == "category":
        return text
    return days(text) if kind == "date" else float(text)
