"""How two outputs of a model differ."""

import numpy as np

LEAST = 1e-7
"""Differences of float values that are none."""


def difference(found: object, wanted: object, tolerance: float, *, values: bool = True) -> str:
    """How two outputs differ, in words; empty where they do not.

    tolerance   of float tensors: |found - wanted| / |wanted|, in L2 norms
    """
    if isinstance(wanted, np.ndarray | np.generic | float | int | bool | str | bytes):
        return _array_difference(found, np.asarray(wanted), tolerance, values)
    if type(found) is not type(wanted):
        return f"is {type(found).__name__}, not {type(wanted).__name__}"
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"has {len(found)} parts, not {len(wanted)}"
        pairs = zip(found, wanted, strict=True)
        return next(
            filter(None, (difference(a, b, tolerance, values=values) for a, b in pairs)), ""
        )
    if isinstance(wanted, dict):
        if list(found) != list(wanted):
            return "has other keys"
        pairs = [(found[key], wanted[key]) for key in wanted]
        return next(
            filter(None, (difference(a, b, tolerance, values=values) for a, b in pairs)), ""
        )
    return "" if found is wanted is None else f"cannot be compared: {type(wanted).__name__}"


def _array_difference(found: object, wanted: np.ndarray, tolerance: float, values: bool) -> str:
    if isinstance(found, list | dict | None):
        return f"is {type(found).__name__}, not an array"
    found = np.asarray(found)
    if found.shape != wanted.shape:
        return f"shape {found.shape}, not {wanted.shape}"
    if found.dtype != wanted.dtype and not {found.dtype.kind, wanted.dtype.kind} <= set("OUST"):
        return f"dtype {found.dtype}, not {wanted.dtype}"
    if not values:
        return ""
    if wanted.dtype.kind not in "fc":
        return "" if np.array_equal(found, wanted) else "values differ"
    a, b = found.astype(np.complex128), wanted.astype(np.complex128)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "non-finite values differ"
    size = np.abs(b[finite]).max(initial=1e-30)  # squares of the largest numbers overflow
    a, b = a[finite] / size, b[finite] / size
    error, norm = np.linalg.norm(a - b), np.linalg.norm(b)
    if error > tolerance * norm and error * size > LEAST:
        return f"relative error {error / max(norm, 1e-30):.2g}"
    return ""
