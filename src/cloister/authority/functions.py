"""The functions that a key may be asked for, and the information that each could give of one
sample.

A `Function` is the release of a key about one sample: *functionals* (rows of integer weights on the
flattened sample), one for each value. A forward key has one function for all its samples (`Rows`).
A gradient key gives sums over its batch; of each sample it has the restriction of the sums to that
sample (`Slice`). A server that knew all other samples of the batch would learn exactly the
restricted functionals. So charging them bounds the information that the release adds about this
sample, for any knowledge of the other samples and any combination of releases. Prices and noise
know functions only, and rules the rows of their weights, so that both kinds of key pass the same
ones.

`check_rows` refuses three kinds of row besides, because the rank would not count them fairly:

- a *unit vector* reads one element;
- a *packed* row is a sum u + v whose parts can be separated: the values of v fit into a gap that
  all values of u leave, which is so exactly if the greatest common divisor of the largest weights
  exceeds the range of the rest. (1, 101, 101^2, 101^3) on values below 101 is one;
- a *short* row has so few non-zero weights that its value has room for half of its inputs.

Limits. The tests read one row at a time. Rows that are innocent alone can share few inputs, and
then a lattice reduction finds small inputs from fewer rows than inputs: with 8-bit elements and
16-bit weights, two rows on the same five elements usually determine all five, so that a budget of a
quarter of the rank may read up to about three quarters of the elements. So the ledger bounds the
output bits too (`max_bits`, a quarter of the sample's own by default), and noise leaves few bits of
each value (`cloister.authority.noise`): the released bits are never fewer than the learned ones.
Natural data is redundant, so that both count an upper bound on *new* knowledge, not the quality of
the best guess.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int16, Int64, UInt16

from cloister.data.info import DatasetInfo
from cloister.errors import FunctionError
from cloister.ring.bounds import plane
from cloister.ring.linear import Geometry, LinearMap

MAX_CHECKED_WEIGHTS = 1 << 26
"""Weights that `check_rows` goes through: a row's as often as padding cuts it differently."""
MAX_ELIMINATION = 1 << 32
"""Products of an exact count of rank; a function that takes more is charged by its size."""
WEIGHTS_AT_ONCE = 1 << 20
ROOM = 2
"""Inputs of a row must have at least this many times the bits of its value."""
TIE_MARGIN_BITS = 1e-9
"""Rows that have exactly as many are refused, whichever way a logarithm rounds."""


def elements(geometry: Geometry, samples: int) -> int:
    """Products and elements that a forward key's kernels go through, about."""
    height, width = plane(geometry)
    spread = height * width * geometry.in_channels
    each = geometry.macs + spread + geometry.in_elements + geometry.out_elements
    return samples * each + math.prod(geometry.weight_shape)


