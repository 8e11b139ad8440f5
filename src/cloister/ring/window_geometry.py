"""Shape of a window over an image: of pooling, or of a convolution with one filter per channel."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

import cloister._native as native


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
        """Whether every window reads something of an image of this size."""
        for i in (0, 1):
            starts = np.arange(self.out_size[i]) * self.stride[i] - self.pad[i]
            at = starts[:, None] + np.arange(self.kernel[i]) * self.dilation[i]
            if not ((at >= 0) & (at < size[i])).any(axis=1).all():
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
