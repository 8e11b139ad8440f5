"""An attacker's knowledge before the first release: ranges, and public images of the same kind."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from cloister.errors import InputError, ShapeError

FLOOR = 0.25
"""Variance added to every pixel: rounding, and the pixels that never change in few images."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Knowledge about flattened samples, in the integers of the encoding.

    shape        (h, w, c)
    low, high    the range of every element
    mean         best guess without a transcript
    covariance   of public images; None when the attacker has none
    """

    shape: tuple[int, int, int]
    low: float
    high: float
    mean: Float64[np.ndarray, " dim"]
    covariance: Float64[np.ndarray, "dim dim"] | None = None

    @property
    def dim(self) -> int:
        """Elements of one sample."""
        return int(np.prod(self.shape))


def uninformed(shape: tuple[int, int, int], *, low: float, high: float) -> Prior:
    """Knows the range only and guesses its middle.

    Raises   InputError for an empty range
    """
    if not low < high:
        raise InputError(f"audit: the range of pixels {low:g}..{high:g} is empty")
    return Prior(shape, low, high, np.full(int(np.prod(shape)), (low + high) / 2))


def from_public(images: Float64[np.ndarray, "n h w c"], *, low: float, high: float) -> Prior:
    """Knows other images of the same kind: their mean and covariance.

    Raises   ShapeError, InputError when there are fewer than two or the range is empty
    """
    if images.ndim != 4:
        raise ShapeError(f"audit: public images must be (n, h, w, c), got {images.shape}")
    if len(images) < 2 or not np.isfinite(images).all():
        raise InputError("audit: public images must be at least two, and finite numbers")
    base = uninformed((images.shape[1], images.shape[2], images.shape[3]), low=low, high=high)
    flat = images.reshape(len(images), -1).astype(np.float64)
    covariance = np.cov(flat, rowvar=False).reshape(base.dim, base.dim)
    return Prior(base.shape, low, high, flat.mean(axis=0), covariance + FLOOR * np.eye(base.dim))
