"""Linear maps: the one description of a linear node that every other module uses.

Convolution, dense layer, matrix product and transposed convolution are one map with one
geometry, written on channels-last tensors (N, H, W, C):

    y[p, o] = sum over (k, c) of W[o, k, c] * xup[p * stride + k * dilation - pad, c]

where `xup` is `x` with `upsample - 1` zeros between neighbours (1: plain convolution; more: a
transposed convolution with its kernel flipped). A dense layer is a 1x1 kernel on a 1x1 image, a
matrix product on (N, T, K) is a 1x1 kernel on a 1xT image, a 1-D convolution has height 1.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16

from cloister.errors import ShapeError

MAX_SPAN = 1 << 31
"""Bound of the elements that the windows of a map cover, padding and gaps included."""


@dataclass(frozen=True)
class Geometry:
    """Shape of a linear map; every pair is (height, width).

    `pad` is the padding before the first row and column and may be negative (a crop); the padding
    behind the last ones follows from `out_size`.
    """

    in_size: tuple[int, int]
    in_channels: int
    out_size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    upsample: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (
            *self.in_size, self.in_channels, *self.out_size, self.out_channels,
            *self.kernel, *self.stride, *self.dilation, *self.upsample, self.groups,
        )  # fmt: skip
        if min(sizes) < 1:
            raise ShapeError(f"linear map: every size must be at least 1, got {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ShapeError(
                f"linear map: {self.in_channels} input and {self.out_channels} output channels "
                f"do not divide into {self.groups} groups"
            )
        # The native kernels count in 64 bits: these bounds keep every product of theirs below 2^63.
        axes = zip(self.out_size, self.stride, self.kernel, self.dilation, strict=True)
        rows, columns = ((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in axes)
        reach = max(*map(abs, self.pad), *self.upsample)
        if rows * columns * self.in_channels >= MAX_SPAN or reach >= MAX_SPAN:
            raise ShapeError(
                f"linear map: its windows span {rows} x {columns} x {self.in_channels} elements, "
                "at most 2^31 - 1 are possible; check stride, dilation, padding and output size"
            )

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one input."""
        return (*self.in_size, self.in_channels)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one output."""
        return (*self.out_size, self.out_channels)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(out_channels, kernel height, kernel width, in_channels / groups)."""
        return (self.out_channels, *self.kernel, self.in_channels // self.groups)

    @property
    def in_elements(self) -> int:
        """Elements of one input."""
        return self.in_size[0] * self.in_size[1] * self.in_channels

    @property
    def out_elements(self) -> int:
        """Elements of one output."""
        return self.out_size[0] * self.out_size[1] * self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-adds for one input, counting padding (and inserted zeros) as work."""
        return self.out_elements * self.kernel[0] * self.kernel[1] * self.weight_shape[3]

    @property
    def is_depthwise(self) -> bool:
        """One input channel per group."""
        return self.groups > 1 and self.groups == self.in_channels

    def to_tuple(self) -> tuple[int, ...]:
        """The 17 integers the native kernels and the wire format take, in field order."""
        return (
            *self.in_size, self.in_channels, *self.out_size, self.out_channels,
            *self.kernel, *self.stride, *self.dilation, *self.upsample, *self.pad, self.groups,
        )  # fmt: skip

    @staticmethod
    def from_tuple(values: tuple[int, ...]) -> "Geometry":
        """Inverse of `to_tuple`.

        Raises ShapeError when there are not 17 integers or they describe no map.
        """
        if len(values) != 17:
            raise ShapeError(f"linear map: 17 integers describe a geometry, got {len(values)}")
        h, w, c, oh, ow, oc, kh, kw, sh, sw, dh, dw, uh, uw, ph, pw, groups = values
        return Geometry(
            (h, w), c, (oh, ow), oc, (kh, kw), (sh, sw), (dh, dw), (uh, uw), (ph, pw), groups
        )


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear map with integer weights `weights[o, kh, kw, c]`."""

    geometry: Geometry
    weights: Int16[np.ndarray, "o kh kw c"]

    def __post_init__(self) -> None:
        if self.weights.shape != self.geometry.weight_shape or self.weights.dtype != np.int16:
            raise ShapeError(
                f"linear map: weights must be int16 {self.geometry.weight_shape}, "
                f"got {self.weights.dtype} {self.weights.shape}"
            )
