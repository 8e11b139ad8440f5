"""The bootstrap interval of a median."""

import numpy as np

from cloister.splits.median_interval import median_interval


def test_one_value_has_no_width():
    found = median_interval([3.0])
    assert (found.median, found.low, found.high) == (3.0, 3.0, 3.0)


def test_it_is_reproducible_and_holds_the_median():
    values = np.random.default_rng(0).exponential(1.0, 41).tolist()
    found = median_interval(values)
    assert found == median_interval(values)
    assert min(values) <= found.low <= found.median == np.median(values) <= found.high


def test_it_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [median_interval(rng.standard_normal(25).tolist()) for _ in range(200)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.88 <= covered <= 1.0
    assert np.mean([one.high - one.low for one in found]) < 1.5
