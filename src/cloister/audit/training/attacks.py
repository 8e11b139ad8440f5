"""All attacks on one release log, in one list of findings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cloister.audit.training.batch_solver import (
    LARGEST_JOINT,
    BatchSolution,
    gradient_batches,
    joint_solve,
)
from cloister.audit.training.differences import (
    SampleGuess,
    Update,
    from_output_gradients,
    from_weights,
    updates,
)
from cloister.audit.training.evidence import AnswerGroup, Evidence, collect
from cloister.audit.training.lattice import LARGEST_LATTICE, IntegerDecoder, NoisyDecoder
from cloister.audit.training.operands import is_separable, read_label, unpack
from cloister.audit.training.population import (
    FEWEST_GROUPS,
    LARGEST_POPULATION,
    learn_prior,
)
from cloister.audit.training.prior import Prior
from cloister.audit.training.solve import box_program, linear_solve, prior_estimate
from cloister.authority.noise import EXACT_BITS
from cloister.authority.request_log import Release
from cloister.errors import RangeError, ShapeError

LARGEST_SAMPLE = 4096
"""Elements of the largest sample whose equations are written out as a matrix."""

SINGLE = (
    "linear solve", "box program", "public prior", "learned prior", "integer decoding",
    "packed keys",
)  # fmt: skip
ATTACKS = (
    *SINGLE, "gradient batches", "joint solve", "labels", "weight differences", "output gradients"
)  # fmt: skip

State = Literal["ran", "not attempted", "nothing to attack"]


@dataclass(frozen=True, eq=False)
class Finding:
    """What one attack made of the log.

    x            reconstructed samples, flattened; or labels (n,) when `labels` is set
    targets      what the log holds of labels, a row of integers for each sample
    known        the elements the attack claims to know; None when it claims all or guesses
    certain      elements of which the log admits no other values: recovered, whatever the truth is
    among        of an attack that knows samples up to factor and offset: for each row, those ids
                 that it may be
    note         what the attack had to work with, or why it did not run
    state        not attempted: a limit or a missing input kept the attack from running; nothing to
                 attack: the log holds nothing of the kind that it uses. `ids` is empty then
    """

    attack: str
    ids: Int64[np.ndarray, " n"]
    x: Float64[np.ndarray, "n dim"]
    note: str
    labels: bool = False
    targets: Int64[np.ndarray, "n classes"] | None = None
    known: Bool[np.ndarray, "n dim"] | None = None
    certain: Bool[np.ndarray, "n dim"] | None = None
    among: tuple[Int64[np.ndarray, " m"], ...] | None = None
    state: State = "ran"

    @property
    def determined(self) -> bool:
        """Whether the log admits no other values of some sample."""
        return self.certain is not None and bool(self.certain.all(axis=1).any())


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
    value_bits        bits that the authority's noise leaves of each value; 32: they are exact
    Raises   ShapeError when the prior describes samples of another shape; as `collect`
    """
    evidence = collect(releases, samples=samples, steps=steps)
    if evidence is None:
        return None, [_nothing(name, prior, "the log is empty") for name in ATTACKS]
    if evidence.shape != prior.shape:
        raise ShapeError(
            f"release log: samples of shape {evidence.shape}, but the images given have "
            f"{prior.shape}"
        )
    findings = {
        finding.attack: finding
        for finding in _findings(evidence, prior, largest_lattice, value_bits)
    }
    missing = "the log holds nothing of the kind it uses"
    return evidence, [findings.get(name) or _nothing(name, prior, missing) for name in ATTACKS]


def _none(attack: str, prior: Prior, note: str, state: State = "not attempted") -> Finding:
    return Finding(attack, np.zeros(0, np.int64), np.zeros((0, prior.dim)), note, state=state)


def _nothing(attack: str, prior: Prior, note: str) -> Finding:
    return _none(attack, prior, note, "nothing to attack")


def _findings(evidence: Evidence, prior: Prior, lattice: int, value_bits: int) -> Iterator[Finding]:
    if prior.dim > LARGEST_SAMPLE:
        note = f"samples of {prior.dim} elements; at most {LARGEST_SAMPLE} are written out"
        yield from (_none(name, prior, note) for name in SINGLE if evidence.forward)
    elif evidence.forward:
        bound = max(abs(prior.low), abs(prior.high))
        groups = evidence.groups(limit=4 * prior.dim, bound=bound, value_bits=value_bits)
        yield from _single_samples(groups, prior, lattice)
    if evidence.releases:
        yield from _joined(evidence, prior)
    if evidence.labels:
        yield _labels(evidence)
    if evidence.requests:
        yield from _requests(evidence.requests, prior)


