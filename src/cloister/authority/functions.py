"""Which functions a key may be asked for, and what each could tell about one sample.

A `Function` is what a key gives away of one sample: *functionals* (rows of integer weights on the
flattened sample), one for each value. A forward key has one function for all its samples (`Rows`).
A gradient key gives sums over its batch; of each sample it has the restriction of the sums to that
sample (`Slice`). Whoever knew all other samples of the batch would learn exactly the restricted
functionals, so charging them bounds what the release adds about this sample, whatever the server
knows about the others and whatever it combines the release with. Rules, prices and noise know
functions only, so that both kinds of key pass the same ones.

Refused besides (`check_rows`), because the rank would not count them fairly:

- a *unit vector* reads one element;
- a *packed* row is a sum u + v whose parts can be separated: the values of v fit into a gap that
  all values of u leave, which is so exactly if the greatest common divisor of the largest weights
  exceeds the range of the rest. (1, 101, 101^2, 101^3) on values below 101 is one;
- a *short* row has so few non-zero weights that its value has room for half of its inputs.

The limits of this. The tests look at one row at a time. Rows that are innocent alone can share few
inputs, and then a lattice reduction finds small inputs from fewer rows than inputs: with 8-bit
elements and 16-bit weights, two rows on the same five elements usually determine all five, so
that a budget of a quarter of the rank may read up to about three quarters of the elements.
So the ledger bounds the output bits too (`max_bits`, a quarter of the sample's own by default), and
the values are blurred to few bits each (`cloister.authority.blur`): released bits are never fewer
than what is learned. Natural data is redundant, so that both count an upper bound on *new*
knowledge, not the quality of the best guess.
"""

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int16, Int64

from cloister.errors import FunctionError
from cloister.fe.keyservice import DatasetInfo
from cloister.field.linear import Geometry, LinearMap

MAX_TAPS = 1 << 27
"""Positions times kernel elements of a function: bounds the memory of its rows."""
MAX_ANSWER_ELEMENTS = 1 << 26
MAX_SPAN = 1 << 16
"""Largest height or width of the plane that a function's windows cover."""
MAX_PLANE_ELEMENTS = 1 << 26
"""Words of one such plane: the kernels may build it."""
ROWS_AT_ONCE = 64
ROOM = 2
"""Inputs of a row must have at least this many times the bits of its value."""


def geometry_bytes(geometry: Geometry) -> bytes:
    """17 little-endian 64-bit integers."""
    return np.array(geometry.to_tuple(), "<i8").tobytes()


def check_size(info: DatasetInfo, geometry: Geometry, samples: int) -> None:
    """Refuse a geometry for other samples, or an answer of absurd size.

    Raises   FunctionError
    """
    if geometry.in_elements != info.dim:
        raise FunctionError(
            f"data set {info.name}: samples have {info.dim} elements, the function takes "
            f"{geometry.in_elements}"
        )
    height, width = _plane(geometry)
    # The gradient's kernel has the batch as its channels.
    plane = height * width * max(geometry.in_channels, samples)
    if max(height, width) > MAX_SPAN or plane > MAX_PLANE_ELEMENTS:
        raise FunctionError(
            f"data set {info.name}: the function reaches far beyond the samples; check its "
            "geometry, or use smaller batches"
        )
    taps = math.prod(geometry.out_size) * math.prod(geometry.kernel) * geometry.in_channels
    answer = max(samples * geometry.out_elements, math.prod(geometry.weight_shape))
    if taps > MAX_TAPS or answer > MAX_ANSWER_ELEMENTS or geometry.macs > 1 << 36:
        raise FunctionError(f"data set {info.name}: the function is too large; use smaller batches")


def elements(geometry: Geometry, samples: int) -> int:
    """Products and elements that a forward key's kernels go through, about."""
    height, width = _plane(geometry)
    plane = height * width * geometry.in_channels
    each = geometry.macs + plane + geometry.in_elements + geometry.out_elements
    return samples * each + math.prod(geometry.weight_shape)


def _plane(geometry: Geometry) -> tuple[int, int]:
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


