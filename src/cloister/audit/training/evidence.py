"""Evidence: the releases of a log, sorted by the samples that they concern."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64

from cloister.audit.training.functionals import rows_of
from cloister.authority.noise import EXACT_BITS
from cloister.authority.request_log import Release
from cloister.data.info import Targets
from cloister.errors import EncryptionError, InputError

RANK_TOLERANCE = 1e-10
ENOUGH = 16
"""Different functionals kept per sample, in multiples of its dimension."""


@dataclass(eq=False)
class SampleEvidence:
    """All functionals of one sample and their answers."""

    rows: list[scipy.sparse.csr_matrix] = field(default_factory=list)
    answers: list[Float64[np.ndarray, " k"]] = field(default_factory=list)
    digests: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class AnswerGroup:
    """Samples that answered the same functionals; answers hold one column per sample."""

    ids: Int64[np.ndarray, " n"]
    rows: Float64[np.ndarray, "k dim"]
    answers: Float64[np.ndarray, "k n"]
    width: float = 0.0
    """Of the uniform noise on every answer; 0: they are exact."""


@dataclass(eq=False)
class Evidence:
    """The attacks' starting point.

    forward    per attacked sample, its forward functionals
    releases   forward and gradient releases in order, for attacks that join samples
    requests   what a party was asked that received no value, in order
    labels     (id, integers) of label releases
    """

    shape: tuple[int, int, int]
    forward: dict[int, SampleEvidence] = field(default_factory=dict)
    releases: list[Release] = field(default_factory=list)
    requests: list[Release] = field(default_factory=list)
    labels: list[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n classes"]]] = field(
        default_factory=list
    )
    seen: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Elements of one sample."""
        return int(np.prod(self.shape))

    @property
    def targets(self) -> Targets:
        """The kind of the targets in label releases, as their integers show it."""
        rows = [values for _, values in self.labels]
        if any(((values != 0) & (values != 1)).any() for values in rows):
            return "numbers"
        one_hot = all((values.sum(axis=1) == 1).all() for values in rows)
        return "classes" if one_hot else "labels"

    def groups(
        self, *, limit: int, bound: float = 0.0, value_bits: int = EXACT_BITS
    ) -> list[AnswerGroup]:
        """The followed samples by their functionals, at most `limit` of each, evenly chosen.

        bound, value_bits   the largest element, and the bits that noise leaves of values
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for sample, found in self.forward.items():
            alike.setdefault(tuple(map(id, found.rows)), []).append(sample)
        groups = []
        for ids in alike.values():
            rows = scipy.sparse.vstack(self.forward[ids[0]].rows)
            # Not the first ones: a convolution's rows move over the image.
            chosen = np.unique(np.linspace(0, rows.shape[0] - 1, limit).astype(np.int64))
            if self.dim <= len(chosen) < rows.shape[0] and rank(rows[chosen].toarray()) < self.dim:
                # A choice must not hide that all of them together determine the sample.
                chosen = np.arange(rows.shape[0])
            rows = rows[chosen].toarray()
            answers = [np.concatenate(self.forward[i].answers)[chosen] for i in ids]
            width = noise_width(rows, bound=bound, value_bits=value_bits)
            groups.append(
                AnswerGroup(np.array(ids, np.int64), rows, np.stack(answers, axis=1), width)
            )
        return groups


def rank(rows: Float64[np.ndarray, "k dim"]) -> int:
    """Rank of functionals of any size, each taken at length one."""
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1.0)[:, None]
    values = np.linalg.svd(rows / lengths, compute_uv=False)
    return int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum())


def noise_width(rows: Float64[np.ndarray, "k dim"], *, bound: float, value_bits: int) -> float:
    """Width of the noise that an authority puts on these values (docs/protocols/authority.md).

    Where several functions were released it is that of the largest.
    """
    spread = 2.0 * bound * float(np.abs(rows).sum(axis=1).max(initial=0.0))
    width = 1.0
    while spread > width * (2.0**value_bits - 1):
        width *= 2
    return width if width > 1 else 0.0


def collect(releases: Iterable[Release], *, samples: int = 16, steps: int = 256) -> Evidence | None:
    """Sort releases; None when there are none at all.

    samples   how many samples are followed through forward releases (the first that occur)
    steps     how many forward and gradient releases are kept whole for joint attacks
    Raises    EncryptionError when releases of different data sets are mixed, InputError
    """
    if samples < 1 or steps < 1:
        raise InputError("audit: at least one sample and one step must be attacked")
    evidence: Evidence | None = None
    for release in releases:
        if evidence is None:
            evidence = Evidence(release.shape)
        if release.shape != evidence.shape:
            raise EncryptionError(
                f"release log: samples of shape {release.shape} and {evidence.shape} are mixed; "
                "keep one log per data set"
            )
        _enter(evidence, release, samples, steps)
    return evidence


def _enter(evidence: Evidence, release: Release, samples: int, steps: int) -> None:
    evidence.counts[release.kind] = evidence.counts.get(release.kind, 0) + 1
    evidence.seen.update(release.ids.tolist())
    if not release.is_read:
        if len(evidence.requests) < 2 * steps:
            evidence.requests.append(release)
        return
    if release.kind == "evaluation":
        return
    if release.kind == "labels":
        evidence.labels.append((release.ids, release.values))
        return
    if len(evidence.releases) < steps:
        evidence.releases.append(release)
    if release.kind != "forward":
        return
    rows = None
    digest = hashlib.sha256(repr(release.geometry).encode() + release.functional.tobytes()).digest()
    for position, sample in enumerate(release.ids.tolist()):
        if sample not in evidence.forward and len(evidence.forward) == samples:
            continue
        found = evidence.forward.setdefault(sample, SampleEvidence())
        many = sum(part.shape[0] for part in found.rows) >= ENOUGH * evidence.dim
        if digest in found.digests or many:
            continue
        # Rows are built once per release and shared by its samples.
        rows = rows_of(release) if rows is None else rows
        found.digests.add(digest)
        found.rows.append(rows)
        found.answers.append(release.values[position].ravel().astype(np.float64))
