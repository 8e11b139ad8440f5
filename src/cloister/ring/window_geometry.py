"""Shape of a window over an image: of pooling, or of a convolution with one filter per channel."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

import cloister.base._native as native

MAX_STARTS = 2**16


@dataclass(frozen=True)
class WindowGeometry:
    """A two-dimensional window; every pair is (height, width), `pad` counts before the first."""

    kind: Literal["max", "average", "depthwise"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    out_size: tuple[int, int]
    count_include_pad: bool = False

    def reads(self, size: tuple[int, int]) -> bool:
        """Whether every window reads something of an image of this size.

        False too where more than MAX_STARTS windows begin before an image that is smaller than
        their dilation: sizes may be a hostile file's.
        """
        for i in (0, 1):
            count, step, stride = self.out_size[i], self.dilation[i], self.stride[i]
            before = -(-self.pad[i] // step)
            if before >= self.kernel[i] or (count - 1) * stride - self.pad[i] >= size[i]:
                return False
            if step > size[i]:
                early = min(count, max(0, -(-self.pad[i] // stride)))
                starts = np.arange(min(early, MAX_STARTS)) * stride - self.pad[i]
                if early > MAX_STARTS or (starts % step >= size[i]).any():
                    return False
        return True

    def is_cut_off(self, size: tuple[int, int], end: tuple[int, int]) -> bool:
        """Whether the last window reaches beyond an image and the padding behind it.

        ONNX Runtime counts fewer positions in such a window than it has.
        """
        for i in (0, 1):
            start = (self.out_size[i] - 1) * self.stride[i] - self.pad[i]
            if start + (self.kernel[i] - 1) * self.dilation[i] >= size[i] + end[i]:
                return True
        return False

    def to_native(
        self,
        weights: Float32[np.ndarray, "kh kw c"] | None = None,
        bias: Float32[np.ndarray, " c"] | None = None,
        *,
        lo: float = -np.inf,
        hi: float = np.inf,
    ) -> native.Window:
        """The window as a fused step takes it; a depthwise one with its filters and their clamp."""
        return native.Window(
            kind=self.kind,
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            pad=self.pad,
            out_size=self.out_size,
            count_include_pad=self.count_include_pad,
            weights=weights,
            bias=bias,
            lo=lo,
            hi=hi,
        )
