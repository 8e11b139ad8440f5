"""Bounds of encrypted data sets and of one request about them, for every party alike.

The description, the data set file, the ledger, the authority and the ciphertext server all take
them from here, so that no party refuses a value that another has accepted. The cost of a request
follows from its shapes, and is compared with these bounds before any work.
"""

import math
from typing import Protocol

from cloister.errors import FunctionError, InputError
from cloister.ring.linear import Geometry

MAX_DIM = 1 << 22
"""Elements of one sample: a picture of 2048 x 2048, or one of 1182 x 1182 in colour."""
MAX_CLASSES = 1 << 16
MAX_SAMPLES = 1 << 26
MAX_PARTS = 1 << 12
"""Parts of a data set: their list has to fit into one message."""
MAX_ID_SPANS = 1 << 16
"""Separate spans of sample ids in one set of them, such as that of the withdrawn ones."""

MAX_REQUEST_SAMPLES = 1 << 16
MAX_REQUEST_ELEMENTS = 1 << 26
"""Elements, or classes, of all samples of one request, and elements of its answer."""
MAX_FIELDS_BYTES = 1 << 13
"""Of a request for a key or a product: a name, a receiver, a geometry, and the tensors' sizes."""
MAX_IDS_BYTES = MAX_FIELDS_BYTES + 8 * MAX_REQUEST_SAMPLES
MAX_SPANS_BYTES = MAX_FIELDS_BYTES + 16 * MAX_ID_SPANS
MAX_BODY_BYTES = MAX_IDS_BYTES + 2 * MAX_REQUEST_ELEMENTS
"""Sample ids and 16-bit weights or deltas."""
MAX_PRODUCTS = 1 << 34
"""Multiply-adds of one request: some seconds of one core."""
MAX_SPAN = 1 << 16
"""Largest height or width of the plane that a function's windows cover."""
MAX_PLANE_ELEMENTS = 1 << 26
"""Words of one such plane: the kernels may build it."""
MAX_AXIS_TAPS = 1 << 22
"""Outputs times kernel elements along one axis."""


class Described(Protocol):
    """The quantities that the bounds depend on."""

    @property
    def name(self) -> str:
        """Identifier of the data set."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one sample."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...


def check_sample(name: str, shape: tuple[int, ...], classes: int, *, least: int = 2) -> None:
    """Refuse samples that no data set may hold.

    least    fewest classes, labels or numbers that a target may have
    Raises   InputError
    """
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"data set {name}: shape must be (h, w, c), got {shape}")
    h, w, c = shape
    if h * w * c > MAX_DIM:
        side = math.isqrt(MAX_DIM // c)
        advice = f"resize pictures to {side} x {side}" if side else "keep fewer channels"
        raise InputError(
            f"data set {name}: a sample of {h} x {w} x {c} has {h * w * c} elements, at most "
            f"{MAX_DIM} are possible; {advice}, or use fewer columns"
        )
    if not least <= classes <= MAX_CLASSES:
        kind = "classes" if least > 1 else "classes, labels or numbers"
        raise InputError(
            f"data set {name}: needs {least} to {MAX_CLASSES} {kind}, not {classes}; name all of "
            "them (--classes), also those that your own samples lack"
        )


def most_at_once(described: Described, geometry: Geometry | None = None) -> int:
    """Samples that one request may name; of a linear map, if it is for one."""
    each = max(math.prod(described.shape), described.classes)
    most = min(MAX_REQUEST_SAMPLES, MAX_REQUEST_ELEMENTS // each)
    if geometry is not None:
        answers = MAX_REQUEST_ELEMENTS // geometry.out_elements
        most = min(most, answers, MAX_PRODUCTS // geometry.macs)
    return max(1, most)


def check_count(described: Described, samples: int) -> None:
    """Refuse a request that names too many samples.

    Raises   FunctionError
    """
    if not samples:
        raise FunctionError(f"data set {described.name}: a request names no sample")
    most = most_at_once(described)
    if samples > most:
        raise FunctionError(
            f"data set {described.name}: {samples} samples at once, at most {most} are possible; "
            "use smaller batches"
        )


def check_size(described: Described, geometry: Geometry, samples: int) -> None:
    """Refuse a linear map for other samples, or one that is too much work or memory.

    Raises   FunctionError
    """
    name, dim = described.name, math.prod(described.shape)
    if geometry.in_elements != dim:
        raise FunctionError(
            f"data set {name}: samples have {dim} elements, the function takes "
            f"{geometry.in_elements}"
        )
    height, width = plane(geometry)
    # The gradient's kernel has the batch as its channels.
    elements = height * width * max(geometry.in_channels, samples)
    taps = max(o * k for o, k in zip(geometry.out_size, geometry.kernel, strict=True))
    if max(height, width) > MAX_SPAN or elements > MAX_PLANE_ELEMENTS or taps > MAX_AXIS_TAPS:
        raise FunctionError(
            f"data set {name}: the function reaches far beyond the samples; check its "
            "geometry, or use smaller batches"
        )
    answer = max(samples * geometry.out_elements, math.prod(geometry.weight_shape))
    if answer > MAX_REQUEST_ELEMENTS or samples * geometry.macs > MAX_PRODUCTS:
        raise FunctionError(
            f"data set {name}: the function is too large for {samples} samples at once; use "
            "smaller batches"
        )


def plane(geometry: Geometry) -> tuple[int, int]:
    """Height and width that hold the spread input, its padding and every window."""
    axes = zip(
        geometry.in_size, geometry.out_size, geometry.kernel, geometry.stride, geometry.dilation,
        geometry.upsample, geometry.pad, strict=True,
    )  # fmt: skip
    height, width = (
        max(size * up, out * stride + kernel * dilation) + abs(pad)
        for size, out, kernel, stride, dilation, up, pad in axes
    )
    return height, width
