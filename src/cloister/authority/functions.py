"""Which functions a key may be asked for, and what each could tell about one sample.

A forward key releases one *functional* (a row of integer weights on the flattened sample) for each
output. A gradient key releases functionals on the whole batch; a sample is charged with their
restriction to itself. Whoever knew all other samples of the batch would learn exactly the
restricted functionals, so the charge bounds what the release adds about this sample, whatever the
server knows about the others and whatever it combines the release with.

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

import numpy as np
from jaxtyping import Bool, Int16, Int64, UInt16

from cloister.errors import FunctionError
from cloister.fe.bounds import plane
from cloister.fe.keyservice import RING_LIMIT, DatasetInfo
from cloister.field.linear import Geometry, LinearMap

MAX_CHECKED_WEIGHTS = 1 << 26
"""Weights that `check_rows` goes through: a row's as often as padding cuts it differently."""
MAX_ELIMINATION = 1 << 32
"""Products of an exact count of rank; a function that takes more is charged by its size."""
WEIGHTS_AT_ONCE = 1 << 20
ROOM = 2
"""Inputs of a row must have at least this many times the bits of its value."""
TIE_MARGIN_BITS = 1e-9
"""Rows that have exactly as many are refused, whichever way a logarithm rounds."""


def forward_digest(linear: LinearMap) -> bytes:
    """Name of a forward function."""
    digest = hashlib.sha256(b"forward" + geometry_bytes(linear.geometry))
    digest.update(np.ascontiguousarray(linear.weights, "<i2").tobytes())
    return digest.digest()


def gradient_digest(geometry: Geometry, slice_: Int16[np.ndarray, "oh ow oc"]) -> bytes:
    """Name of a gradient function as one sample of its batch sees it."""
    digest = hashlib.sha256(b"gradient" + geometry_bytes(geometry))
    digest.update(np.ascontiguousarray(slice_, "<i2").tobytes())
    return digest.digest()


def geometry_bytes(geometry: Geometry) -> bytes:
    """17 little-endian 64-bit integers."""
    return np.array(geometry.to_tuple(), "<i8").tobytes()


def elements(geometry: Geometry, samples: int) -> int:
    """Products and elements that a forward key's kernels go through, about."""
    height, width = plane(geometry)
    spread = height * width * geometry.in_channels
    each = geometry.macs + spread + geometry.in_elements + geometry.out_elements
    return samples * each + math.prod(geometry.weight_shape)


def check_forward_norm(info: DatasetInfo, linear: LinearMap) -> None:
    """Refuse weights for which |A x| < 2^31 is not certain: the answer would wrap.

    Raises   FunctionError
    """
    norm = int(row_norms(linear.weights).max(initial=0))
    if norm * info.encoding.bound >= RING_LIMIT:
        raise FunctionError(
            f"data set {info.name}: an output's weights sum to {norm} in magnitude, at most "
            f"{info.row_norm_limit} is allowed; use a coarser scale"
        )


def check_gradient_norm(info: DatasetInfo, delta: Int16[np.ndarray, "n oh ow oc"]) -> None:
    """Refuse deltas for which the summed gradient could wrap.

    Raises   FunctionError
    """
    flat = magnitudes(delta).reshape(-1, delta.shape[-1])
    norm = int(flat.sum(axis=0, dtype=np.int64).max(initial=0))
    if norm * info.encoding.bound >= RING_LIMIT:
        raise FunctionError(
            f"data set {info.name}: a channel's deltas sum to {norm} in magnitude, at most "
            f"{info.row_norm_limit} is allowed; use a coarser scale"
        )