def _joined(evidence: Evidence, prior: Prior) -> Iterator[Finding]:
    batches = gradient_batches(evidence.releases, prior)
    if batches is not None:
        rank = f"rank {batches.rank} of {len(batches.ids)} samples"
        yield _batch("gradient batches", batches, rank)
    elif any(release.kind == "gradient" for release in evidence.releases):
        yield _none("gradient batches", prior, "this attack knows dense layers only")
    joined = joint_solve(evidence.releases, prior)
    if joined is None:
        note = f"one batch alone has more than {LARGEST_JOINT:,} unknowns"
        yield _none("joint solve", prior, note)
    else:
        yield _batch("joint solve", joined, f"{len(evidence.releases)} releases together")


def _batch(attack: str, found: BatchSolution, note: str) -> Finding:
    certain = np.full(found.x.shape, found.determined)
    return Finding(attack, found.ids, found.x, note, certain=certain)


def _labels(evidence: Evidence) -> Finding:
    ids = np.concatenate([ids for ids, _ in evidence.labels])
    targets = np.concatenate([values for _, values in evidence.labels])
    kept, first = np.unique(ids, return_index=True)
    targets = targets[first]
    x = read_label(targets).astype(np.float64)[:, None]
    note, certain = f"{len(kept)} samples", np.ones(x.shape, bool)
    return Finding("labels", kept, x, note, labels=True, targets=targets, certain=certain)


def _requests(requests: Sequence[Release], prior: Prior) -> Iterator[Finding]:
    """The findings of a host, or of the authority, from the requests that it received."""
    names = ["weight differences"]
    if any(request.kind == "gradient request" for request in requests):
        names.append("output gradients")
    functions = [r for r in requests if r.kind == "forward request"]
    moved = updates(requests)
    if len({(r.geometry, r.functional.tobytes()) for r in functions}) == 1:
        # The log does not say where its function is from: one trained before depends on samples.
        note = (
            "one function for all samples: nothing that was asked depends on a sample if that one "
            "is public, as a projection is"
        )
        what = _nothing if len(names) == 1 else _none
        yield from (what(name, prior, note) for name in names)
    elif not moved:
        note = "this attack knows dense first layers only"
        yield from (_none(name, prior, note) for name in names)
    else:
        yield _guesses("weight differences", from_weights(moved), moved, prior)
        if len(names) > 1:
            yield _by_output_gradients(moved, prior)


def _by_output_gradients(moved: Sequence[Update], prior: Prior) -> Finding:
    found = from_output_gradients(moved)
    if found:
        return _guesses("output gradients", found, moved, prior)
    note = "no update is a sum of gradients: batches wider than the layer, or not SGD"
    return _none("output gradients", prior, note)


def _guesses(
    attack: str, found: Sequence[SampleGuess], moved: Sequence[Update], prior: Prior
) -> Finding:
    """Samples up to factor and offset, stretched over the range to be looked at."""
    x = np.array([guess.x for guess in found]).reshape(-1, prior.dim)
    low, high = x.min(axis=1, initial=np.inf), x.max(axis=1, initial=-np.inf)
    unit = (x - low[:, None]) / np.maximum(high - low, 1e-300)[:, None]
    sure = np.array([guess.determined for guess in found], bool)
    batches = sorted({len(update.ids) for update in moved})
    sizes = f"{batches[0]}" if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
    return Finding(
        attack,
        np.array([guess.ids[0] for guess in found], np.int64),
        prior.low + unit * (prior.high - prior.low),
        f"{len(found)} samples, up to factor and offset, of {len(moved)} updates by batches of "
        f"{sizes}; SGD is assumed",
        certain=np.repeat(sure[:, None], prior.dim, axis=1),
        among=tuple(guess.ids for guess in found),
    )


