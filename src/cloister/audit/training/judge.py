"""Findings against the truth: a verdict per attack, and one for the log."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from cloister.audit.training.attacks import Finding
from cloister.audit.training.prior import Prior
from cloister.audit.training.score import Score, fitted, score_images, score_labels, score_targets
from cloister.audit.training.truth import ORDER, Truth
from cloister.errors import InputError

Judgement = Literal[
    "nothing to attack", "not attempted", "not recovered", "not scored", "approximated", "recovered"
]
SEVERITY: tuple[Judgement, ...] = (
    "nothing to attack", "not attempted", "not recovered", "not scored", "approximated", "recovered"
)  # fmt: skip
SAME = 0.999
"""Correlation from which two samples are the same up to factor and offset."""
ALIKE = 0.9


@dataclass(frozen=True, eq=False)
class Judged:
    """A finding, its score where the truth is known, and what that means."""

    finding: Finding
    score: Score | None

    @property
    def verdict(self) -> Judgement:
        """Data that the log determines are recovered for any truth; otherwise by the score."""
        finding = self.finding
        if finding.state != "ran":
            return finding.state
        if finding.determined:
            return "recovered"
        found: Judgement = "not scored"
        if self.score is not None:
            found = self.score.verdict
        elif not len(finding.ids):
            found = "not recovered"
        some = finding.certain is not None and finding.certain.any()
        return max(found, "approximated", key=SEVERITY.index) if some else found


def judge(finding: Finding, truth: Truth | None, prior: Prior) -> Judged:
    """Score a finding on the samples whose truth is known.

    Raises   InputError when it shows that the truth is of other samples
    """
    if truth is None or len(finding.ids) == 0:
        return Judged(finding, None)
    if finding.among is not None:
        return _loose(finding, truth, prior)
    at = truth.places(finding.ids)
    held = at >= 0
    if not held.any():
        return Judged(finding, None)
    if finding.labels:
        if truth.labels is None:
            return Judged(finding, None)
        real = truth.labels[at[held]]
        if real.ndim == 2 and finding.targets is not None:
            return Judged(finding, score_targets(finding.targets[held], real))
        return Judged(finding, score_labels(finding.x[held, 0].astype(np.int64), real))
    known = None if finding.known is None else finding.known[held]
    span = prior.high - prior.low
    score = score_images(
        finding.x[held], truth.x[at[held]], guess=prior.mean, span=span, known=known
    )
    return Judged(finding, score)


def _loose(finding: Finding, truth: Truth, prior: Prior) -> Judged:
    """Score samples that are known up to factor and offset, each as the best of those it may be."""
    places, rows = [], []
    alike = np.abs(_unit(finding.x) @ _unit(truth.x).T)
    for i, ids in enumerate(finding.among or ()):
        held = truth.places(ids)
        held = held[held >= 0]
        if not len(held):
            continue
        best = int(held[np.argmax(alike[i, held])])
        elsewhere = alike[i].max() > SAME and alike[i, best] < ALIKE
        sure = finding.certain is not None and finding.certain[i].all()
        if elsewhere or (sure and alike[i, best] < ALIKE):
            raise InputError(
                f"truth: sample {int(truth.ids[best])} of the log is another one; {ORDER}"
            )
        places.append(best)
        rows.append(i)
    if not places:
        return Judged(finding, None)
    real = truth.x[places]
    span = prior.high - prior.low
    score = score_images(finding.x[rows], real, guess=prior.mean, span=span, loose=True)
    x, ids = finding.x.copy(), finding.ids.copy()
    x[rows], ids[rows] = fitted(finding.x[rows], real), truth.ids[places]
    return Judged(replace(finding, x=x, ids=ids), score)


def _unit(x: Float64[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n dim"]:
    centred = x - x.mean(axis=1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-300)
    return np.asarray(centred / lengths, np.float64)


def overall(judged: Sequence[Judged]) -> Judgement:
    """The worst verdict of all attacks."""
    return max(("nothing to attack", *(one.verdict for one in judged)), key=SEVERITY.index)
