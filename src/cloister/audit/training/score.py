"""Scores and verdicts: how close a reconstruction is, against guessing without the transcript.

An attack has *recovered* images when they are within 30 dB of the truth and 10 dB better than the
best guess; *approximated* when they are 3 dB better (half the error power: a picture people may
recognise); and labels when three quarters of the best guess's errors are right, or one quarter.
Thresholds are relative to a guess, so that an easy data set fakes no success and a hard one hides
none.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import linear_sum_assignment

Verdict = Literal["recovered", "approximated", "not recovered"]

RECOVERED_DB = 30.0
RECOVERED_GAIN_DB = 10.0
APPROXIMATED_GAIN_DB = 3.0
RECOVERED_LABELS = 0.75
APPROXIMATED_LABELS = 0.25
HIGHEST_DB = 99.0


@dataclass(frozen=True)
class Score:
    """How an attack did; `unit` says in what `value` and `guess` are.

    recovered   of `samples`, those that are recovered by the same rule when each is judged alone;
                of labels, those that are right under the best renaming
    """

    value: float
    guess: float
    exact: float
    unit: Literal["dB", "labels"]
    samples: int
    recovered: int

    @property
    def verdict(self) -> Verdict:
        """The stated thresholds, applied."""
        if self.unit == "labels":
            gain = (self.value - self.guess) / max(1.0 - self.guess, 1e-9)
            if gain >= RECOVERED_LABELS:
                return "recovered"
            return "approximated" if gain >= APPROXIMATED_LABELS else "not recovered"
        if is_recovered(self.value, self.guess):
            return "recovered"
        gain = self.value - self.guess
        return "approximated" if gain >= APPROXIMATED_GAIN_DB else "not recovered"


def is_recovered(value_db: float, guess_db: float) -> bool:
    """Whether a picture is the truth for all purposes, and the guess was not."""
    return value_db >= RECOVERED_DB and value_db - guess_db >= RECOVERED_GAIN_DB


def psnr_db(guess: np.ndarray, truth: np.ndarray, *, span: float) -> float:
    """Peak signal-to-noise ratio over all images, at most 99 dB (exact)."""
    error = float(np.mean((np.float64(guess) - truth) ** 2))
    if error == 0.0:
        return HIGHEST_DB
    return min(HIGHEST_DB, 10.0 * math.log10(span**2 / error))


def score_images(
    found: Float64[np.ndarray, "n dim"],
    truth: Float64[np.ndarray, "n dim"],
    *,
    guess: Float64[np.ndarray, " dim"],
    span: float,
    known: Bool[np.ndarray, "n dim"] | None = None,
    loose: bool = False,
) -> Score:
    """Reconstructions against the truth and against the best guess without the transcript.

    The guess is the better one of the attacker's prior mean and, for every sample, the mean of the
    other ones' truth, so that a success is never owed to a poor guess, nor hidden by a guess that
    knows the answer. `known` restricts everything to the elements that the attack claims to know.
    `loose` grants factor and offset of every sample to both.
    """
    used = np.ones(truth.shape, bool) if known is None else known
    guesses = [np.broadcast_to(guess, truth.shape)]
    if len(truth) > 1:
        guesses.append((truth.sum(axis=0) - truth) / (len(truth) - 1))
    if loose:
        found, *guesses = (fitted(one, truth) for one in (found, *guesses))

    def decibels(one: np.ndarray, mask: np.ndarray) -> float:
        return psnr_db(one[mask], truth[mask], span=span)

    each = np.zeros_like(used)
    recovered = 0
    for i in np.flatnonzero(used.all(axis=1)):
        each[i] = True
        best = max(decibels(one, each) for one in guesses)
        recovered += is_recovered(decibels(found, each), best)
        each[i] = False
    return Score(
        value=decibels(found, used),
        guess=max(decibels(one, used) for one in guesses),
        exact=float(np.mean(np.abs(found - truth)[used] < 0.5)),
        unit="dB",
        samples=len(truth),
        recovered=recovered,
    )


def fitted(
    found: Float64[np.ndarray, "n dim"], truth: Float64[np.ndarray, "n dim"]
) -> Float64[np.ndarray, "n dim"]:
    """Every row with the factor and the offset that bring it nearest to the truth's row."""
    mean = truth.mean(axis=1, keepdims=True)
    centred = found - found.mean(axis=1, keepdims=True)
    power = np.maximum((centred**2).sum(axis=1, keepdims=True), 1e-300)
    factors = (centred * (truth - mean)).sum(axis=1, keepdims=True) / power
    return np.asarray(mean + factors * centred, np.float64)


def score_labels(found: Int64[np.ndarray, " n"], truth: Int64[np.ndarray, " n"]) -> Score:
    """Labels up to the data set's secret permutation, against always saying the majority.

    The server sees classes under a permutation that it undoes with a handful of known samples, so
    the score is that of the best renaming.
    """
    classes = int(max(found.max(initial=0), truth.max(initial=0))) + 1
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (found, truth), 1)
    rows, columns = linear_sum_assignment(-confusion)
    hits = int(confusion[rows, columns].sum())
    return Score(
        value=hits / len(truth),
        guess=float(np.bincount(truth).max() / len(truth)),
        exact=float(np.mean(found == truth)),
        unit="labels",
        samples=len(truth),
        recovered=hits,
    )


def score_targets(found: Int64[np.ndarray, "n k"], truth: Int64[np.ndarray, "n k"]) -> Score:
    """Rows of labels or numbers up to their order, against always saying each one's commonest."""
    equal = (found[:, :, None] == truth[:, None, :]).sum(axis=0)
    rows, columns = linear_sum_assignment(-equal)
    hits, cells = int(equal[rows, columns].sum()), truth.size
    commonest = sum(int(np.unique(column, return_counts=True)[1].max()) for column in truth.T)
    return Score(
        value=hits / cells,
        guess=commonest / cells,
        exact=float(np.mean(found == truth)),
        unit="labels",
        samples=cells,
        recovered=hits,
    )