def magnitudes(values: Int16[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Absolute values in the memory of the values: that of -2^15 has no int16, but a uint16."""
    return np.asarray(np.abs(values).view(np.uint16))


def axis_taps(geometry: Geometry, axis: int) -> Int64[np.ndarray, "out kernel"]:
    """For every output and kernel element along an axis, the row or column of the image.

    -1 stands for padding and for inserted zeros.
    """
    out = np.arange(geometry.out_size[axis])[:, None] * geometry.stride[axis]
    place = out + np.arange(geometry.kernel[axis]) * geometry.dilation[axis] - geometry.pad[axis]
    pixel, rest = np.divmod(place, geometry.upsample[axis])
    inside = (rest == 0) & (pixel >= 0) & (pixel < geometry.in_size[axis])
    return np.asarray(np.where(inside, pixel, -1), np.int64)


class Function(Protocol):
    """The release of a key about one sample; see above.

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


class Rows:
    """The functionals of a forward function, in blocks; a `Function`."""

    def __init__(self, linear: LinearMap) -> None:
        self.linear: LinearMap | None = linear
        self.geometry, self._weights = linear.geometry, linear.weights
        self.count = linear.geometry.out_elements
        self.rank = min(self.count, linear.geometry.in_elements)

    @cached_property
    def digest(self) -> bytes:
        """See `Function`."""
        digest = hashlib.sha256(b"forward" + self.geometry.to_bytes())
        digest.update(np.ascontiguousarray(self._weights, "<i2").tobytes())
        return digest.digest()

    @cached_property
    def norm(self) -> int:
        """See `Function`."""
        sizes = magnitudes(self._weights).reshape(len(self._weights), -1)
        return int(sizes.sum(axis=1, dtype=np.int64).max(initial=0))

    @property
    def operand(self) -> int:
        """See `Function`."""
        return int(magnitudes(self._weights).max(initial=0))

    def dense(self, start: int, stop: int) -> Int64[np.ndarray, "rows dim"]:
        """Rows `start` to `stop` on the flattened sample; all channels of a position together."""
        geometry = self.geometry
        groups, per_group = geometry.groups, geometry.weight_shape[3]
        channels = geometry.in_channels
        weights = self._weights.reshape(geometry.out_channels, -1, per_group)
        numbers = np.arange(start, stop)
        out: Int64[np.ndarray, "rows dim"] = np.zeros(
            (len(numbers), geometry.in_elements), np.int64
        )
        for row, number in enumerate(numbers.tolist()):
            position, channel = divmod(number, geometry.out_channels)
            pixels = self._pixels(position)
            used = pixels >= 0
            offset = channel * groups // geometry.out_channels * per_group
            place = pixels[used, None] * channels + offset + np.arange(per_group)
            out[row, place] = weights[channel, used]
        return out

    def _pixels(self, position: int) -> Int64[np.ndarray, " taps"]:
        """The pixel under each kernel element at an output position; -1: none."""
        row, column = divmod(position, self.geometry.out_size[1])
        rows, columns = self._taps[0][row][:, None], self._taps[1][column]
        pixels = np.where((rows < 0) | (columns < 0), -1, rows * self.geometry.in_size[1] + columns)
        return np.asarray(pixels.reshape(-1), np.int64)

    @cached_property
    def _taps(self) -> tuple[Int64[np.ndarray, "out kernel"], ...]:
        return axis_taps(self.geometry, 0), axis_taps(self.geometry, 1)


class Slice:
    """A gradient function as one sample of its batch sees it; a `Function`.

    Functional (o, k, c) is the sum over positions p of delta[p, o] x[p * stride + k, c].
    """

    linear: LinearMap | None = None

    def __init__(self, geometry: Geometry, delta: Int16[np.ndarray, "oh ow oc"]) -> None:
        self._geometry, self._delta = geometry, delta
        self.count = math.prod(geometry.weight_shape)

    @cached_property
    def digest(self) -> bytes:
        """See `Function`."""
        digest = hashlib.sha256(b"gradient" + self._geometry.to_bytes())
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
        sizes = magnitudes(self._delta).reshape(-1, self._geometry.out_channels)
        return int(sizes.sum(axis=0, dtype=np.int64).max(initial=0))

    @property
    def operand(self) -> int:
        """See `Function`."""
        return int(magnitudes(self._delta).max(initial=0))


class Cuts:
    """What padding leaves of rows of weights on a plane: each way once, by height and by width.

    A forward row loses kernel elements at the border of the sample, a gradient row (one of deltas)
    loses output positions.
    """

    def __init__(self, *used: Bool[np.ndarray, "_ _"]) -> None:
        """used: along height and width, which weights are left; a row of it may be repeated."""
        rows, columns = (np.unique(along, axis=0) for along in used)
        self.count = len(rows) * len(columns)
        self._left = rows, columns

    @staticmethod
    def of_forward(geometry: Geometry) -> "Cuts":
        """Those of a layer's weights: (kernel height, kernel width) at every output position."""
        return Cuts(*(axis_taps(geometry, axis) >= 0 for axis in range(2)))

    @staticmethod
    def of_gradient(geometry: Geometry) -> "Cuts":
        """Those of a layer's deltas: (output height, output width) for every kernel element."""
        return Cuts(*(axis_taps(geometry, axis).T >= 0 for axis in range(2)))

    def pieces(
        self, weights: Int16[np.ndarray, "rows h w c"]
    ) -> Iterator[Int64[np.ndarray, "some weights"]]:
        """The rest of every row, each way; some rows at a time."""
        for row, column in itertools.product(*self._left):
            kept = np.flatnonzero(row)[:, None], np.flatnonzero(column)
            # At most the elements of a sample: no two weights of a row fall on the same one.
            size = kept[0].size * kept[1].size * weights.shape[3]
            if not size:
                continue
            step = max(1, WEIGHTS_AT_ONCE // size)
            for start in range(0, len(weights), step):
                piece = weights[start : start + step, *kept]
                yield np.asarray(piece.reshape(len(piece), -1), np.int64)


def check_rows(info: DatasetInfo, cuts: Cuts, weights: Int16[np.ndarray, "rows h w c"]) -> None:
    """Refuse unit vectors, packed rows and short rows, however padding cuts them.

    Raises   FunctionError
    """
    if cuts.count * weights.size > MAX_CHECKED_WEIGHTS:
        raise FunctionError(
            f"data set {info.name}: the function has {cuts.count} kinds of rows, too many for "
            "its number of weights; use fewer outputs or samples, or less padding"
        )
    for compact in cuts.pieces(weights):
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
    short = (used >= 2) & (used * math.log2(2 * bound + 1) <= ROOM * values + TIE_MARGIN_BITS)
    found: Bool[np.ndarray, " rows"] = separable | short
    return found


def value_range(info: DatasetInfo, function: Function) -> int:
    """Largest minus smallest value that a functional can have."""
    return 2 * info.encoding.bound * function.norm


def value_bits(info: DatasetInfo, function: Function) -> int:
    """Bits of the largest value of a function."""
    return max(1, value_range(info, function).bit_length())
