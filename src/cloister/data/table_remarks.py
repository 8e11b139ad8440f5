"""What the owner of a table may have overlooked: it is said, and nothing is refused."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from cloister.data.columns import Column
from cloister.data.info import Targets

IDENTIFIED_ROWS = 20
"""From so many rows on, whole numbers that never repeat may be identifiers."""
GAP_NUMBERS = frozenset({-1, -9, -99, -999, -9999, 99, 999, 9999})
"""What is often written for a missing number."""
RARE = 50
"""Of so many samples, less than one is of the class."""
_IDENTIFIER = re.compile(r"(.*[\W_])?(id|nr|no|number|key|index|mrn)", re.IGNORECASE)


def class_balance(
    labels: Int64[np.ndarray, "n ..."] | Float64[np.ndarray, "n k"] | None,
    names: Sequence[str],
    targets: Targets,
) -> Sequence[str]:
    """Classes that too few samples are of."""
    if targets != "classes" or labels is None:
        return ()
    folded = {name.casefold() for name in names}
    said = []
    if len(folded) < len(names):
        said.append("some classes differ in upper and lower case only")
    counts = np.bincount(labels, minlength=len(names))
    if len(counts) == 1:
        return (f"every sample is of class {names[0]}",)
    return said + [
        f"class {name} has {count:,} of {len(labels):,} samples"
        for name, count in zip(names, counts.tolist(), strict=True)
        if RARE * count < len(labels)
    ]


def suspicions(column: Column, cells: Float64[np.ndarray, " n"]) -> Iterator[str]:
    """What an owner may have overlooked."""
    present = cells[~np.isnan(cells)]
    if not len(present):
        return
    if (present == present[0]).all():
        yield "all cells are alike, nothing is learned from it"
    elif column.kind == "number":
        values, counts = np.unique(present, return_counts=True)
        yield from _as_codes(column.name, values, counts)
        yield from _as_gaps(values, counts)


def _as_codes(
    name: str, values: Float64[np.ndarray, " k"], counts: Int64[np.ndarray, " k"]
) -> Iterator[str]:
    """Numbers that may be identifiers or dates."""
    if (values != np.floor(values)).any():
        return
    counted = values[-1] - values[0] == len(values) - 1
    named = _IDENTIFIER.fullmatch(name) is not None
    if len(values) >= IDENTIFIED_ROWS and (counts == 1).all() and (counted or named):
        yield (
            "every row has another whole number; if these are identifiers, leave them out with "
            f"--without {name}"
        )
    years, months, of_month = values // 10000, values // 100 % 100, values % 100
    within = (years >= 1900) & (years <= 2100) & (months >= 1) & (months <= 12)
    if (within & (of_month >= 1) & (of_month <= 31)).all():
        yield "its numbers may be dates; if they are, say --date-format %Y%m%d"


def _as_gaps(values: Float64[np.ndarray, " k"], counts: Int64[np.ndarray, " k"]) -> Iterator[str]:
    """A number that may stand for a missing cell: it repeats, far from all others."""
    for at, others in ((0, values[1:]), (-1, values[:-1])):
        if values[at] in GAP_NUMBERS and counts[at] > 1 and len(others) > 1:
            far = abs(values[at] - others[0 if at == 0 else -1])
            if far > others[-1] - others[0]:
                yield (
                    f"{counts[at]:,} cells are {values[at]:g}, far from all others; if these are "
                    f"missing, say --missing {values[at]:g}"
                )
