"""Learning the data set itself from answers: no public images are needed when keys differ.

Under one projection for all samples the server never sees the other directions. If every sample has
a projection of its own, some sample shows each direction, and the mean and covariance of the whole
data set follow from answers within every sample's budget. The estimate is expectation maximisation
for a Gaussian whose samples are each observed through their own rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cloister.audit.training.evidence import AnswerGroup
from cloister.audit.training.prior import FLOOR, Prior

FEWEST_GROUPS = 64
"""Different sets of functionals below which nothing can be learned about the others."""
LARGEST_POPULATION = 256
"""Elements of the largest sample that this is tried on."""
ITERATIONS = 15
NOISE = 0.1


def learn_prior(groups: Sequence[AnswerGroup], prior: Prior) -> Prior | None:
    """A prior estimated from the answers alone, or None when the keys are too alike or too few.

    Source   Dempster, Laird, Rubin (1977); missing data as linear measurements
    """
    if len(groups) < FEWEST_GROUPS or prior.dim > LARGEST_POPULATION:
        return None
    variance = ((prior.high - prior.low) / 4) ** 2
    mean, covariance = _mean(groups, prior), variance * np.eye(prior.dim)
    for _ in range(ITERATIONS):
        mean, covariance = _step(groups, mean, covariance)
    return replace(prior, mean=mean, covariance=covariance)


def _mean(groups: Sequence[AnswerGroup], prior: Prior) -> np.ndarray:
    """Least squares for one sample that would explain all answers: the population's mean."""
    normal, right = NOISE * np.eye(prior.dim), NOISE * prior.mean
    for group in groups:
        normal = normal + len(group.ids) * group.rows.T @ group.rows
        right = right + group.rows.T @ group.answers.sum(axis=1)
    mean: np.ndarray = np.linalg.solve(normal, right)
    return mean


def _step(
    groups: Sequence[AnswerGroup], mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One round: expected samples and what stays uncertain, then their moments."""
    found, unsure = [], np.zeros_like(covariance)
    for group in groups:
        spread = covariance @ group.rows.T
        within = group.rows @ spread + (NOISE + group.width**2 / 12) * np.eye(len(group.rows))
        gain = np.linalg.solve(within, spread.T).T
        found.append(mean + (gain @ (group.answers - (group.rows @ mean)[:, None])).T)
        unsure += len(group.ids) * (covariance - gain @ spread.T)
    samples = np.concatenate(found)
    moved = samples.mean(axis=0)
    centred = samples - moved
    spread = (centred.T @ centred + unsure) / len(samples)
    return moved, (spread + spread.T) / 2 + FLOOR * np.eye(len(mean))
