"""An owner's array of targets, read as classes, labels or numbers."""

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from numpy.typing import ArrayLike

from cloister.data.info import TARGETS, Targets
from cloister.errors import InputError, RangeError, ShapeError
from cloister.ring.bounds import MAX_CLASSES

Labels: TypeAlias = Int64[np.ndarray, "n ..."] | Float64[np.ndarray, "n k"]

FEW_CLASSES = 20
"""Whole numbers of type float are classes if there are at most this many different ones."""


@dataclass(frozen=True)
class ArrayTargets:
    """The targets of samples, as `Source` has them."""

    targets: Targets
    labels: Labels
    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def read_targets(
    y: ArrayLike, samples: int, *, targets: Targets | None = None, title: str = "array y"
) -> ArrayTargets:
    """The targets of an array; without `targets`, of the kind that its type and shape suggest.

    Raises   ShapeError, RangeError, InputError naming the array
    """
    if targets is not None and targets not in TARGETS:
        raise InputError(f"targets {targets!r}: give {', '.join(TARGETS)}")
    y = np.asarray(y)
    if y.dtype.kind == "O" and all(isinstance(one, str) for one in y.flat):
        y = y.astype(str)
    if y.dtype.kind in "US" and y.size == samples and targets in (None, "classes"):
        return _named_classes(y.reshape(-1), title)
    if y.dtype.kind not in "biuf" or y.ndim not in (1, 2) or len(y) != samples or not y.size:
        raise ShapeError(
            f"{title} must hold one class number, or one row of labels or numbers, for each of the "
            f"{samples} samples, got {y.dtype} {y.shape}"
        )
    columns = y.reshape(samples, -1)
    finite = np.isfinite(columns).all(axis=1)
    if not finite.all():
        raise RangeError(
            f"{title}: sample {int(np.argmin(finite))} is NaN or infinite; fill or drop it"
        )
    kind, remarks = (targets, ()) if targets is not None else _suggested(columns, title)
    read = {"classes": _classes, "labels": _labels, "numbers": _numbers}[kind]
    found = read(columns, title)
    return ArrayTargets(kind, found.labels, found.names, remarks)


def _suggested(columns: Shaped[np.ndarray, "n k"], title: str) -> tuple[Targets, tuple[str, ...]]:
    """The kind of targets that nobody has named, and what their owner should know of it."""
    if columns.shape[1] > 1:
        if _is_binary(columns).all():
            if (columns.sum(axis=1) == 1).all():
                return "classes", (
                    f"{title}: every row has exactly one 1, and is read as a class (one-hot); "
                    "--targets labels reads labels, of which a sample may have any",
                )
            return "labels", ()
        if columns.dtype.kind == "f":
            return "numbers", ()
        raise ShapeError(
            f"{title} holds rows of integers, got {columns.dtype} {columns.shape}; say with "
            "--targets (targets=) what they are: numbers, or labels of 0 and 1"
        )
    if columns.dtype.kind != "f":
        return "classes", ()
    found = np.unique(columns)
    if (found == np.rint(found)).all() and len(found) <= FEW_CLASSES and found[0] >= 0:
        return "classes", (
            f"{title}: its whole numbers of type {columns.dtype} are read as classes; --targets "
            "numbers reads them as numbers",
        )
    return "numbers", (f"{title}: is read as numbers to be predicted",)


def _classes(columns: Shaped[np.ndarray, "n k"], title: str) -> ArrayTargets:
    if columns.shape[1] > 1:
        bad = ~(_is_binary(columns).all(axis=1) & (columns.sum(axis=1) == 1))
        if bad.any():
            raise RangeError(
                f"{title}: sample {int(np.argmax(bad))} has not exactly one class; rows of classes "
                "hold one 1 and otherwise 0 (one-hot)"
            )
        return _named_by_number("classes", columns.argmax(axis=1), columns.shape[1])
    values = columns[:, 0]
    whole = values == np.rint(values) if values.dtype.kind == "f" else np.ones(len(values), bool)
    if not whole.all():
        raise RangeError(
            f"{title}: sample {int(np.argmin(whole))} is no whole number; class numbers are 0, 1, "
            "2 ...: --targets numbers reads numbers to be predicted"
        )
    if values.min() < 0:
        raise RangeError(
            f"{title}: class numbers begin at 0, but sample {int(np.argmin(values))} has "
            f"{values.min():.0f}; number the classes from 0"
        )
    highest = int(values.max())
    if highest >= MAX_CLASSES:
        found = [-1, *map(int, np.unique(values))]
        before, after = max(itertools.pairwise(found), key=lambda pair: pair[1] - pair[0])
        raise RangeError(
            f"{title}: class number {highest} is beyond {MAX_CLASSES - 1}, and none of "
            f"{before + 1} to {after - 1} occurs; number the classes from 0, without gaps"
        )
    return _named_by_number("classes", values.astype(np.int64), highest + 1)


def _named_classes(y: Shaped[np.ndarray, " n"], title: str) -> ArrayTargets:
    """Class names instead of numbers, in alphabetical order."""
    texts = np.strings.strip(np.strings.decode(y, "utf-8") if y.dtype.kind == "S" else y)
    if (texts == "").any():
        raise RangeError(
            f"{title}: sample {int(np.argmax(texts == ''))} has no class name; write one, or drop "
            "the sample"
        )
    names, numbers = np.unique(texts, return_inverse=True)
    return ArrayTargets("classes", numbers.astype(np.int64), tuple(map(str, names)))


def _labels(columns: Shaped[np.ndarray, "n k"], title: str) -> ArrayTargets:
    bad = ~_is_binary(columns).all(axis=1)
    if bad.any():
        raise RangeError(
            f"{title}: sample {int(np.argmax(bad))} holds a label that is neither 0 nor 1; write 1 "
            "for each label that a sample has, and 0 for the others"
        )
    return _named_by_number("labels", columns.astype(np.int64), columns.shape[1])


def _numbers(columns: Shaped[np.ndarray, "n k"], title: str) -> ArrayTargets:
    count = columns.shape[1]
    names = ("y",) if count == 1 else tuple(f"y{i}" for i in range(count))
    return ArrayTargets("numbers", columns.astype(np.float64), names)


def _named_by_number(targets: Targets, labels: np.ndarray, count: int) -> ArrayTargets:
    return ArrayTargets(targets, labels.astype(np.int64), tuple(map(str, range(count))))


def _is_binary(columns: Shaped[np.ndarray, "n k"]) -> np.ndarray:
    return np.asarray((columns == 0) | (columns == 1))
