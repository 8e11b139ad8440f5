"""From an owner's samples to chunks of encoded ones, in a random order.

A file sorted by class would give the labels away.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cloister.base.rng import Csprng
from cloister.data.dataset import TEST, TRAIN
from cloister.data.encoding import Encoding
from cloister.data.sources import CHUNK_BYTES, Source, TableSource
from cloister.data.writer import Chunk
from cloister.errors import InputError, RangeError


class Encoder:
    """From a source's values to the integers of a data set."""

    def __init__(
        self,
        source: Source,
        encoding: Encoding,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        clip: bool = False,
    ) -> None:
        """Columns of a table are mapped from their `ranges` to [-1, 1] first.

        Raises   InputError naming a column without a usable range
        """
        self._source, self._encoding, self._clip = source, encoding, clip
        self.clipped = 0
        """Values that `encode` brought to the ends of the range so far."""
        self._middle: Float64[np.ndarray, " c"] | None = None
        self._half: Float64[np.ndarray, " c"] = np.ones(source.shape[-1])
        if isinstance(source, TableSource):
            given = ranges or {}
            wrong = set(source.columns) ^ set(given)
            if wrong or tuple(source.columns) != tuple(given):
                raise InputError(
                    f"the columns are {', '.join(source.columns)}, but the data set has "
                    f"{', '.join(given)}; bring them to the same names and order"
                )
            low, high = np.array(list(given.values()), np.float64).T
            bad = ~((low <= high) & np.isfinite(low) & np.isfinite(high))
            if bad.any():
                column = source.columns[int(np.flatnonzero(bad)[0])]
                raise InputError(f"column {column}: its range needs low <= high")
            self._middle = (low + high) / 2
            # A constant column says nothing and becomes zero.
            self._half = np.where(high > low, (high - low) / 2, 1.0)

    def encode(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Encoded samples.

        Raises   RangeError naming sample and field
        """
        raw = self._source.read(positions)
        values = np.asarray(raw, np.float64)
        if self._source.kind == "pixels":
            values = values / 255
        if self._middle is not None:
            values = (values - self._middle) / self._half
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
        sample = int(positions[place[0]])
        source = self._source
        if isinstance(source, TableSource):
            field, option = f"column {source.columns[place[-1]]}", "--ranges"
        else:
            field, option = f"element {place[1:]}", "--range"
        remedy = f"allow --clip, or make the data set with a wider {option}"
        if np.isnan(values[place]):
            what, remedy = "the value is missing (NaN)", "fill or drop it"
        else:
            what = "the value is outside the data set's range"
        raise RangeError(f"sample {sample}, {field}: {what}; {remedy}")


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
    classes: Int64[np.ndarray, " names"],
    test_fraction: float,
    order: Int64[np.ndarray, " n"],
) -> Iterator[Chunk]:
    """All samples in a given order, of which the last ones are the test split.

    `classes` are the data set's numbers of the source's classes.
    """
    n = len(source.labels)
    tested = round(test_fraction * n)
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(source.shape))))
    for start in range(0, n, size):
        positions = order[start : start + size]
        places = np.arange(start, start + len(positions))
        flags = np.where(places >= n - tested, TEST, TRAIN).astype(np.uint8)
        yield Chunk(encoder.encode(positions), classes[source.labels[positions]], flags)