def _single_samples(groups: list[AnswerGroup], prior: Prior, lattice: int) -> Iterator[Finding]:
    ids = np.concatenate([group.ids for group in groups])
    solved = [linear_solve(group.rows, group.answers, prior) for group in groups]
    least = min(found.rank for found in solved)
    certain = np.concatenate(
        [
            np.repeat((one.determined & (group.width == 0))[None], len(group.ids), axis=0)
            for one, group in zip(solved, groups, strict=True)
        ]
    )
    x = np.concatenate([found.x for found in solved])
    note = f"rank {least} of {prior.dim}"
    if certain.any() and not certain.all():
        note += f"; {certain.mean():.0%} of all elements determined"
    yield Finding("linear solve", ids, x, note, certain=certain)
    yield _packed(groups, ids, prior)
    if certain.all():
        note = "not needed: the linear solve is exact"
        for name in ("box program", "public prior", "learned prior", "integer decoding"):
            yield _none(name, prior, note)
        return
    yield _box(groups, ids, prior)
    yield _estimate(groups, ids, prior)
    yield _learned(groups, ids, prior)
    if prior.dim > lattice:
        note = f"not tried: this search takes at most {lattice} elements, not {prior.dim}"
        yield _none("integer decoding", prior, note)
    else:
        yield _integers(groups, ids, prior)


def _learned(groups: list[AnswerGroup], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    if prior.dim > LARGEST_POPULATION:
        note = f"samples of {prior.dim} elements; at most {LARGEST_POPULATION} are learned from"
        return _none("learned prior", prior, note)
    learned = learn_prior(groups, prior)
    if learned is None:
        note = f"{len(groups)} different keys; it takes {FEWEST_GROUPS} (raise --samples)"
        return _none("learned prior", prior, note)
    x = np.concatenate([prior_estimate(g.rows, g.answers, learned, width=g.width) for g in groups])
    note = f"mean and covariance learned from {len(groups)} different keys"
    return Finding("learned prior", ids, x, note)


def _box(groups: list[AnswerGroup], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    found = [
        box_program(group.rows, answers, prior, width=group.width)
        for group in groups
        for answers in group.answers.T
    ]
    kept = [i for i, x in enumerate(found) if x is not None]
    x = np.array([found[i] for i in kept], np.float64).reshape(-1, prior.dim)
    note = f"range {prior.low:g}..{prior.high:g}, least variation; {len(kept)} of {len(ids)} solved"
    if not kept:
        return _none("box program", prior, f"{note}: too large, too slow, or --range is wrong")
    return Finding("box program", ids[kept], x, note)


def _estimate(groups: list[AnswerGroup], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    if prior.covariance is None:
        return _none("public prior", prior, "needs public images of the same kind")
    x = np.concatenate(
        [prior_estimate(group.rows, group.answers, prior, width=group.width) for group in groups]
    )
    return Finding("public prior", ids, x, "Gaussian fitted to public images")


def _integers(groups: list[AnswerGroup], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    found: list[Int64[np.ndarray, " dim"] | None] = []
    refused = ""
    for group in groups:
        if group.width:
            noisy = NoisyDecoder(group.rows.astype(np.int64), prior, width=group.width)
            found += [noisy.decode(answers) for answers in group.answers.T]
            continue
        try:
            decoder = IntegerDecoder(group.rows.astype(np.int64), prior)
        except RangeError as error:
            refused = str(error)
            found += [None] * len(group.ids)
            continue
        found += [decoder.decode(answers) for answers in group.answers.T.astype(np.int64)]
    kept = [i for i, x in enumerate(found) if x is not None]
    x = np.array([found[i] for i in kept], np.float64).reshape(-1, prior.dim)
    how = "nearest to" if any(group.width for group in groups) else "with"
    if refused and not kept:
        return _none("integer decoding", prior, refused)
    note = f"integer points {how} all answers: {len(kept)} of {len(ids)} found"
    return Finding("integer decoding", ids[kept], x, note)


def _packed(groups: list[AnswerGroup], ids: Int64[np.ndarray, " n"], prior: Prior) -> Finding:
    low, high = int(prior.low), int(prior.high)
    x = np.tile(prior.mean, (len(ids), 1))
    known = np.zeros(x.shape, bool)
    offset = 0
    for group in groups:
        rows = group.rows.astype(np.int64)
        for row, answers in zip(rows, group.answers.astype(np.int64), strict=True):
            used = np.flatnonzero(row)
            weights = row[used].tolist()
            separable = len(used) and is_separable(weights, low=low, high=high)
            if not separable or group.width:
                continue  # noise takes the small ones of what is packed
            for i, answer in enumerate(answers.tolist()):
                x[offset + i, used] = unpack(weights, answer, low=low, high=high)
                known[offset + i, used] = True
        offset += len(group.ids)
    if not known.any():
        return Finding("packed keys", ids[:0], x[:0], "no answer names several elements")
    most = int(known.sum(axis=1).max())
    note = f"{most} of {prior.dim} elements read from single answers"
    return Finding("packed keys", ids, x, note, known=known, certain=known)
