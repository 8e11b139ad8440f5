"""A linear node as integers, and the proof that none of its results wraps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32

from cloister.errors import RangeError
from cloister.ring.linear import Geometry, LinearMap

WRAP_LIMIT = 2**31
MAX_WEIGHT_BITS = 16
MAX_ACTIVATION_BITS = 14
PART_ELEMENTS = 2**22

Ranges = tuple[float, ...]
"""Largest magnitude of a node's whole input, or of each of its channels."""


@dataclass(frozen=True)
class Precision:
    """Signed bits of weights and activations asked for; the static bound may lower them."""

    weight_bits: int = 12
    activation_bits: int = 12

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= MAX_WEIGHT_BITS:
            raise RangeError(f"weight bits must be 2 to {MAX_WEIGHT_BITS}, got {self.weight_bits}")
        if not 2 <= self.activation_bits <= MAX_ACTIVATION_BITS:
            raise RangeError(
                f"activation bits must be 2 to {MAX_ACTIVATION_BITS}, got {self.activation_bits}"
            )


@dataclass(frozen=True, eq=False)
class QuantisedLinear:
    """One linear node as integers: `y ~ scale * (Wq xq) + bias`, `xq = round(x f / x_scale)`.

    `x_factors` holds f, (1, 1, c) or (h, w, c); None: 1 everywhere.
    """

    node: str
    linear: LinearMap
    scale: Float32[np.ndarray, " oc"]
    bias: Float32[np.ndarray, " oc"]
    x_scale: float
    x_qmax: int
    bound: int
    weight_bits: float
    x_factors: Float32[np.ndarray, "fh fw c"] | None = None

    @cached_property
    def largest_result(self) -> int:
        """See `static_bound`; computed once, so that many plans of one model share it."""
        return _bound(self.linear.weights, self.x_qmax)

    @property
    def inv_x_scale(self) -> float:
        """The float32 factor the runtime multiplies activations by."""
        return float(np.float32(1.0) / np.float32(self.x_scale))

    @property
    def headroom_bits(self) -> float:
        """Bits left between the static bound and wrap-around."""
        return float(np.log2(WRAP_LIMIT) - np.log2(max(self.bound, 1)))

    @property
    def activation_bits(self) -> int:
        """Signed bits of the activation."""
        return self.x_qmax.bit_length() + 1


def factor_shape(shape: Geometry) -> tuple[int, int, int]:
    """(1, 1, c); (h, w, c) where one window covers the image: each element has its own weights."""
    covers = shape.kernel == shape.in_size and shape.out_size == (1, 1) and shape.pad == (0, 0)
    neighbours = shape.dilation == (1, 1) == shape.upsample
    return shape.in_shape if covers and neighbours else (1, 1, shape.in_channels)


def multiplied(
    x: Float32[np.ndarray, "n h w c"], factors: Float32[np.ndarray, "fh fw c"] | None
) -> Float32[np.ndarray, "n h w c"]:
    """The input as it becomes integers; beyond float32 it is infinite, and is clipped."""
    if factors is None:
        return x
    with np.errstate(over="ignore"):
        product: np.ndarray = np.multiply(x, factors, order="C")
    return product


def static_bound(node: QuantisedLinear) -> int:
    """Largest magnitude any result can have, computed from the integers themselves."""
    return node.largest_result


def bound_and_bits(weights: np.ndarray, x_qmax: int, precision: Precision) -> tuple[int, float]:
    """The static bound, and the signed bits of the output channel that uses fewest of them."""
    levels = np.concatenate(
        [np.abs(weights[part].astype(np.int32)).reshape(len(weights[part]), -1).max(axis=1)
         for part in parts(weights)]
    )  # fmt: skip
    used = levels[levels > 0]
    bits = math.log2(used.min()) + 1 if len(used) else float(precision.weight_bits)
    return _bound(weights, x_qmax), bits


def _bound(weights: np.ndarray, x_qmax: int) -> int:
    return x_qmax * max(
        (int(_l1(weights[part]).max(initial=0)) for part in parts(weights)), default=0
    )


def _l1(integers: np.ndarray) -> np.ndarray:
    """Sum of the magnitudes in each row; exact."""
    rows = integers.astype(np.int32).reshape(len(integers), -1)
    return np.asarray(np.abs(rows).sum(axis=1, dtype=np.int64))


def parts(weights: np.ndarray) -> Iterator[slice]:
    """Output channels, some at a time: in float64, a whole layer would be the memory's peak."""
    step = max(1, PART_ELEMENTS // max(weights[:1].size, 1))
    return (slice(start, start + step) for start in range(0, len(weights), step))
