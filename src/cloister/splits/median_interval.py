"""A median with its interval: the percentile bootstrap, reproducible."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloister.base.rng import InsecureSeededRandom

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 1


@dataclass(frozen=True)
class MedianInterval:
    """The median of measured values, and the ends of its interval.

    Source   Efron, percentile bootstrap: the middle 95 % of the medians of 2,000 resamples
    """

    median: float
    low: float
    high: float


ZERO = MedianInterval(0.0, 0.0, 0.0)


def median_interval(values: Sequence[float]) -> MedianInterval:
    """The interval of the median of some values; of one value, that value."""
    found = np.asarray(values, np.float64)
    drawn = InsecureSeededRandom(_SEED).random_bytes(4 * RESAMPLES * len(found))
    # The remainder of 32 bits prefers no index by more than len / 2^32.
    which = np.frombuffer(drawn, np.uint32).reshape(RESAMPLES, len(found)) % len(found)
    medians = np.median(found[which], axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return MedianInterval(float(np.median(found)), float(low), float(high))
