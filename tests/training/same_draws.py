"""Random draws that are the same in every run of a test."""

import itertools
from contextlib import contextmanager

import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.training import data_owner


@contextmanager
def same_draws(first_seed=0):
    """Data sets encrypted within have the same keys, noise and orders of samples and classes.

    A few samples in another order, or under other noise, end at another model, whose accuracy a
    test must not leave to chance.
    """
    seeds = itertools.count(first_seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_owner, "SystemRandom", lambda: InsecureSeededRandom(next(seeds)))
        yield
