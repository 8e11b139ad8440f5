"""Weights that were integers have the steps that they were multiplied by."""

import numpy as np
import pytest

from cloister.plan.weight_steps import steps_of


def rows(rng, low, high, *shape):
    return rng.integers(low, high + 1, shape).astype(np.float32)


@pytest.mark.parametrize("limits", [(-127, 127), (-128, 127), (-255, 255), (0, 15), (-1, 1)])
@pytest.mark.parametrize("columns", [1, 9, 700])
def test_the_integers_are_found(limits, columns):
    rng = np.random.default_rng(0)
    integers = rows(rng, *limits, 60, columns)
    steps = rng.uniform(1e-6, 30, (60, 1)).astype(np.float32)
    found = steps_of(integers * steps)
    # A row of few integers may have a larger step, of which all of them are multiples.
    ratios = (integers * steps).astype(np.float64) / found[:, None]
    np.testing.assert_allclose(ratios, np.rint(ratios), atol=2e-4)
    assert np.abs(ratios).max() <= 255.001


def test_integers_keep_the_step_one():
    rng = np.random.default_rng(1)
    even = 2 * rows(rng, -60, 60, 5, 40)
    np.testing.assert_array_equal(steps_of(even), np.ones(5))
    np.testing.assert_array_equal(steps_of(np.zeros((3, 4), np.float32)), np.ones(3))


def test_weights_multiplied_behind_still_have_steps():
    rng = np.random.default_rng(2)
    integers = rows(rng, -127, 127, 30, 200)
    scaled = (integers * np.float32(0.013)).astype(np.float32)
    again = (scaled * rng.uniform(0.1, 3, (30, 1)).astype(np.float32)).astype(np.float32)
    ratios = again.astype(np.float64) / steps_of(again)[:, None]
    np.testing.assert_allclose(np.abs(np.rint(ratios)), np.abs(integers))


def test_real_numbers_have_none():
    rng = np.random.default_rng(3)
    assert steps_of(rng.standard_normal((40, 16)).astype(np.float32)) is None


def test_one_row_of_real_numbers_is_enough():
    rng = np.random.default_rng(4)
    mixed = rows(rng, -127, 127, 5000, 12) * np.float32(0.1)
    assert steps_of(mixed) is not None
    mixed[4321] = rng.standard_normal(12)
    assert steps_of(mixed) is None


def test_one_weight_off_the_multiples_is_enough():
    integers = rows(np.random.default_rng(5), -127, 127, 1, 1000)
    weights = integers * np.float32(0.3)
    weights[0, 501] += np.float32(0.001)
    assert steps_of(weights) is None
