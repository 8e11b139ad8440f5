"""Membership inference: was a sample in the victim's training set?

Both attacks read the victim's answer for a sample whose class the attacker knows. The threshold
attack takes a small loss for membership (Yeom et al., CSF 2018). The likelihood ratio, without
shadow models, asks how improbable the confidence would be for a sample of the same class from
outside: a Gaussian fitted to the thief's own samples under the victim's labels (after Carlini et
al., S&P 2022). A label alone leaves one attack: members are those that the victim classifies
rightly.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

FALSE_POSITIVES = 0.01
LEAST = 1e-12
"""Of a probability whose logarithm is taken."""
NORMAL_QUANTILE = 1.959964


@dataclass(frozen=True)
class Membership:
    """One attack: area under its ROC curve with a 95 % interval (Hanley and McNeil, 1982).

    at_low_false_positives   share of members found at a false positive rate of 1 %
    """

    attack: str
    auc: float
    low: float
    high: float
    at_low_false_positives: float


def membership(
    attack: str, members: Float64[np.ndarray, " m"], others: Float64[np.ndarray, " n"]
) -> Membership:
    """How well scores separate members from others; larger scores are taken for membership."""
    found = auc(members, others)
    inside, outside = len(members), len(others)
    both, twice = found / (2 - found), 2 * found**2 / (1 + found)
    variance = found * (1 - found) + (inside - 1) * (both - found**2)
    variance = (variance + (outside - 1) * (twice - found**2)) / (inside * outside)
    half = NORMAL_QUANTILE * math.sqrt(max(variance, 0.0))
    threshold = np.quantile(others, 1 - FALSE_POSITIVES, method="higher")
    return Membership(
        attack, found, max(found - half, 0.0), min(found + half, 1.0),
        float((members > threshold).mean()),
    )  # fmt: skip


def auc(members: Float64[np.ndarray, " m"], others: Float64[np.ndarray, " n"]) -> float:
    """The probability that a member scores higher than another sample; ties count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    return float(below.mean() / (2 * len(others)))


def confidence(
    answers: Float[np.ndarray, "n c"], classes: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Log odds of a sample's own class."""
    own = answers[np.arange(len(classes)), classes].astype(np.float64)
    rest = answers.sum(axis=1, dtype=np.float64) - own
    return np.asarray(np.log(np.maximum(own, LEAST)) - np.log(np.maximum(rest, LEAST)))


def loss_scores(
    answers: Float[np.ndarray, "n c"], classes: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Minus the loss."""
    own = answers[np.arange(len(classes)), classes].astype(np.float64)
    return np.asarray(np.log(np.maximum(own, LEAST)))


def label_scores(
    answers: Float[np.ndarray, "n c"], classes: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """One where the victim is right."""
    right: Bool[np.ndarray, " n"] = answers.argmax(axis=1) == classes
    return right.astype(np.float64)


def ratio_scores(
    answers: Float[np.ndarray, "n c"],
    classes: Int64[np.ndarray, " n"],
    outside: Float[np.ndarray, "m c"],
) -> Float64[np.ndarray, " n"]:
    """Standard deviations by which a confidence exceeds that of its class outside."""
    labels = outside.argmax(axis=1)
    known = confidence(outside, labels)
    means = np.full(answers.shape[1], known.mean())
    deviations = np.full(answers.shape[1], max(float(known.std()), LEAST))
    for one in range(answers.shape[1]):
        chosen = known[labels == one]
        if len(chosen) > 1 and chosen.std() > 0:
            means[one], deviations[one] = chosen.mean(), chosen.std()
    return np.asarray((confidence(answers, classes) - means[classes]) / deviations[classes])
