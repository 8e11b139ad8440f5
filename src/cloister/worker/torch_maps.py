"""Linear maps modulo 2^32 in PyTorch, exactly, for GPUs: in float64, and in 8-bit limbs.

float64 is the only floating-point type on these paths: below 2^53 every product and every partial
sum, in whatever order, is an integer that float64 holds exactly. float32, TF32, FFT and Winograd
are not exact, so cuDNN, which may choose the latter, stays off here.
"""

import importlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import UInt32

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import InputError, RangeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.worker.budget import MapMemory, bounded

EXACT = 2**53
DIGIT_BITS = 16
FLOAT64_BYTES = 8
_CHECK_SEED = 8


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


MAX_CANVAS_BYTES = 1 << 30
"""Of the padded inputs of a request, beyond MAX_CANVAS_RATIO times the request."""
MAX_CANVAS_RATIO = 512


def map_memory(geometry: Geometry, *, batch: int, element_bytes: int) -> MapMemory:
    """The memory that a map takes for requests of this batch, on the host and the device together.

    Sums over the arrays that TorchMap and Int8Map make, each as if none of its predecessors was
    gone. A device's allocator may keep more than was asked for at a time.

    Raises   RangeError when padding, dilation or upsampling blow a request up beyond the limits
    """
    g = geometry
    canvas = g.in_channels * math.prod(_canvas_size(g, axis) for axis in range(2))
    outputs, terms = g.out_size[0] * g.out_size[1], math.prod(g.weight_shape[1:])
    request = batch * g.in_elements * element_bytes
    limit = MAX_CANVAS_BYTES + MAX_CANVAS_RATIO * request
    bounded(2 * FLOAT64_BYTES * batch * canvas, limit=limit, request=request)
    floats = batch * (40 * g.in_elements + 16 * canvas + 60 * g.out_elements) + 8 * outputs * terms
    points = min(batch * outputs, CHUNK_BYTES // _rounded(terms) + outputs) + FEWEST_ROWS
    images = -(-points // outputs)
    limbs = images * (8 * g.in_elements + 20 * canvas) + 4 * batch * g.out_elements
    limbs += points * (3 * _rounded(terms) + 32 * _rounded(g.out_channels))
    weights = _rounded(g.out_channels) * _rounded(terms)
    # Held are 8 bytes a weight; while they are made, the arrays on the way to them.
    return MapMemory(8 * weights, max(floats, limbs) + 24 * weights)


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


def _canvas_size(geometry: Geometry, axis: int) -> int:
    reach = (geometry.kernel[axis] - 1) * geometry.dilation[axis]
    return (geometry.out_size[axis] - 1) * geometry.stride[axis] + reach + 1


def _canvas(torch: Any, x: Any, geometry: Geometry) -> Any:  # noqa: ANN401
    """The input with inserted zeros and padding, exactly as large as the outputs reach.

    Canvas position p holds position p - pad of the upsampled input, which is x at (p - pad) / u
    where that is whole and inside, else zero; any padding, cropping and upsampling is this.
    """
    sizes, targets, sources = [], [], []
    for axis in range(2):
        size = _canvas_size(geometry, axis)
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


# ---- int8 limbs, for the tensor cores of GPUs

LIMB_BITS = 8
EXACT_TERMS = 1 << 16
"""|limb| <= 2^7, so a sum of fewer than 2^17 products of two limbs fits in int32."""
CHUNK_BYTES = 1 << 28
"""Of the patches of one product; more images than that are done one after the other."""
MULTIPLE, FEWEST_ROWS = 8, 32
"""What torch._int_mm asks of shapes on CUDA: multiples of 8, more than 16 rows."""


def limbs(torch: Any, values: Any, count: int) -> list[Any]:  # noqa: ANN401
    """Balanced base-256 limbs of an int32 tensor, lowest first, as int8.

    Domain   four limbs: all int32, and the limbs' sum equals the value modulo 2^32. Fewer: values
             in [-128 (256^k - 1) / 255, 127 (256^k - 1) / 255]; then the sum is the value.
    Error    none. `rest - limb` may wrap, and by 2^32 only; after the shift by 8 that is 2^24,
             which counts 2^24 * 2^8 in the sum, and so on.
    """
    found = []
    rest = values
    for _ in range(count):
        limb = ((rest + 128) & 255) - 128
        found.append(limb.to(torch.int8))
        rest = (rest - limb) >> LIMB_BITS
    return found


def limb_count(lowest: int, highest: int) -> int:
    """How many limbs hold all values of an interval within int32."""
    count = 1
    while count < 4 and not (
        -128 * (256**count - 1) // 255 <= lowest and highest <= 127 * (256**count - 1) // 255
    ):
        count += 1
    return count


class Int8Map:
    """A linear map as products of 8-bit limbs: exact modulo 2^32, on integer tensor cores.

    x = sum_j x_j 256^j and W = sum_i W_i 256^i, so W x = sum_(i, j) 256^(i + j) W_i x_j, and what
    is shifted by 32 bits or more does not count. Every product is exact in int32 for up to
    EXACT_TERMS terms; longer rows are cut. Shifts and sums wrap in int32 as they should.

    Shapes   weights (o, kh, kw, c); apply: (n, h, w, c) -> (n, oh, ow, o)
    Domain   weights int16, inputs uint32 or int16, one group; result modulo 2^32
    Error    none
    Raises   InputError for several groups or without PyTorch

    Tested on CPU tensors. It has not run on a GPU yet: neither `torch._int_mm` there, nor the
    pinned buffers and streams of `Staging`. Therefore `make_map` compares it with TorchMap.
    """

    def __init__(self, linear: LinearMap, *, device: str) -> None:
        if linear.geometry.groups != 1:
            raise InputError("linear map: several groups have no 8-bit product")
        self._torch = torch = _torch()
        self._device = device
        self._geometry = linear.geometry
        self._staging = Staging(torch, device)
        outputs = linear.geometry.out_channels
        flat = linear.weights.reshape(outputs, -1)
        self._terms = flat.shape[1]
        self._rows = _rounded(outputs)
        weights = torch.from_numpy(flat.astype(np.int32)).to(device)
        count = limb_count(int(flat.min(initial=0)), int(flat.max(initial=0)))
        padding = (0, _rounded(self._terms) - self._terms, 0, self._rows - outputs)
        # One below the other, so that one product serves all limbs of the weights.
        self._limbs = torch.cat(
            [torch.nn.functional.pad(limb, padding) for limb in limbs(torch, weights, count)]
        )

    def apply(self, x: np.ndarray) -> UInt32[np.ndarray, "n oh ow oc"]:
        """The map's value at uint32 or int16 inputs (n, h, w, c)."""
        geometry, torch = self._geometry, self._torch
        out = np.empty((len(x), *geometry.out_shape), np.uint32)
        patches = geometry.out_size[0] * geometry.out_size[1] * _rounded(self._terms)
        step = max(1, CHUNK_BYTES // patches)
        count = 4
        if x.dtype == np.int16:
            count = limb_count(int(x.min(initial=0)), int(x.max(initial=0)))
        with torch.no_grad(), self._staging.stream():
            for start in range(0, len(x), step):
                part = np.ascontiguousarray(x[start : start + step])
                values = self._staging.upload(
                    part.view(np.int32) if x.dtype == np.uint32 else part
                ).to(torch.int32)
                total = self._product(_canvas(torch, values, geometry), count)
                self._staging.download(total, out[start : start + step].view(np.int32))
        return out

    def _product(self, canvas: Any, count: int) -> Any:  # noqa: ANN401
        """Images with their padding, int32 -> int32 (n, oh, ow, o)."""
        torch, geometry = self._torch, self._geometry
        outputs = geometry.out_channels
        points = len(canvas) * geometry.out_size[0] * geometry.out_size[1]
        total = torch.zeros((points, outputs), dtype=torch.int32, device=self._device)
        for j, limb in enumerate(limbs(torch, canvas, count)):
            patches = self._patches(limb, points)
            shifts = range(min(len(self._limbs) // self._rows, 4 - j))
            products = self._exact_product(patches, len(shifts) * self._rows)
            for i in shifts:
                one = products[:points, i * self._rows : i * self._rows + outputs]
                total += one << (LIMB_BITS * (i + j))
        return total.reshape(len(canvas), *geometry.out_shape)

    def _exact_product(self, patches: Any, rows: int) -> Any:  # noqa: ANN401
        torch, weights = self._torch, self._limbs[:rows]
        total = None
        for start in range(0, patches.shape[1], EXACT_TERMS):
            piece = slice(start, start + EXACT_TERMS)
            # The second operand is column-major, as the kernels for int8 want it.
            product = torch._int_mm(
                patches[:, piece].contiguous(), weights[:, piece].contiguous().t()
            )
            total = product if total is None else total + product
        return total

    def _patches(self, limb: Any, points: int) -> Any:  # noqa: ANN401
        """Every output's inputs in a row, padded to shapes that the product takes."""
        torch, g = self._torch, self._geometry
        n, h, w, c = limb.shape
        windows = limb.contiguous().as_strided(
            (n, *g.out_size, *g.kernel, c),
            (
                h * w * c,
                w * c * g.stride[0],
                c * g.stride[1],
                w * c * g.dilation[0],
                c * g.dilation[1],
                1,
            ),
        )
        rows = max(_rounded(points), FEWEST_ROWS)
        padding = (0, _rounded(self._terms) - self._terms, 0, rows - points)
        return torch.nn.functional.pad(windows.reshape(points, self._terms), padding)


def _rounded(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


class Staging:
    """Carries arrays to a device and back: on CUDA through pinned memory, on the thread's stream.

    A thread serves one client, so every client has a stream and buffers of its own.
    """

    def __init__(self, torch: Any, device: str) -> None:  # noqa: ANN401
        self._torch = torch
        self._device = device
        self._cuda = device.startswith("cuda")
        self._own = threading.local()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Everything inside runs on this thread's stream."""
        if not self._cuda:
            yield
            return
        if not hasattr(self._own, "stream"):
            self._own.stream = self._torch.cuda.Stream(self._device)
            # Weights were loaded on another stream.
            self._torch.cuda.synchronize(self._device)
        with self._torch.cuda.stream(self._own.stream):
            yield

    def upload(self, array: np.ndarray) -> Any:  # noqa: ANN401
        """An array on the device."""
        if not self._cuda:
            return self._torch.from_numpy(np.array(array))
        pinned = self._pinned("sent", array.shape, self._torch.from_numpy(array[:0]).dtype)
        pinned.numpy()[...] = array
        return pinned.to(self._device, non_blocking=True)

    def download(self, tensor: Any, out: np.ndarray) -> None:  # noqa: ANN401
        """A tensor's values; returns when everything before is done, and buffers are free."""
        if not self._cuda:
            out[...] = tensor.numpy()
            return
        pinned = self._pinned("received", tuple(tensor.shape), tensor.dtype)
        pinned.copy_(tensor, non_blocking=True)
        self._own.stream.synchronize()
        out[...] = pinned.numpy()

    def _pinned(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:  # noqa: ANN401
        known = getattr(self._own, name, None)
        if known is None or tuple(known.shape) != shape or known.dtype != dtype:
            known = self._torch.empty(shape, dtype=dtype, pin_memory=True)
            setattr(self._own, name, known)
        return known


def make_map(linear: LinearMap, *, device: str) -> "TorchMap | Int8Map":
    """The fastest map that is right on this device.

    On CUDA that is the one of 8-bit limbs, if it gives what float64 gives at a random input.
    """
    if not device.startswith("cuda") or linear.geometry.groups != 1:
        return TorchMap(linear, device=device)
    return checked_int8(linear, device=device) or TorchMap(linear, device=device)


def checked_int8(linear: LinearMap, *, device: str) -> Int8Map | None:
    """The map of 8-bit limbs, or None where PyTorch cannot compute it or gets it wrong."""
    shape = (1, *linear.geometry.in_shape)
    rng = InsecureSeededRandom(_CHECK_SEED)
    x = np.frombuffer(rng.random_bytes(4 * math.prod(shape)), np.uint32).reshape(shape)
    try:
        found = Int8Map(linear, device=device)
        answer = found.apply(x)
    # An operator that is missing, or refuses these shapes or this device.
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
    return found if np.array_equal(answer, TorchMap(linear, device=device).apply(x)) else None
