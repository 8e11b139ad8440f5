"""Linear maps: the one description of a linear node that every other module uses.

Convolution, dense layer, matrix product and transposed convolution are one map with one
geometry, written on channels-last tensors (N, H, W, C):

    y[p, o] = sum over (k, c) of W[o, k, c] * xup[p * stride + k * dilation - pad, c]

where `xup` is `x` with `upsample - 1` zeros between neighbours (1: plain convolution; more: a
transposed convolution with its kernel flipped). A dense layer is a 1x1 kernel on a 1x1 image, a
matrix product on (N, T, K) is a 1x1 kernel on a 1xT image, a 1-D convolution has height 1.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int16

import cloister.base._native as native
from cloister.errors import ShapeError

MAX_SPAN = 1 << 31
"""Bound of the elements that the windows of a map cover, padding and gaps included."""


_FIELDS = {
    "in_size": 2, "in_channels": 1, "out_size": 2, "out_channels": 1, "kernel": 2, "stride": 2,
    "dilation": 2, "upsample": 2, "pad": 2, "groups": 1,
}  # fmt: skip
"""How many integers each field of a geometry has."""
_FORM = struct.Struct(f"<{sum(_FIELDS.values())}q")
GEOMETRY_BYTES = _FORM.size


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

    @property
    def is_dense(self) -> bool:
        """Every output reads every element of the input, in order."""
        return (
            self.out_size == (1, 1)
            and self.kernel == self.in_size
            and self.pad == (0, 0)
            and self.dilation == self.upsample == (1, 1)
            and self.groups == 1
        )

    def native(self) -> native.Geometry:
        """The same for the native kernels."""
        return native.Geometry(**vars(self))

    def to_fields(self) -> dict[str, int | list[int]]:
        """Its form in JSON: its fields by name."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "Geometry":
        """Inverse of `to_fields`.

        Raises ShapeError naming the field when one is missing, unknown or no integer below 2^31,
        or when they describe no map.
        """
        if fields.keys() != _FIELDS.keys():
            raise ShapeError(f"linear map: a geometry has the fields {', '.join(_FIELDS)}")
        described: dict[str, Any] = {}
        for name, count in _FIELDS.items():
            value = fields[name]
            numbers = value if count > 1 else [value]
            if (
                not isinstance(numbers, list)
                or len(numbers) != count
                or set(map(type, numbers)) != {int}
                or max(map(abs, numbers)) >= MAX_SPAN
            ):
                raise ShapeError(f"linear map: {name} takes {count} integers below 2^31")
            described[name] = value if count == 1 else tuple(numbers)
        return Geometry(**described)

    def to_bytes(self) -> bytes:
        """Its form on the wire and in files: the integers of its fields in order."""
        # An authority packs the geometry of every request: `astuple` would copy each part of it.
        return _FORM.pack(
            *self.in_size, self.in_channels, *self.out_size, self.out_channels, *self.kernel,
            *self.stride, *self.dilation, *self.upsample, *self.pad, self.groups,
        )  # fmt: skip

    @staticmethod
    def from_bytes(data: bytes | memoryview) -> "Geometry":
        """Inverse of `to_bytes`.

        Raises ShapeError when the bytes are too few or too many, or describe no map.
        """
        if len(data) != GEOMETRY_BYTES:
            raise ShapeError(f"linear map: a geometry has {GEOMETRY_BYTES} B, got {len(data)} B")
        numbers = iter(_FORM.unpack(data))
        fields: dict[str, Any] = {
            name: next(numbers) if count == 1 else (next(numbers), next(numbers))
            for name, count in _FIELDS.items()
        }
        return Geometry(**fields)


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