def taps(geometry: Geometry) -> Int64[np.ndarray, "positions taps"]:
    """For every output position and kernel element, the index of the flattened image's pixel.

    -1 stands for padding and for inserted zeros. Channels are left out: pixel * channels + c.
    """
    axes = []
    for axis in range(2):
        out = np.arange(geometry.out_size[axis])[:, None] * geometry.stride[axis]
        place = out + np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
        place = place - geometry.pad[axis]
        pixel, rest = np.divmod(place, geometry.upsample[axis])
        inside = (rest == 0) & (pixel >= 0) & (pixel < geometry.in_size[axis])
        axes.append(np.where(inside, pixel, -1))
    rows, columns = axes[0][:, None, :, None], axes[1][None, :, None, :]
    index = np.where((rows < 0) | (columns < 0), -1, rows * geometry.in_size[1] + columns)
    shape = (math.prod(geometry.out_size), math.prod(geometry.kernel))
    return np.asarray(index.reshape(shape), np.int64)


class Function(Protocol):
    """What a key gives away of one sample; see above.

    linear   the function as a map, which the ledger can eliminate exactly; None: it charges `rank`
    """

    linear: LinearMap | None

    @property
    def digest(self) -> bytes:
        """Its name: the same functionals in the same order have the same."""
        ...

    @property
    def count(self) -> int:
        """Number of functionals, and of values."""
        ...

    @property
    def rank(self) -> int:
        """Upper bound of the rank of its functionals."""
        ...

    @property
    def norm(self) -> int:
        """Upper bound of the sum of |weights| of a functional."""
        ...

    @property
    def operand(self) -> int:
        """Largest |weight|."""
        ...

    def distinct(self) -> Iterator[Int64[np.ndarray, "rows weights"]]:
        """The weights of all functionals, without repeating those that differ by their place."""
        ...


class Rows:
    """The functionals of a forward function, in blocks; a `Function`."""

    def __init__(self, linear: LinearMap) -> None:
        self.linear: LinearMap | None = linear
        self.geometry, self._values = linear.geometry, linear.weights
        self.count = linear.geometry.out_elements
        self.rank = min(self.count, linear.geometry.in_elements)

    @cached_property
    def digest(self) -> bytes:
        """See `Function`."""
        digest = hashlib.sha256(b"forward" + geometry_bytes(self.geometry))
        digest.update(np.ascontiguousarray(self._values, "<i2").tobytes())
        return digest.digest()

    @cached_property
    def norm(self) -> int:
        """See `Function`."""
        sizes = np.abs(self._values.astype(np.int64)).reshape(self.geometry.out_channels, -1)
        return int(sizes.sum(axis=1).max(initial=0))

    @property
    def operand(self) -> int:
        """See `Function`."""
        return int(np.abs(self._values.astype(np.int32)).max(initial=0))

    def distinct(self) -> Iterator[Int64[np.ndarray, "rows weights"]]:
        """See `Function`."""
        _, first = np.unique(self._taps >= 0, axis=0, return_index=True)
        for position in np.sort(first).tolist():
            used: Bool[np.ndarray, " taps"] = self._taps[position] >= 0
            kept = np.where(used[None, :, None], self._weights, 0)
            yield np.asarray(kept.reshape(len(kept), -1), np.int64)

    def dense(self, start: int, stop: int) -> Int64[np.ndarray, "rows dim"]:
        """Rows `start` to `stop` on the flattened sample; all channels of a position together."""
        geometry = self.geometry
        groups, per_group = geometry.groups, geometry.weight_shape[3]
        channels = geometry.in_channels
        numbers = np.arange(start, stop)
        out: Int64[np.ndarray, "rows dim"] = np.zeros(
            (len(numbers), geometry.in_elements), np.int64
        )
        for row, number in enumerate(numbers.tolist()):
            position, channel = divmod(number, geometry.out_channels)
            pixels = self._taps[position]
            used = pixels >= 0
            offset = channel * groups // geometry.out_channels * per_group
            place = pixels[used, None] * channels + offset + np.arange(per_group)
            out[row, place] = self._weights[channel, used]
        return out

    @cached_property
    def _taps(self) -> Int64[np.ndarray, "positions taps"]:
        return taps(self.geometry)

    @cached_property
    def _weights(self) -> Int64[np.ndarray, "channels taps weights"]:
        shape = (self.geometry.out_channels, math.prod(self.geometry.kernel), -1)
        return self._values.reshape(shape).astype(np.int64)


