"""The truth that scores are taken against, and whether it can be the truth of a log at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from cloister.audit.training.batch_solver import evaluate
from cloister.audit.training.evidence import Evidence, noise_width
from cloister.audit.training.operands import read_label
from cloister.audit.training.prior import Prior
from cloister.authority.noise import EXACT_BITS
from cloister.errors import InputError

ORDER = (
    "give the file that `cloister data encrypt --order` wrote, or plain data with its scale and "
    "offset as --truth and that file as --order"
)
LEAST_BITS = 4
"""Noise that leaves fewer bits explains any truth and is no explanation."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The encrypted data in plain, for scoring: flattened samples by id, labels where known.

    labels   class numbers; or rows of labels or encoded numbers
    """

    ids: Int64[np.ndarray, " n"]
    x: Float64[np.ndarray, "n dim"]
    labels: Int64[np.ndarray, "n ..."] | None = None

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


def check_truth(evidence: Evidence, truth: Truth, prior: Prior, *, value_bits: int) -> None:
    """Refuse a truth that is not of the log's samples: a score against it would say nothing.

    Raises   InputError that says what to give
    """
    outside = (truth.x < prior.low) | (truth.x > prior.high)
    if outside.any():
        raise InputError(
            f"truth: holds {truth.x[outside][0]:g}, and --range is {prior.low:g} to "
            f"{prior.high:g}: give the encoding's range, or {ORDER}"
        )
    followed = np.array(list(evidence.forward or evidence.seen), np.int64)
    if not (truth.places(followed) >= 0).any():
        raise InputError(
            f"truth: holds none of the {len(followed)} samples under attack (such as "
            f"{int(followed[0])}): {ORDER}"
        )
    _check_values(evidence, truth, prior, value_bits)
    if value_bits == EXACT_BITS:
        _check_sums(evidence, truth)
    if truth.labels is not None:
        _check_labels(evidence, truth, truth.labels)


def _check_values(evidence: Evidence, truth: Truth, prior: Prior, value_bits: int) -> None:
    """The released values of every followed sample, but for the noise that the authority adds."""
    bound = max(abs(prior.low), abs(prior.high))
    for group in evidence.groups(limit=256, bound=bound, value_bits=value_bits):
        at = truth.places(group.ids)
        held = at >= 0
        apart = np.abs(group.rows @ truth.x[at[held]].T - group.answers[:, held])
        worst = float(apart.max(initial=0.0))
        if worst <= group.width / 2 + 0.5:
            continue
        sample = int(group.ids[held][int(apart.max(axis=0).argmax())])
        fits = [
            bits
            for bits in range(LEAST_BITS, value_bits)
            if worst <= noise_width(group.rows, bound=bound, value_bits=bits) / 2 + 0.5
        ]
        hint = f"--value-bits {fits[-1]}, if the authority added noise; else " if fits else ""
        raise InputError(
            f"truth: the values released of sample {sample} are not those of its truth: give "
            f"{hint}the samples as they were encrypted: {ORDER}"
        )


def _check_sums(evidence: Evidence, truth: Truth) -> None:
    for release in evidence.releases:
        at = truth.places(release.ids)
        if release.kind != "gradient" or (at < 0).any():
            continue
        if not np.array_equal(evaluate(release, truth.x[at]), release.values.reshape(-1)):
            raise InputError(
                f"truth: a gradient of samples such as {int(release.ids[0])} is not that of their "
                f"truth: {ORDER}"
            )


def _check_labels(evidence: Evidence, truth: Truth, labels: Int64[np.ndarray, "n ..."]) -> None:
    """Classes are permuted, so that each one has one name in the log and each name one class."""
    if labels.ndim == 2:
        _check_targets(evidence, truth, labels)
        return
    pairs: set[tuple[int, int]] = set()
    for ids, values in evidence.labels:
        at = truth.places(ids)
        held = at >= 0
        named: Sequence[int] = read_label(values)[held].tolist()
        pairs.update(zip(named, labels[at[held]].tolist(), strict=True))
    if any(len({pair[side] for pair in pairs}) < len(pairs) for side in (0, 1)):
        raise InputError(f"truth: the log's classes are not those of y, however named: {ORDER}")


def _check_targets(evidence: Evidence, truth: Truth, targets: Int64[np.ndarray, "n k"]) -> None:
    """Labels are permuted, numbers are not: each column of the log is one of the truth."""
    for ids, values in evidence.labels:
        at = truth.places(ids)
        held = at >= 0
        real = targets[at[held]]
        fits = values.shape[1] == real.shape[1] and all(
            (column[:, None] == real).all(axis=0).any() for column in values[held].T
        )
        if not fits:
            raise InputError(f"truth: the log's labels are not those of y, in any order: {ORDER}")
