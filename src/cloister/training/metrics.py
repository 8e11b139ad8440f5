"""How well a model predicts: accuracy of classes and labels, goodness of fit of numbers.

Sums of batches are added up over an epoch or a split, and `measured` turns them into figures.
Numbers are parts of their half ranges, from -1 to 1: the server knows no units. A client, which
knows the ranges, multiplies an error by half the number's range to have it in units.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cloister.data.info import Targets


@dataclass(frozen=True)
class GoodnessOfFit:
    """How well each number is predicted, in the order of the data set's numbers.

    rmse   root of the mean squared error, as a part of half the number's range
    r2     coefficient of determination: 1 is perfect, 0 as good as the mean
    """

    rmse: tuple[float, ...]
    r2: tuple[float, ...]

    @property
    def mean_r2(self) -> float:
        """Of all numbers."""
        return sum(self.r2) / len(self.r2)


@dataclass(frozen=True)
class Measured:
    """Figures of one pass over some samples.

    accuracy   classes: the part that is right; labels: the mean over labels of that part
    fit        of numbers
    """

    accuracy: float | None = None
    fit: GoodnessOfFit | None = None


def batch_sums(targets: Targets, scores: Tensor, wanted: Tensor) -> list[float]:
    """What a batch adds: right answers of classes, or of each label; squared errors of each number.

    Shapes   scores: (n, classes); wanted: (n,) for classes, else (n, classes)
    """
    scores = scores.detach()
    if targets == "classes":
        return [float(np.count_nonzero(scores.argmax(1).numpy() == wanted.numpy()))]
    if targets == "labels":
        # A positive score is a probability of more than one half.
        sums = ((scores > 0) == (wanted > 0)).double().sum(0)
    else:
        sums = (scores.double() - wanted.double()).square().sum(0)
    return [float(value) for value in sums.tolist()]


def added(sums: list[float], more: list[float]) -> list[float]:
    """The sums of two batches; none are zeros."""
    return [one + other for one, other in zip(sums, more, strict=True)] if sums else list(more)


def measured(targets: Targets, sums: list[float], wanted: Tensor) -> Measured:
    """The figures that sums over the samples with these targets come to."""
    count = max(1, len(wanted))
    if targets != "numbers":
        return Measured(accuracy=sum(sums) / count / max(1, len(sums)))
    spread = (wanted.double() - wanted.double().mean(0)).square().sum(0).tolist()
    r2 = [_r2(error, total) for error, total in zip(sums, spread, strict=True)]
    rmse = [(error / count) ** 0.5 for error in sums]
    return Measured(fit=GoodnessOfFit(tuple(rmse), tuple(r2)))


def _r2(error: float, total: float) -> float:
    """Where all values are equal, there is nothing to explain: 1 if they are met, else 0."""
    if total == 0:
        return float(error == 0)
    return 1 - error / total
