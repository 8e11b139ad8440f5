"""How well a simple classifier tells classes apart, on observations that it was not trained on."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

NEIGHBOURS = 5
FOLDS = 10
ERROR_RATE = 0.05


@dataclass(frozen=True)
class Accuracy:
    """The share of observations that were given to their class, with its interval.

    chance   the share that a guess has

    Source   Wilson, "Probable inference, the law of succession, and statistical inference",
             JASA 22 (1927)
    """

    value: float
    low: float
    high: float
    chance: float

    @classmethod
    def of(cls, right: int, count: int, *, classes: int, comparisons: int = 1) -> "Accuracy":
        """So many right answers of `count`.

        comparisons   intervals that hold with 95 % confidence together (Bonferroni)
        """
        deviations = NormalDist().inv_cdf(1 - ERROR_RATE / 2 / comparisons)
        share, spread = right / count, deviations**2 / count
        middle = (share + spread / 2) / (1 + spread)
        half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
        return cls(share, max(0.0, middle - half), min(1.0, middle + half), 1 / classes)

    @property
    def better_than_chance(self) -> bool:
        """Whether the classes are told apart: the interval lies above a guess."""
        return self.low > self.chance


def tell_apart(
    features: Float64[np.ndarray, "count width"],
    classes: Int64[np.ndarray, " count"],
    *,
    comparisons: int = 1,
) -> Accuracy:
    """The accuracy of nearest neighbours, over folds.

    Features are measured in their spread within a class. Each fold has the same share of each
    class. A better classifier could be more accurate, so this is what an observer gets at least.

    comparisons   see `Accuracy.of`
    """
    right = 0
    folds = _folds(classes)
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        scale = _spread(features[train], classes[train])
        near = features[train] / scale
        for row, own in zip(features[test] / scale, classes[test], strict=True):
            nearest = np.argsort(np.square(near - row).sum(axis=1), kind="stable")[:NEIGHBOURS]
            right += int(np.bincount(classes[train][nearest]).argmax() == own)
    kinds = len(np.unique(classes))
    return Accuracy.of(right, len(classes), classes=kinds, comparisons=comparisons)


def _folds(classes: Int64[np.ndarray, " count"]) -> Int64[np.ndarray, " count"]:
    folds = np.empty(len(classes), np.int64)
    for one in np.unique(classes):
        (places,) = np.nonzero(classes == one)
        folds[places] = np.arange(len(places)) % FOLDS
    return folds


def _spread(
    features: Float64[np.ndarray, "count width"], classes: Int64[np.ndarray, " count"]
) -> Float64[np.ndarray, " width"]:
    """The standard deviation within classes; where there is none, any difference is far."""
    centred = features - np.stack([features[classes == one].mean(axis=0) for one in classes])
    least = 1e-9 * np.abs(features).max(axis=0) + 1e-12
    spread: Float64[np.ndarray, " width"] = np.maximum(centred.std(axis=0), least)
    return spread
