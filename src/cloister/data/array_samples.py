"""Arrays as samples: which shapes and types are taken, and what the others need first."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from numpy.typing import ArrayLike

from cloister.data.encoding import Kind
from cloister.data.pictures import listed
from cloister.data.preprocessing import Layout
from cloister.errors import InputError, RangeError, ShapeError

FEW_CHANNELS = 4
"""A last axis of more, behind a first one of at most as many, is a width: channels come first."""
_LOOKED_AT_BYTES = 1 << 24
_REMEDIES = {
    "O": "Python objects; save plain numbers",
    "c": "complex numbers; save the real and the imaginary part as features of their own",
    "U": "texts; encode them as numbers, or give a .csv file with columns of categories",
    "S": "texts; encode them as numbers, or give a .csv file with columns of categories",
    "M": "dates; save a number, such as x.astype('datetime64[D]').astype(int)",
    "m": "durations; save a number, such as x / np.timedelta64(1, 'D')",
    "V": "fields with names; save np.lib.recfunctions.structured_to_unstructured(x)",
}


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Samples (n, h, w, c), or of fewer axes, whose shape is (h, w, c)."""

    values: Shaped[np.ndarray, "n ..."]
    shape: tuple[int, int, int]
    kind: Kind
    remarks: tuple[str, ...]


def read_samples(x: ArrayLike, *, title: str, layout: Layout | str | None = None) -> ArraySamples:
    """An array as samples, which stays where it is.

    title    name of the array in errors
    layout   where the channels of four axes are; None: last, where they cannot be first

    Raises   ShapeError, RangeError, InputError for an unknown layout
    """
    if layout not in (None, *Layout):
        raise InputError(f"layout {layout}: give {' or '.join(Layout)}")
    if np.ma.is_masked(x):
        raise RangeError(f"{title}: has masked entries; fill them, as by x.filled(0), or drop them")
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise ShapeError(f"{title} must hold numbers, and holds {_REMEDIES[x.dtype.kind]}")
    _require_shape(x, title)
    x, remarks = _channels_last(x, title, layout)
    shape = (1, 1, x.shape[1]) if x.ndim == 2 else (*x.shape[1:3], *x.shape[3:], 1)[:3]
    kind: Kind = "pixels" if x.dtype == np.uint8 else "values"
    if x.dtype == np.bool_:
        x = x.view(np.uint8)
    return ArraySamples(x, shape, kind, (*remarks, *_look(x, title, kind)))


def _require_shape(x: np.ndarray, title: str) -> None:
    if x.ndim == 1:
        raise ShapeError(
            f"{title} holds one number for each sample; if it is their only feature, save "
            "x.reshape(-1, 1)"
        )
    if not 2 <= x.ndim <= 4:
        raise ShapeError(
            f"{title} must be (samples, features), (samples, h, w) or (samples, h, w, channels), "
            f"got {x.shape}; reshape it"
        )
    if 0 in x.shape:
        raise ShapeError(f"{title} holds no samples: its shape is {x.shape}; check how it was made")


def _channels_last(
    x: np.ndarray, title: str, layout: Layout | str | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if layout is not None and x.ndim != 4:
        raise ShapeError(
            f"{title} of shape {x.shape} has no axis of channels; leave out --layout {layout}"
        )
    if layout == Layout.NCHW:
        return x.transpose(0, 2, 3, 1), ()
    if layout is None and x.ndim == 4 and x.shape[1] <= FEW_CHANNELS < x.shape[3]:
        raise ShapeError(
            f"{title} of shape {x.shape} seems to have its channels first; give --layout nchw, or "
            "--layout nhwc if they are last"
        )
    many = layout is None and x.ndim == 4 and x.shape[3] > FEW_CHANNELS
    return x, ("the last axis of the samples is read as channels",) if many else ()


def _look(x: np.ndarray, title: str, kind: Kind) -> tuple[str, ...]:
    """Refuse values that are no numbers; a remark on pixels that may be none."""
    if x.dtype.kind == "f":
        bad = [start + i for start, piece in _pieces(x) for i in _not_finite(piece)]
        if bad:
            which = f"sample{'s' * (len(bad) > 1)} {listed(list(map(str, bad)))}"
            raise RangeError(
                f"{title}: {len(bad):,} of {len(x):,} samples hold NaN or infinity ({which}); "
                "fill or drop them"
            )
    if x.dtype == np.uint8:
        most = max(int(piece.max()) for _, piece in _pieces(x))
        if kind == "values" and most > 1:
            raise RangeError(f"{title}: holds truth values that are neither 0 nor 1; save it anew")
        if kind == "pixels" and most <= 1:
            return (
                "the samples are uint8 and at most 1: they are read as pixels of 0 to 255, nearly "
                "black; save them as bool or as floats if they are no pixels",
            )
    return ()


def _pieces(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, _LOOKED_AT_BYTES // (x[0].size * x.itemsize))
    for start in range(0, len(x), rows):
        yield start, x[start : start + rows]


def _not_finite(piece: np.ndarray) -> list[int]:
    finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
    return [int(i) for i in np.flatnonzero(~finite)]
