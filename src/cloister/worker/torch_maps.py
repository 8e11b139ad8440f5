"""Linear maps modulo 2^32 in PyTorch, exactly, for GPUs.

float64 is the only floating-point type on this path: below 2^53 every product and every partial
sum, in whatever order, is an integer that float64 holds exactly. float32, TF32, FFT and Winograd
are not exact, so cuDNN, which may choose the latter, stays off here.
"""

import importlib
from typing import Any

import numpy as np
from jaxtyping import UInt32

from cloister.errors import InputError, RangeError
from cloister.field.linear import Geometry, LinearMap

EXACT = 2**53
DIGIT_BITS = 16


def _torch() -> Any:  # noqa: ANN401  (a module that may be absent has no static type)
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            "a worker on a GPU needs PyTorch: pip install torch, or use --device cpu"
        ) from error


def check_device(device: str) -> None:
    """Make sure PyTorch can use a device.

    Raises   InputError
    """
    torch = _torch()
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"worker device {device!r}: {reason}; use --device cpu") from error


class TorchMap:
    """A linear map on a PyTorch device.

    Shapes   weights (o, kh, kw, c); apply: (n, h, w, c) -> (n, oh, ow, o)
    Domain   weights int16, inputs uint32 or int16, result modulo 2^32
    Error    none: |x| max * max_o sum |W[o]| <= 2^53 for each digit, checked here
    Raises   RangeError when a row of weights is too long for that (from 2^22 terms on),
             InputError without PyTorch
    """

    def __init__(self, linear: LinearMap, *, device: str) -> None:
        self._torch = _torch()
        self._device = device
        self._geometry = linear.geometry
        self.in_shape = linear.geometry.in_shape
        absolute = np.abs(linear.weights.astype(np.int64))
        self._row_norm = int(absolute.sum(axis=(1, 2, 3)).max())
        if self._row_norm << DIGIT_BITS > EXACT:
            raise RangeError(f"linear map: rows of weights with L1 norm {self._row_norm} on a GPU")
        # OIHW, as PyTorch's convolution takes it.
        weights = np.ascontiguousarray(linear.weights.transpose(0, 3, 1, 2), dtype=np.float64)
        self._weights = self._torch.from_numpy(weights).to(device)

    def apply(self, x: np.ndarray) -> UInt32[np.ndarray, "n oh ow oc"]:
        """The map's value at uint32 or int16 inputs (n, h, w, c)."""
        torch = self._torch
        if len(x) == 0:
            return np.zeros((0, *self._geometry.out_shape), np.uint32)
        signed = np.ascontiguousarray(x).view(np.int32) if x.dtype == np.uint32 else x
        values = torch.from_numpy(np.array(signed)).to(self._device).to(torch.int64)
        bits = 31 if x.dtype == np.uint32 else 15
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
            if self._row_norm << bits <= EXACT:
                total = self._convolve(values)
            else:
                # x = high * 2^16 + low with 0 <= low < 2^16 and |high| <= 2^15. Before the shift
                # |high's sum| < 2^53 is cut to 16 bits, so the sum of both fits in int64.
                low = values & (2**DIGIT_BITS - 1)
                high = values >> DIGIT_BITS
                shifted = (self._convolve(high) & (2**DIGIT_BITS - 1)) << DIGIT_BITS
                total = self._convolve(low) + shifted
            words: np.ndarray = (total & (2**32 - 1)).cpu().numpy()
        return words.astype(np.uint32)

    def _convolve(self, values: Any) -> Any:  # noqa: ANN401
        """One exact product: int64 (n, h, w, c) -> int64 (n, oh, ow, o)."""
        torch, geometry = self._torch, self._geometry
        x = values.to(torch.float64)
        weights = self._weights
        if _is_pointwise(geometry):
            return torch.matmul(x, weights[:, :, 0, 0].T).to(torch.int64)
        canvas = _canvas(torch, x, geometry).permute(0, 3, 1, 2).contiguous()
        y = torch.nn.functional.conv2d(
            canvas, weights, stride=geometry.stride, dilation=geometry.dilation,
            groups=geometry.groups,
        )  # fmt: skip
        return y.permute(0, 2, 3, 1).to(torch.int64)


def _is_pointwise(geometry: Geometry) -> bool:
    return (
        geometry.kernel == geometry.stride == geometry.upsample == (1, 1)
        and geometry.pad == (0, 0)
        and geometry.groups == 1
        and geometry.in_size == geometry.out_size
    )


def _canvas(torch: Any, x: Any, geometry: Geometry) -> Any:  # noqa: ANN401
    """The input with inserted zeros and padding, exactly as large as the outputs reach.

    Canvas position p holds position p - pad of the upsampled input, which is x at (p - pad) / u
    where that is whole and inside, else zero; any padding, cropping and upsampling is this.
    """
    sizes, targets, sources = [], [], []
    for axis in range(2):
        reach = (geometry.kernel[axis] - 1) * geometry.dilation[axis]
        size = (geometry.out_size[axis] - 1) * geometry.stride[axis] + reach + 1
        up, pad = geometry.upsample[axis], geometry.pad[axis]
        first = max(0, -(pad // up))
        last = min(geometry.in_size[axis] - 1, (size - 1 - pad) // up)
        count = max(0, last - first + 1)
        begin = first * up + pad
        sizes.append(size)
        sources.append(slice(first, first + count))
        targets.append(slice(begin, begin + (count - 1) * up + 1, up) if count else slice(0, 0))
    canvas = torch.zeros((x.shape[0], *sizes, x.shape[3]), dtype=x.dtype, device=x.device)
    canvas[:, targets[0], targets[1]] = x[:, sources[0], sources[1]]
    return canvas
