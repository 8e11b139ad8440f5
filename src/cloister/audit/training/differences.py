"""Attacks on the *requests* to a party: a first layer's weights, step by step, without any value.

    W' - W = -rate * sum over the batch of delta_i x_i^T          (a dense layer under SGD)

A ciphertext host sees W alone. In a batch of one all rows are multiples of its sample; in a small
batch so are the rows of all units that were active for one sample only. The attack finds these rows
because they agree with each other. A host that lies produces them: constants added to its answers
switch the units of every other sample off. The authority is sent delta as well and solves for the
batch.

Either way a sample is known up to a factor and an offset, which its public encoding settles.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cloister.audit.training.batch_solver import is_dense
from cloister.authority.request_log import Release

MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
"""Of the optimiser; that which leaves least unexplained is taken."""
AGREE = 0.999
"""Cosine from which two rows are multiples of one sample."""
LOUD = 30.0
"""How far a row must stand out of the rounding of its integers."""
MOST_ROWS = 1024
MOST_UPDATES = 64
SOLVED = 0.1
"""Share of an update that may be left over by the output gradients that explain it."""
SMALLEST = 1e-6
"""Of a batch's singular values, as a share of the largest, that still tell something."""
ALONE = 0.9
"""Share of the loud rows that must be multiples of one sample, if that was the batch."""
_SCALES = 2.0 ** np.arange(-8, 9)
_ROUNDING = 0.41
"""Deviation of the difference of two rounded numbers."""


class Update(NamedTuple):
    """How a layer's weights moved after a request, and what was asked about the batch besides."""

    ids: Int64[np.ndarray, " n"]
    change: Float64[np.ndarray, "o dim"]
    rounding: float
    delta: Float64[np.ndarray, "n o"] | None


class SampleGuess(NamedTuple):
    """A sample up to factor and offset; `ids` are those that it may be."""

    ids: Int64[np.ndarray, " m"]
    x: Float64[np.ndarray, " dim"]
    determined: bool


def updates(requests: Sequence[Release]) -> list[Update]:
    """The changes between neighbouring requests of a dense layer, in units of the first one."""
    found: list[Update] = []
    ids, last, unit, delta = np.zeros(0, np.int64), np.zeros((0, 0)), 1.0, None
    for request in requests:
        if request.geometry is None or not is_dense(request.geometry):
            continue
        if request.kind == "gradient request":
            same = np.array_equal(request.ids, ids)
            delta = request.functional.reshape(len(ids), -1).astype(np.float64) if same else None
            continue
        weights = request.functional.reshape(len(request.functional), -1).astype(np.float64)
        if weights.shape == last.shape and not np.array_equal(weights, last):
            # The integers' scale is a power of two and may change with them.
            scale = min(_SCALES, key=lambda s: float(np.abs(weights * s - last).sum()))
            change = unit * (weights * scale - last)
            found.append(Update(ids, change, _ROUNDING * unit * max(scale, 1.0), delta))
            unit *= scale
        ids, last, delta = request.ids, weights, None
        if len(found) == MOST_UPDATES:
            break
    return found


def from_weights(moved: Sequence[Update]) -> list[SampleGuess]:
    """Samples from the weights alone."""
    best: list[SampleGuess] = []
    fewest = np.inf
    for momentum in MOMENTA:
        found, odd = [], 0
        for update in _without([one for one in moved if not _signs_only(one)], momentum):
            shared, loud = _directions(update)
            odd += loud - sum(rows for _, rows in shared)
            alone = len(update.ids) == len(shared) == 1 and shared[0][1] > ALONE * loud
            found += [SampleGuess(update.ids, x, alone) for x, _ in shared]
        if odd < fewest:
            best, fewest = found, odd
    return best


def from_output_gradients(moved: Sequence[Update]) -> list[SampleGuess]:
    """Samples from weights and output gradients, of batches no larger than the layer is wide."""
    best: list[SampleGuess] = []
    least = np.inf
    for momentum in MOMENTA:
        found, left = [], 0.0
        for update in _without(moved, momentum):
            if update.delta is None or len(update.ids) > len(update.change):
                continue
            x, determined, rest = _solved(update.change, update.delta)
            left += rest
            if rest < SOLVED:
                sure = np.flatnonzero(determined)
                found += [SampleGuess(update.ids[[i]], x[i], True) for i in sure]
        if left < least:
            best, least = found, left
    return best


def _without(moved: Sequence[Update], momentum: float) -> Iterator[Update]:
    """Every change without what the one before it left behind."""
    before: Float64[np.ndarray, "o dim"] | float = 0.0
    for update in moved:
        yield update._replace(change=update.change - momentum * before)
        before = update.change


def _signs_only(update: Update) -> bool:
    """Whether all weights moved by one step up or down, as they first do under Adam."""
    sizes = np.abs(update.change)
    sizes = sizes[sizes > LOUD * update.rounding]
    return len(sizes) > 0 and float(np.ptp(sizes)) < SOLVED * float(sizes.max())


def _solved(
    change: Float64[np.ndarray, "o dim"], delta: Float64[np.ndarray, "n o"]
) -> tuple[Float64[np.ndarray, "n dim"], Bool[np.ndarray, " n"], float]:
    """The batch behind an update, which samples of it are determined, and the share of the update
    that they leave unexplained."""
    left, values, right = np.linalg.svd(delta.T, full_matrices=False)
    rank = int((values > SMALLEST * values.max(initial=0.0)).sum())
    x = right[:rank].T @ ((left[:, :rank].T @ change) / values[:rank, None])
    rest = float(np.linalg.norm(delta.T @ x - change) / np.linalg.norm(change))
    return -x, (right[:rank] ** 2).sum(axis=0) > 1 - SMALLEST, rest


def _directions(update: Update) -> tuple[list[tuple[Float64[np.ndarray, " dim"], int]], int]:
    """Directions that at least two rows share, with their number; and how many rows are loud."""
    norms = np.linalg.norm(update.change, axis=1)
    noise = update.rounding * np.sqrt(update.change.shape[1])
    loud = np.flatnonzero(norms > LOUD * noise)
    loud = loud[np.argsort(-norms[loud], kind="stable")][:MOST_ROWS]
    units = update.change[loud] / norms[loud, None]
    agree = np.abs(units @ units.T) > AGREE
    shared = []
    left = np.ones(len(loud), bool)
    while left.any():
        counts = (agree & left).sum(axis=1) * left
        chosen = agree[int(np.argmax(counts))] & left
        if chosen.sum() < 2:
            break
        x = np.linalg.svd(update.change[loud[chosen]], full_matrices=False)[2][0]
        shared.append((x * np.sign(x[np.argmax(np.abs(x))]), int(chosen.sum())))
        left &= ~chosen
    return shared, len(loud)
