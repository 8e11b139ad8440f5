"""Findings against the truth: a verdict per attack, and one for the log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from cloister.audit.encrypted.prior import Prior
from cloister.audit.encrypted.run import Finding
from cloister.audit.encrypted.score import Score, score_images, score_labels
from cloister.errors import InputError

Judgement = Literal[
    "not run", "nothing to attack", "not recovered", "not scored", "approximated", "recovered"
]
SEVERITY: tuple[Judgement, ...] = (
    "not run", "nothing to attack", "not recovered", "not scored", "approximated", "recovered",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Truth:
    """What was really encrypted, for scoring: flattened samples by id, labels where known."""

    ids: Int64[np.ndarray, " n"]
    x: Float64[np.ndarray, "n dim"]
    labels: Int64[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        if len(np.unique(self.ids)) != len(self.ids):
            raise InputError("truth: an id occurs twice")
        if len(self.x) != len(self.ids) or len(self.x) == 0:
            raise InputError(f"truth: {len(self.x)} samples for {len(self.ids)} ids")
        if self.labels is not None and len(self.labels) != len(self.ids):
            raise InputError(f"truth: {len(self.labels)} labels for {len(self.ids)} ids")

    def places(self, ids: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Positions of samples in the truth; -1 for those it does not hold."""
        order = np.argsort(self.ids)
        at = np.minimum(np.searchsorted(self.ids[order], ids), len(order) - 1)
        found: Int64[np.ndarray, " m"] = np.where(self.ids[order][at] == ids, order[at], -1)
        return found


@dataclass(frozen=True, eq=False)
class Judged:
    """A finding, its score where the truth is known, and what that means."""

    finding: Finding
    score: Score | None

    @property
    def verdict(self) -> Judgement:
        """By the score; without one, determined samples are recovered whatever they are."""
        if len(self.finding.ids) == 0:
            return "not run"
        if self.score is not None:
            return self.score.verdict
        return "recovered" if self.finding.determined else "not scored"


def judge(finding: Finding, truth: Truth | None, prior: Prior) -> Judged:
    """Score a finding on the samples whose truth is known."""
    if truth is None or len(finding.ids) == 0:
        return Judged(finding, None)
    at = truth.places(finding.ids)
    held = at >= 0
    if not held.any():
        return Judged(finding, None)
    if finding.labels:
        if truth.labels is None:
            return Judged(finding, None)
        found = finding.x[held, 0].astype(np.int64)
        return Judged(finding, score_labels(found, truth.labels[at[held]]))
    known = None if finding.known is None else finding.known[held]
    span = prior.high - prior.low
    score = score_images(
        finding.x[held], truth.x[at[held]], guess=prior.mean, span=span, known=known
    )
    return Judged(finding, score)


def overall(judged: Sequence[Judged]) -> Judgement:
    """The worst verdict of all attacks that had something to work with."""
    return max(("nothing to attack", *(one.verdict for one in judged)), key=SEVERITY.index)