class Cuts:
    """Which output positions a geometry's kernel elements use, each set once: padding cuts some."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @cached_property
    def used(self) -> Bool[np.ndarray, "cuts positions"]:
        """The sets, as masks."""
        return np.unique(taps(self.geometry).T >= 0, axis=0)


class Slice:
    """A gradient function as one sample of its batch sees it; a `Function`.

    Functional (o, k, c) is the sum over positions p of delta[p, o] x[p * stride + k, c].
    """

    linear: LinearMap | None = None

    def __init__(self, cuts: Cuts, delta: Int16[np.ndarray, "oh ow oc"]) -> None:
        self._cuts, self._geometry = cuts, cuts.geometry
        self._delta = delta
        self.count = math.prod(self._geometry.weight_shape)

    @cached_property
    def digest(self) -> bytes:
        """See `Function`."""
        digest = hashlib.sha256(b"gradient" + geometry_bytes(self._geometry))
        digest.update(np.ascontiguousarray(self._delta, "<i2").tobytes())
        return digest.digest()

    @cached_property
    def rank(self) -> int:
        """See `Function`.

        A row is linear in delta[:, o]: for one (k, c) at most rank(delta) of the channels are
        independent, and that is at most the number of non-zero channels and of non-zero positions.
        """
        geometry = self._geometry
        groups, per_group = geometry.groups, geometry.weight_shape[3]
        used = (self._delta != 0).reshape(-1, groups, geometry.out_channels // groups)
        rank = np.minimum(used.any(axis=0).sum(axis=1), used.any(axis=2).sum(axis=0)).sum()
        return min(int(rank) * math.prod(geometry.kernel) * per_group, geometry.in_elements)

    @cached_property
    def norm(self) -> int:
        """See `Function`."""
        return int(np.abs(self._channels).sum(axis=1).max(initial=0))

    @property
    def operand(self) -> int:
        """See `Function`."""
        return int(np.abs(self._channels).max(initial=0))

    def distinct(self) -> Iterator[Int64[np.ndarray, "rows weights"]]:
        """See `Function`."""
        for used in self._cuts.used:
            yield np.where(used, self._channels, 0)

    @cached_property
    def _channels(self) -> Int64[np.ndarray, "channels positions"]:
        flat = self._delta.reshape(-1, self._geometry.out_channels)
        return np.ascontiguousarray(flat.T, np.int64)


def check_rows(info: DatasetInfo, function: Function) -> None:
    """Refuse unit vectors, packed rows and short rows.

    Raises   FunctionError
    """
    for compact in function.distinct():
        if (np.count_nonzero(compact, axis=1) == 1).any():
            raise FunctionError(
                f"data set {info.name}: a function reads a single element (unit vector); "
                "use one that mixes elements"
            )
        if packed(compact, info.encoding.bound).any():
            raise FunctionError(
                f"data set {info.name}: a function packs several values into one answer; "
                "use weights of similar size on more elements"
            )


def packed(rows: Int64[np.ndarray, "rows weights"], bound: int) -> Bool[np.ndarray, " rows"]:
    """Which rows, of two weights or more, can be taken apart into more than one value.

    Domain   inputs in [-bound, bound]
    """
    size = np.sort(np.abs(rows), axis=1)[:, ::-1]
    size = size[:, : max(1, int(np.count_nonzero(size, axis=1).max(initial=0)))]
    used = np.count_nonzero(size, axis=1)
    common = np.gcd.accumulate(size, axis=1)
    total = size.sum(axis=1, keepdims=True)
    rest = total - np.cumsum(size, axis=1)
    separable = ((rest > 0) & (common > 2 * bound * rest)).any(axis=1)
    divisor = np.maximum(common[:, -1], 1)
    values = np.log2(2.0 * bound * (total[:, 0] / divisor) + 1)
    short = (used >= 2) & (used * math.log2(2 * bound + 1) <= ROOM * values)
    found: Bool[np.ndarray, " rows"] = separable | short
    return found


def value_range(info: DatasetInfo, function: Function) -> int:
    """Largest minus smallest value that a functional can have."""
    return 2 * info.encoding.bound * function.norm


def value_bits(info: DatasetInfo, function: Function) -> int:
    """Bits of the largest value of a function."""
    return max(1, value_range(info, function).bit_length())
