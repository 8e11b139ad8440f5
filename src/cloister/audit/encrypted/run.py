"""All attacks on one release log, in one list of findings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cloister.audit.encrypted.batch import BatchSolution, gradient_batches, joint_solve
from cloister.audit.encrypted.evidence import EXACT_BITS, Evidence, Group, collect
from cloister.audit.encrypted.lattice import LARGEST_LATTICE, IntegerDecoder, NoisyDecoder
from cloister.audit.encrypted.operands import is_separable, read_label, unpack
from cloister.audit.encrypted.population import learn_prior
from cloister.audit.encrypted.prior import Prior
from cloister.audit.encrypted.solve import box_program, linear_solve, prior_estimate
from cloister.errors import RangeError, ShapeError
from cloister.wire.releases import Release

LARGEST_SAMPLE = 4096
"""Elements of the largest sample whose equations are written out as a matrix."""

ATTACKS = (
    "linear solve", "box program", "public prior", "learned prior", "integer decoding",
    "packed keys", "gradient batches", "joint solve", "labels",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Finding:
    """What one attack made of the log.

    x            reconstructed samples, flattened; or labels (n,) when `labels` is set
    known        the elements the attack claims to know; None when it claims all or guesses
    determined   the releases admit no other samples: recovered, whatever the truth is
    note         what the attack had to work with, or why it did not run (then `ids` is empty)
    """

    attack: str
    ids: Int64[np.ndarray, " n"]
    x: Float64[np.ndarray, "n dim"]
    note: str
    labels: bool = False
    known: Bool[np.ndarray, "n dim"] | None = None
    determined: bool = False


def run_attacks(
    releases: Iterable[Release],
    prior: Prior,
    *,
    samples: int = 16,
    steps: int = 256,
    largest_lattice: int = LARGEST_LATTICE,
    value_bits: int = EXACT_BITS,
) -> tuple[Evidence | None, list[Finding]]:
    """Run every attack; without releases nothing can be attacked and the list says so.

    samples, steps    as `collect`
    largest_lattice   elements of the largest sample that integer decoding is tried on: it takes a
                      second for 30, a minute for 64
    value_bits        bits to which the authority blurred each value; 32: they are exact
    Raises   ShapeError when the prior describes samples of another shape; as `collect`
    """
    evidence = collect(releases, samples=samples, steps=steps)
    if evidence is None:
        return None, [_none(name, prior, "no releases: the server saw nothing") for name in ATTACKS]
    if evidence.shape != prior.shape:
        raise ShapeError(
            f"release log: samples of shape {evidence.shape}, but the images given have "
            f"{prior.shape}"
        )
    findings = {
        finding.attack: finding
        for finding in _findings(evidence, prior, largest_lattice, value_bits)
    }
    missing = "no releases it could use"
    return evidence, [findings.get(name) or _none(name, prior, missing) for name in ATTACKS]


def _none(attack: str, prior: Prior, note: str) -> Finding:
    return Finding(attack, np.zeros(0, np.int64), np.zeros((0, prior.dim)), note)


def _findings(evidence: Evidence, prior: Prior, lattice: int, value_bits: int) -> Iterator[Finding]:
    if prior.dim <= LARGEST_SAMPLE:
        bound = max(abs(prior.low), abs(prior.high))
        groups = evidence.groups(limit=4 * prior.dim, bound=bound, value_bits=value_bits)
        if groups:
            yield from _single_samples(groups, prior, lattice)
    batches = gradient_batches(evidence.releases, prior)
    if batches is not None:
        rank = f"rank {batches.rank} of {len(batches.ids)} samples"
        yield _batch("gradient batches", batches, rank)
    joined = joint_solve(evidence.releases, prior)
    if joined is not None:
        yield _batch("joint solve", joined, f"{len(evidence.releases)} releases together")
    if evidence.labels:
        yield _labels(evidence)


def _batch(attack: str, found: BatchSolution, note: str) -> Finding:
    return Finding(attack, found.ids, found.x, note, determined=found.determined)


def _labels(evidence: Evidence) -> Finding:
    ids = np.concatenate([ids for ids, _ in evidence.labels])
    labels = np.concatenate([read_label(values) for _, values in evidence.labels])
    kept, first = np.unique(ids, return_index=True)
    x = labels[first].astype(np.float64)[:, None]
    return Finding("labels", kept, x, f"{len(kept)} samples", labels=True, determined=True)


def _single_samples(groups: list[Group], prior: Prior, lattice: int) -> Iterator[Finding]:
    ids = np.concatenate([group.ids for group in groups])
    solved = [linear_solve(group.rows, group.answers, prior) for group in groups]
    least = min(found.rank for found in solved)
    determined = least == prior.dim and not any(group.width for group in groups)
    x = np.concatenate([found.x for found in solved])
    yield Finding("linear solve", ids, x, f"rank {least} of {prior.dim}", determined=determined)
    yield from _packed(groups, ids, prior)
    if determined:
        note = "not needed: the linear solve is exact"
        for name in ("box program", "public prior", "learned prior", "integer decoding"):
            yield _none(name, prior, note)
        return
    yield _box(groups, ids, prior)
    yield _estimate(groups, ids, prior)
    learned = learn_prior(groups, prior)
    if learned is not None:
        x = np.concatenate(
            [prior_estimate(g.rows, g.answers, learned, width=g.width) for g in groups]
        )
        note = f"mean and covariance learned from {len(groups)} different keys"
        yield Finding("learned prior", ids, x, note)
    if prior.dim > lattice:
        note = f"not tried: this search takes at most {lattice} elements, not {prior.dim}"
        yield _none("integer decoding", prior, note)
    else:
        yield _integers(groups, ids, prior)


def _box(groups: list[Group], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    found = [
        box_program(group.rows, answers, prior, width=group.width)
        for group in groups
        for answers in group.answers.T
    ]
    kept = [i for i, x in enumerate(found) if x is not None]
    x = np.array([found[i] for i in kept], np.float64).reshape(-1, prior.dim)
    note = f"range {prior.low:g}..{prior.high:g}, least variation; {len(kept)} of {len(ids)} solved"
    return Finding("box program", ids[kept], x, note)


def _estimate(groups: list[Group], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    if prior.covariance is None:
        return _none("public prior", prior, "needs public images of the same kind")
    x = np.concatenate(
        [prior_estimate(group.rows, group.answers, prior, width=group.width) for group in groups]
    )
    return Finding("public prior", ids, x, "Gaussian fitted to public images")


def _integers(groups: list[Group], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    found: list[Int64[np.ndarray, " dim"] | None] = []
    for group in groups:
        if group.width:
            noisy = NoisyDecoder(group.rows.astype(np.int64), prior, width=group.width)
            found += [noisy.decode(answers) for answers in group.answers.T]
            continue
        try:
            decoder = IntegerDecoder(group.rows.astype(np.int64), prior)
        except RangeError:
            found += [None] * len(group.ids)
            continue
        found += [decoder.decode(answers) for answers in group.answers.T.astype(np.int64)]
    kept = [i for i, x in enumerate(found) if x is not None]
    x = np.array([found[i] for i in kept], np.float64).reshape(-1, prior.dim)
    how = "nearest to" if any(group.width for group in groups) else "with"
    note = f"integer points {how} all answers: {len(kept)} of {len(ids)} found"
    return Finding("integer decoding", ids[kept], x, note)


def _packed(groups: list[Group], ids: Int64[np.ndarray, " n"], prior: Prior) -> Iterator[Finding]:
    low, high = int(prior.low), int(prior.high)
    x = np.tile(prior.mean, (len(ids), 1))
    known = np.zeros(x.shape, bool)
    offset = 0
    for group in groups:
        rows = group.rows.astype(np.int64)
        for row, answers in zip(rows, group.answers.astype(np.int64), strict=True):
            used = np.flatnonzero(row)
            weights = row[used].tolist()
            if not len(used) or not is_separable(weights, low=low, high=high):
                continue
            for i, answer in enumerate(answers.tolist()):
                x[offset + i, used] = unpack(weights, answer, low=low, high=high)
                known[offset + i, used] = True
        offset += len(group.ids)
    if known.any():
        most = int(known.sum(axis=1).max())
        note = f"{most} of {prior.dim} elements read from single answers"
        yield Finding("packed keys", ids, x, note, known=known, determined=bool(known.all()))
