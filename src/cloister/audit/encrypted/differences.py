"""Attacks on what a party was *asked*: a first layer's weights, step by step, without any value.

    W' - W = -rate * sum over the batch of delta_i x_i^T          (a dense layer under SGD)

A ciphertext host sees W alone. In a batch of one all rows are multiples of its sample; in a small
batch so are the rows of all units that were active for one sample only, and they are told by
agreeing with each other. A host that lies makes them: constants added to its answers switch the
units of every other sample off. The authority is sent delta as well and solves for the batch.

Either way a sample is known up to a factor and an offset, which its public encoding settles.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from cloister.audit.encrypted.batch import is_dense
from cloister.wire.releases import Release

MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
"""Of the optimiser; that under which most rows agree, or least is left over, is taken."""
AGREE = 0.999
"""Cosine from which two rows are multiples of one sample."""
LOUD = 30.0
"""How far a row must stand out of the rounding of its integers."""
MOST_ROWS = 1024
MOST_UPDATES = 64
SOLVED = 0.1
"""Share of an update that may be left over by the output gradients that explain it."""
_SCALES = 2.0 ** np.arange(-8, 9)
_ROUNDING = 0.41
"""Deviation of the difference of two rounded numbers."""


class Update(NamedTuple):
    """How a layer's weights moved after a request, and what was asked about the batch besides."""

    ids: Int64[np.ndarray, " n"]
    change: Float64[np.ndarray, "o dim"]
    rounding: float
    delta: Float64[np.ndarray, "n o"] | None


class Guess(NamedTuple):
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


def from_weights(moved: Sequence[Update]) -> list[Guess]:
    """Samples from the weights alone."""
    best: list[Guess] = []
    most = 0
    for momentum in MOMENTA:
        found, agreeing = [], 0
        for update in _without(moved, momentum):
            for x, rows, loud in _directions(update):
                alone = len(update.ids) == 1 and rows > LOUD / (LOUD + 1) * loud
                found.append(Guess(update.ids, x, alone))
                agreeing += rows
        if agreeing > most:
            best, most = found, agreeing
    return best


def from_output_gradients(moved: Sequence[Update]) -> list[Guess]:
    """Samples from weights and output gradients, of batches no larger than the layer is wide."""
    known = [u for u in moved if u.delta is not None and len(u.ids) <= len(u.change)]
    best: list[Guess] = []
    least = np.inf
    for momentum in MOMENTA:
        found, left = [], 0.0
        kept = set(map(id, known))
        for update, plain in zip(moved, _without(moved, momentum), strict=True):
            if id(update) not in kept or update.delta is None:
                continue
            x, rest, rank = _solved(plain.change, update.delta)
            left += rest
            if rest < SOLVED:
                sure = rank == len(update.ids)
                found += [Guess(update.ids[[i]], x[i], sure) for i in range(len(x))]
        if left < least:
            best, least = found, left
    return best


def _without(moved: Sequence[Update], momentum: float) -> Iterator[Update]:
    """Every change without what the one before it left behind."""
    before: Float64[np.ndarray, "o dim"] | float = 0.0
    for update in moved:
        change = update.change - momentum * before
        yield update._replace(change=change, rounding=update.rounding * (1 + momentum))
        before = update.change


def _solved(
    change: Float64[np.ndarray, "o dim"], delta: Float64[np.ndarray, "n o"]
) -> tuple[Float64[np.ndarray, "n dim"], float, int]:
    """The batch behind an update, the share that it leaves unexplained, and the equations' rank."""
    x, _, rank, _ = np.linalg.lstsq(delta.T, change, rcond=1e-6)
    rest = float(np.linalg.norm(delta.T @ x - change) / np.linalg.norm(change))
    return -x, rest, int(rank)


def _directions(update: Update) -> Iterator[tuple[Float64[np.ndarray, " dim"], int, int]]:
    """(direction, rows that agree on it, rows loud enough) for each one that two rows share."""
    norms = np.linalg.norm(update.change, axis=1)
    noise = update.rounding * np.sqrt(update.change.shape[1])
    loud = np.flatnonzero(norms > LOUD * noise)
    loud = loud[np.argsort(-norms[loud], kind="stable")][:MOST_ROWS]
    units = update.change[loud] / norms[loud, None]
    agree = np.abs(units @ units.T) > AGREE
    left = np.ones(len(loud), bool)
    while left.any():
        counts = (agree & left).sum(axis=1) * left
        chosen = agree[int(np.argmax(counts))] & left
        if chosen.sum() < 2:
            return
        x = np.linalg.svd(update.change[loud[chosen]], full_matrices=False)[2][0]
        yield x * np.sign(x[np.argmax(np.abs(x))]), int(chosen.sum()), len(loud)
        left &= ~chosen
