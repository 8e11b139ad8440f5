"""Accuracy and loss from encrypted labels, by sums: no label of a sample is asked for.

Both are linear in the label y_i, once the prediction p_i is known. So the sum over samples of
<w_i, y_i> gives them, with one request for each:

    accuracy   classes   w = 1 at the likeliest class, else 0
               labels    w = 1 where a label is predicted, -1 where not: y w + (1 - w) / 2 is 1
                         where it is right
    loss       classes   w = -log p
               labels    w = -log p + log (1 - p), and -log (1 - p) is added
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int64

from cloister.authority import label_sums
from cloister.authority.requests import Evaluation
from cloister.data.info import DatasetInfo
from cloister.errors import InputError
from cloister.ring.bounds import most_at_once
from cloister.training.products import Products

LEAST_PROBABILITY = 2.0**-16
"""A smaller one counts as this much in a loss, which is bounded so."""
MAX_LOSS = -math.log(LEAST_PROBABILITY)
INT16_MAX = 2**15 - 1
ROOM = 2**30
"""Sums stay below this magnitude; beyond it is room for noise."""


@dataclass(frozen=True)
class Evaluated:
    """How well predictions agree with encrypted labels.

    accuracy         of classes, or of labels: the mean over labels
    loss             mean cross-entropy of a sample, natural logarithm, for labels of all together
    accuracy_error   at most so far from the truth, by the noise of a server that may have no labels
    loss_error       likewise, with the rounding of the weights
    """

    samples: int
    accuracy: float
    loss: float
    accuracy_error: float
    loss_error: float


@dataclass(frozen=True)
class _Weighted:
    """A figure as a sum: constant + the sum of <w_i, y_i> / scale, within rounding."""

    weights: Int16[np.ndarray, "n classes"]
    constant: float
    scale: float
    rounding: float


def evaluate(
    products: Products,
    ids: Int64[np.ndarray, " n"],
    answers: Float32[np.ndarray, "n classes"],
    *,
    exact: bool,
) -> Evaluated:
    """Compare answers with the encrypted labels of the same samples; asks for two sums.

    exact    the receiver may have every label: its sums are without noise
    Raises   InputError for numbers; BudgetError, FunctionError where a sum is not given
    """
    info = products.info
    if info.targets == "numbers":
        raise InputError(
            f"data set {info.name}: its targets are numbers, whose errors no sum over encrypted "
            "labels tells; compare the answers with them where they are known"
        )
    labelled = info.targets == "labels"
    likely = _labels(answers) if labelled else _classes(answers)
    lossy = _label_loss(answers) if labelled else _class_loss(answers)
    right, right_error = _figure(products, ids, likely, exact=exact)
    lost, lost_error = _figure(products, ids, lossy, exact=exact)
    each = len(ids) * (info.classes if labelled else 1)
    return Evaluated(
        len(ids), right / each, lost / len(ids), right_error / each, lost_error / len(ids)
    )


def _classes(answers: Float32[np.ndarray, "n classes"]) -> _Weighted:
    weights = np.zeros(answers.shape, np.int16)
    weights[np.arange(len(answers)), answers.argmax(axis=1)] = 1
    return _Weighted(weights, 0.0, 1.0, 0.0)


def _labels(answers: Float32[np.ndarray, "n classes"]) -> _Weighted:
    weights = np.where(answers > 0.5, 1, -1).astype(np.int16)
    return _Weighted(weights, float(np.count_nonzero(weights < 0)), 1.0, 0.0)


def _class_loss(answers: Float32[np.ndarray, "n classes"]) -> _Weighted:
    weights = -np.log(_bounded(answers))
    return _rounded(weights, 0.0, most=weights.max(initial=1.0), terms=1)


def _label_loss(answers: Float32[np.ndarray, "n classes"]) -> _Weighted:
    p, q = _bounded(answers), _bounded(1 - answers.astype(np.float64))
    weights = np.log(q) - np.log(p)
    most = np.abs(weights).sum(axis=1).max(initial=1.0)
    return _rounded(weights, float(-np.log(q).sum()), most=most, terms=weights.shape[1])


def _bounded(p: np.ndarray) -> Float64[np.ndarray, "n classes"]:
    return np.maximum(p.astype(np.float64), LEAST_PROBABILITY)


def _rounded(
    weights: Float64[np.ndarray, "n classes"], constant: float, *, most: float, terms: int
) -> _Weighted:
    """Integers for real weights of up to MAX_LOSS, whose sum stays within the ring.

    most     a sample can add to the sum
    terms    of the sum that a sample's label selects
    """
    scale = min(INT16_MAX / MAX_LOSS, ROOM / len(weights) / most)
    rounding = len(weights) * terms / 2 / scale
    return _Weighted(np.rint(weights * scale).astype(np.int16), constant, scale, rounding)


def _figure(
    products: Products, ids: Int64[np.ndarray, " n"], sums: _Weighted, *, exact: bool
) -> tuple[float, float]:
    """The figure, and how far from the truth it is at most."""
    total, noise = 0, 0
    # Alike in size: a sum of few samples would be refused.
    pieces = -(-len(ids) // most_at_once(products.info))
    for places in np.array_split(np.arange(len(ids)), pieces):
        some, weights = ids[places], sums.weights[places]
        total += products.evaluation(some, weights)
        noise += 0 if exact else _largest_noise(products.info, some, weights)
    return sums.constant + total / sums.scale, noise / sums.scale + sums.rounding


def _largest_noise(
    info: DatasetInfo, ids: Int64[np.ndarray, " n"], weights: Int16[np.ndarray, "n classes"]
) -> int:
    shift = label_sums.shift(info, Evaluation(info.name, ids, weights))
    return (1 << shift) // 2
