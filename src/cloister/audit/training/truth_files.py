"""Files that an audit of encrypted training reads: the truth to score against, and public data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloister.audit.training.prior import Prior, from_public, uninformed
from cloister.audit.training.truth import Truth
from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError

ARRAYS = ("x", "y", "ids", "rows", "scale", "offset")
FRACTION = 1e-3


def read_prior(path: Path | None, shape: tuple[int, int, int], low: float, high: float) -> Prior:
    """The knowledge of an attacker with the public data of a file, or with none.

    Raises   InputError naming the file
    """
    if path is None:
        return uninformed(shape, low=low, high=high)
    x = _encoded(_read(path), path)
    if x.shape[1] != int(np.prod(shape)):
        raise InputError(
            f"{path}: samples of {x.shape[1]} elements, the transcript's have shape {shape}"
        )
    return from_public(x.reshape(len(x), *shape), low=low, high=high)


def read_truths(paths: Sequence[Path], orders: Sequence[Path]) -> Truth | None:
    """The truth of one or several parts; `orders` belongs to plain data, file by file.

    Raises   InputError naming the file
    """
    if orders and len(orders) != len(paths):
        raise InputError(f"{len(paths)} --truth and {len(orders)} --order: give one for each part")
    if not paths:
        return None
    given: Sequence[Path | None] = orders or [None] * len(paths)
    parts = [_read_truth(path, order) for path, order in zip(paths, given, strict=True)]
    if len({part.x.shape[1] for part in parts}) > 1:
        raise InputError(f"{paths[1]}: samples of another size than those of {paths[0]}")
    labels = [part.labels for part in parts if part.labels is not None]
    if len({one.shape[1:] for one in labels}) > 1:
        raise InputError(f"{paths[1]}: its y has another shape than that of {paths[0]}")
    return Truth(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.x for part in parts]),
        np.concatenate(labels) if len(labels) == len(parts) else None,
    )


def _read_truth(path: Path, order: Path | None) -> Truth:
    arrays = _read(path)
    x = _encoded(arrays, path)
    ids, labels = arrays.get("ids", np.arange(len(x))), arrays.get("y")
    for name, array in (("ids", ids), ("y", labels)):
        most = 2 if name == "y" else 1
        if array is not None and (not 1 <= array.ndim <= most or array.dtype.kind not in "iu"):
            raise InputError(f"{path}: {name} must be one row of integers")
        if array is not None and len(array) != len(x):
            raise InputError(f"{path}: {name} has {len(array)} entries for {len(x)} samples")
    if order is not None:
        ids, rows = _read_order(order, len(x))
        x, labels = x[rows], None if labels is None else labels[rows]
    return Truth(ids.astype(np.int64), x, None if labels is None else labels.astype(np.int64))


def _read_order(path: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and which sample of the plain data each one is."""
    arrays = _read(path)
    ids, rows = (arrays.get(name, np.empty(0)) for name in ("ids", "rows"))
    if (
        ids.ndim != 1
        or ids.shape != rows.shape
        or any(a.dtype.kind not in "iu" for a in (ids, rows))
    ):
        raise InputError(f"{path}: is not a file of `cloister data encrypt --order` (ids, rows)")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < samples:
        raise InputError(
            f"{path}: names row {int(rows.max())}, the plain data has {samples} samples: give the "
            "data that was encrypted"
        )
    return ids, rows


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that this command knows, never unpickled."""
    with parsing(f"{path}: not a readable .npz file of numbers"), open_regular(path) as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"x": found}
        return {name: found[name] for name in ARRAYS if name in found.files}


def _encoded(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """The samples as the integers that were encrypted, flattened."""
    x = arrays.get("x")
    if x is None or x.ndim < 2 or not x.size or x.dtype.kind not in "iuf":
        raise InputError(f"{path}: needs an array x of numbers, one sample per first index")
    scale, offset = (
        arrays.get(name, np.float64(value)) for name, value in (("scale", 1.0), ("offset", 0.0))
    )
    if any(array.dtype.kind not in "iuf" for array in (scale, offset)) or not np.all(scale):
        raise InputError(f"{path}: scale and offset must be numbers, scale not zero")
    try:
        flat = (x.astype(np.float64) - offset) / scale
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: scale and offset do not fit x {x.shape}") from error
    if not np.isfinite(flat).all():
        raise InputError(f"{path}: x holds NaN or infinity")
    if "scale" not in arrays and np.abs(flat - np.rint(flat)).max() > FRACTION:
        raise InputError(
            f"{path}: x holds fractions, and the encrypted values are integers: give its scale and "
            "offset, or the file of `cloister data encrypt --order`"
        )
    return np.rint(flat).reshape(len(x), -1)