def magnitudes(values: Int16[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Absolute values in the memory of the values: that of -2^15 has no int16, but a uint16."""
    return np.asarray(np.abs(values).view(np.uint16))


def row_norms(weights: Int16[np.ndarray, "o kh kw c"]) -> Int64[np.ndarray, " o"]:
    """Sum of the absolute weights of each row."""
    flat = magnitudes(weights).reshape(len(weights), -1)
    return np.asarray(flat.sum(axis=1, dtype=np.int64))


def axis_taps(geometry: Geometry, axis: int) -> Int64[np.ndarray, "out kernel"]:
    """For every output and kernel element along an axis, the row or column of the image.

    -1 stands for padding and for inserted zeros.
    """
    out = np.arange(geometry.out_size[axis])[:, None] * geometry.stride[axis]
    place = out + np.arange(geometry.kernel[axis]) * geometry.dilation[axis] - geometry.pad[axis]
    pixel, rest = np.divmod(place, geometry.upsample[axis])
    inside = (rest == 0) & (pixel >= 0) & (pixel < geometry.in_size[axis])
    return np.asarray(np.where(inside, pixel, -1), np.int64)


class Rows:
    """The functionals of a forward function, in blocks."""

    def __init__(self, linear: LinearMap) -> None:
        self.geometry = linear.geometry
        self._taps = axis_taps(linear.geometry, 0), axis_taps(linear.geometry, 1)
        self._weights = linear.weights
        self.count = linear.geometry.out_elements

    def _pixels(self, position: int) -> Int64[np.ndarray, " taps"]:
        """The pixel under each kernel element at an output position; -1: none."""
        row, column = divmod(position, self.geometry.out_size[1])
        rows, columns = self._taps[0][row][:, None], self._taps[1][column]
        pixels = np.where((rows < 0) | (columns < 0), -1, rows * self.geometry.in_size[1] + columns)
        return np.asarray(pixels.reshape(-1), np.int64)

    def compact(self, position: int) -> Iterator[Int64[np.ndarray, "channels weights"]]:
        """The weights that are in use at an output position, some output channels at a time."""
        used: Bool[np.ndarray, " taps"] = self._pixels(position) >= 0
        weights = self._weights.reshape(len(self._weights), len(used), -1)
        step = max(1, WEIGHTS_AT_ONCE // (len(used) * weights.shape[2]))
        for start in range(0, len(weights), step):
            kept = np.where(used[None, :, None], weights[start : start + step], 0)
            yield np.asarray(kept.reshape(len(kept), -1), np.int64)

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

    def distinct_positions(self) -> Int64[np.ndarray, " n"]:
        """Output positions that differ in which kernel elements fall on the image."""
        rows, columns = (
            np.sort(np.unique(taps >= 0, axis=0, return_index=True)[1]) for taps in self._taps
        )
        return np.asarray((rows[:, None] * self.geometry.out_size[1] + columns).reshape(-1))


def check_rows(info: DatasetInfo, rows: Rows) -> None:
    """Refuse unit vectors, packed rows and short rows.

    Raises   FunctionError
    """
    positions = rows.distinct_positions()
    if len(positions) * math.prod(rows.geometry.weight_shape) > MAX_CHECKED_WEIGHTS:
        raise FunctionError(
            f"data set {info.name}: the function has {len(positions)} kinds of rows, too many for "
            "its number of weights; use fewer outputs, or less padding"
        )
    for position in positions.tolist():
        for compact in rows.compact(position):
            _check_compact(info, compact)


def _check_compact(info: DatasetInfo, compact: Int64[np.ndarray, "channels weights"]) -> None:
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


def answer_range(info: DatasetInfo, weights: Int16[np.ndarray, "o kh kw c"]) -> int:
    """Largest minus smallest value that an output of a forward function can have."""
    return 2 * info.encoding.bound * int(row_norms(weights).max(initial=0))


def row_bits(info: DatasetInfo, weights: Int16[np.ndarray, "o kh kw c"]) -> int:
    """Bits of the largest answer of a forward function."""
    return max(1, answer_range(info, weights).bit_length())


def gradient_charges(
    info: DatasetInfo, geometry: Geometry, delta: Int16[np.ndarray, "n oh ow oc"]
) -> Int64[np.ndarray, " n"]:
    """Upper bound of the rank of each sample's restricted functionals.

    Functional (o, k, c) is the sum over positions p of delta[p, o] x[p * stride + k, c]. Its row is
    linear in delta[:, o]: for one (k, c) at most rank(delta) of the channels are independent, and
    that is at most the number of non-zero channels and of non-zero positions. Where padding cuts
    a functional, another part of it remains for each k, which no test of the whole row has seen:
    it counts as often as its value has room for elements.
    """
    n, channels = delta.shape[0], geometry.out_channels
    used = (delta != 0).reshape(n, -1, geometry.groups, channels // geometry.groups)
    rank = np.minimum(used.any(axis=1).sum(axis=2), used.any(axis=3).sum(axis=1)).sum(axis=1)
    per_rank = math.prod(geometry.kernel) * geometry.weight_shape[3]
    cut = any(bool((axis_taps(geometry, axis) < 0).any()) for axis in range(2))
    room = max(1, 32 // info.encoding.bits) if cut else 1
    return np.asarray(np.minimum(rank * per_rank * room, info.dim), np.int64)


def check_deltas(info: DatasetInfo, delta: Int16[np.ndarray, "n oh ow oc"]) -> None:
    """Refuse deltas that pack several values into one gradient entry.

    Raises   FunctionError
    """
    n, channels = delta.shape[0], delta.shape[-1]
    step = max(1, WEIGHTS_AT_ONCE // (delta[:1].size or 1))
    for start in range(0, n, step):
        piece = delta[start : start + step].reshape(-1, math.prod(delta.shape[1:3]), channels)
        rows = piece.transpose(0, 2, 1).reshape(-1, piece.shape[1])
        rows = rows[np.count_nonzero(rows, axis=1) > 1].astype(np.int64)
        if len(rows) and packed(rows, info.encoding.bound).any():
            raise FunctionError(
                f"data set {info.name}: a gradient packs several values into one entry; "
                "use deltas of similar size"
            )
