"""A mean over repeated thefts, with Student's interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `runs` runs and the ends of its 95 % interval; None for a single run.

    Student's t: the runs differ in queries, initial weights and order, not in the samples that are
    evaluated, so that the sampling of these is not in it.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """The interval of one or more values."""
        runs, mean = len(values), float(np.mean(values))
        if runs == 1:
            return cls(mean, None, None, 1)
        quantile = float(stdtrit(runs - 1, 0.5 + LEVEL / 2))
        half = quantile * float(np.std(values, ddof=1)) / math.sqrt(runs)
        return cls(mean, mean - half, mean + half, runs)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.1%}"
        return f"{self.mean:.1%} ± {self.high - self.mean:.1%}"
