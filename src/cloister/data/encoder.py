"""From an owner's samples to chunks of encoded ones, in a random order.

A file sorted by class would give the labels away.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from cloister.base.rng import Csprng
from cloister.data.columns import Column, column_of, encode_columns
from cloister.data.csv_source import TableSource
from cloister.data.dataset import TEST, TRAIN, UNLABELLED
from cloister.data.encoding import Encoding
from cloister.data.sources import CHUNK_BYTES, Source
from cloister.data.target_encoding import TargetEncoder
from cloister.data.writer import Chunk
from cloister.errors import RangeError


class Encoder:
    """From a source's values to the integers of a data set."""

    def __init__(
        self,
        source: Source,
        encoding: Encoding,
        *,
        columns: Sequence[Column] = (),
        clip: bool = False,
    ) -> None:
        """The elements of a table are those of its data set's `columns`.

        Raises   InputError, RangeError where a table cannot be read as these columns
        """
        self._source, self._encoding, self._clip = source, encoding, clip
        self.clipped = 0
        """Values that `encode` brought to the ends of the range so far."""
        self._columns = tuple(columns)
        if isinstance(source, TableSource):
            source.use(self._columns, clip=clip)

    def encode(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Encoded samples.

        Raises   RangeError naming sample and field
        """
        raw = self._source.read(positions)
        values = np.asarray(raw, np.float64)
        if self._source.kind == "pixels":
            values = values / 255
        if self._columns:
            cells = values.reshape(len(values), -1)
            values = encode_columns(self._columns, cells)[:, None, None]
        low, high = self._encoding.low, self._encoding.high
        slack = self._encoding.resolution
        bad = ~((values >= low - slack) & (values <= high + slack))
        if self._clip:
            self.clipped += int(np.count_nonzero(bad))
            bad = np.isnan(values)
            values = np.clip(values, low, high)
        if bad.any():
            self._complain(positions, values, bad)
        return self._encoding.encode(np.clip(values, low, high))

    def _complain(
        self, positions: np.ndarray, values: np.ndarray, bad: Bool[np.ndarray, "..."]
    ) -> None:
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        sample = self._source.where(int(positions[place[0]]))
        if self._columns:
            field, option = f"column {column_of(self._columns, place[-1]).name}", "--ranges"
        else:
            field, option = f"element {place[1:]}", "--range"
        remedy = f"allow --clip, or make the data set with a wider {option}"
        if np.isnan(values[place]):
            what, remedy = "the value is missing (NaN)", "fill or drop it"
        else:
            what = "the value is outside the data set's range"
        raise RangeError(f"{sample}, {field}: {what}; {remedy}")


def random_order(count: int, *, rng: Csprng) -> Int64[np.ndarray, " count"]:
    """A random order of samples.

    Secret   result: a file sorted by class would give the labels away
    """
    # Sorting random words: a collision, at most n^2 / 2^65, would only repeat the given order.
    words = np.frombuffer(rng.random_bytes(8 * count), np.uint64)
    return np.argsort(words, kind="stable").astype(np.int64)


def chunks(
    source: Source,
    encoder: Encoder,
    *,
    targets: TargetEncoder,
    test_fraction: float,
    order: Int64[np.ndarray, " n"],
) -> Iterator[Chunk]:
    """All samples in a given order, of which the last ones are the test split.

    Unlabelled samples are in neither split.
    """
    n = source.samples
    tested = round(test_fraction * n)
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(source.shape))))
    for start in range(0, n, size):
        positions = order[start : start + size]
        places = np.arange(start, start + len(positions))
        flags = np.where(places >= n - tested, TEST, TRAIN).astype(np.uint8)
        if targets.labels is None:
            flags[:] = UNLABELLED
        yield Chunk(encoder.encode(positions), targets.encode(positions), flags)
