"""Projections: small weights, public, the same for every run."""

import numpy as np
import pytest

pytest.importorskip("torch")

from cloister.authority import functions, noise
from cloister.authority.requests import Forward
from cloister.data.encoding import PIXELS, Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import FunctionError
from cloister.ring.bounds import check_size
from cloister.training.frozen import (
    default_projection,
    low_frequencies,
    projection,
    random_projection,
)


def info(*shape, budget=None, encoding=PIXELS):
    described = DatasetInfo("set", shape, 3, encoding, 0, 0)
    budget = described.default_budget if budget is None else budget
    return DatasetInfo("set", shape, 3, encoding, 0, budget)


def test_random_rows_are_signs_and_follow_from_the_seed():
    chosen = random_projection(info(1, 1, 30), seed=5)
    assert chosen.rank == 7
    assert set(np.unique(chosen.linear.weights)) == {-1, 1}
    again = random_projection(info(1, 1, 30), seed=5)
    np.testing.assert_array_equal(again.linear.weights, chosen.linear.weights)
    assert (random_projection(info(1, 1, 30)).linear.weights != chosen.linear.weights).any()


@pytest.mark.parametrize("seed", range(5))
def test_signs_in_few_dimensions_are_independent(seed):
    chosen = random_projection(info(1, 1, 5, budget=4), seed=seed)
    assert np.linalg.matrix_rank(chosen.rows) == 4


def test_more_signs_than_can_be_independent_are_refused():
    """Of the rows (1, 1), (1, -1) and their negatives no three are."""
    with pytest.raises(FunctionError, match="allows 1 to 2"):
        random_projection(info(1, 1, 2, budget=2), rank=3)


def test_a_budget_of_nothing_says_who_can_train():
    for make in (random_projection, low_frequencies, default_projection):
        with pytest.raises(FunctionError, match=r"budget of 0 .*--unblind-to trusted"):
            make(info(8, 8, 1, budget=0))


@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 20, 3), (17, 31, 1)])
def test_pictures_get_their_low_frequencies(shape):
    described = info(*shape)
    assert described.is_picture
    chosen = default_projection(described)
    assert chosen.rank == described.dim // 16
    assert np.abs(chosen.linear.weights).max() <= 127
    # The first function of each channel is its mean.
    rows = chosen.rows.reshape(-1, *shape)
    for channel in range(shape[2]):
        first = rows[channel]
        assert np.ptp(first[..., channel]) < 1e-12
        assert not np.delete(first, channel, axis=-1).any()
    np.testing.assert_allclose(chosen.rows @ chosen.rows.T, np.eye(chosen.rank), atol=0.05)


@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 20, 3), (17, 31, 1), (24, 24, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_last_places_of_linear_algebra_change_no_integer(shape, seed, monkeypatch):
    """Another library, processor or number of threads rounds sums otherwise."""
    wanted = default_projection(info(*shape)).linear.weights
    decompose = np.linalg.qr

    def another(matrix):
        q, r = decompose(matrix)
        return q * (1 + 2.0**-44 * np.random.default_rng(seed).uniform(-1, 1, q.shape)), r

    monkeypatch.setattr(np.linalg, "qr", another)
    np.testing.assert_array_equal(default_projection(info(*shape)).linear.weights, wanted)


def test_rows_are_independent_by_exact_arithmetic(monkeypatch):
    """A rank that a tolerance decides could choose other signs on another machine."""

    def none(*_):
        raise AssertionError("a rank by singular values")

    monkeypatch.setattr(np.linalg, "matrix_rank", none)
    assert random_projection(info(1, 1, 5, budget=4)).rank == 4
    assert projection(info(1, 1, 40), np.eye(6, 40)).rank == 6
    rounds_to_nothing = np.stack([np.eye(1, 80_000)[0], np.ones(80_000)])
    with pytest.raises(FunctionError, match="depend on each other"):
        projection(info(1, 1, 80_000), rounds_to_nothing)


@pytest.mark.parametrize("shape", [(1, 1, 30), (8, 8, 1), (1, 400, 3)])
def test_what_is_no_picture_gets_signs(shape):
    chosen = default_projection(info(*shape))
    assert set(np.unique(chosen.linear.weights)) == {-1, 1}
    assert chosen.rank == np.prod(shape) // 4


@pytest.mark.parametrize("shape", [(28, 28, 1), (1, 1, 30), (1, 1, 13), (8, 8, 1), (32, 32, 3)])
@pytest.mark.parametrize("encoding", [PIXELS, Encoding(1.0, 0.0, 8), Encoding(1.0, 0.0, 16)])
def test_default_projections_are_functions_an_authority_issues(shape, encoding):
    described = info(*shape, encoding=encoding)
    linear = default_projection(described).linear
    check_size(described, linear.geometry, 4096)
    request = Forward("set", np.arange(4096, dtype=np.int64), linear)
    functions.check_rows(described, request.cuts, request.rows)
    shift = noise.shift(described, request.function, 8)
    assert shift > 0
    request.check_range(described, [1 << shift - 1])


def test_learned_rows_are_orthonormal_but_for_rounding():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(6, 40))
    chosen = projection(info(1, 1, 40), rows)
    assert np.abs(chosen.linear.weights).max() == 127
    np.testing.assert_allclose(chosen.rows @ chosen.rows.T, np.eye(6), atol=0.02)
    # The same span.
    inside = chosen.rows.T @ np.linalg.lstsq(chosen.rows.T, rows.T, rcond=None)[0]
    assert np.abs(inside - rows.T).max() < 0.05


@pytest.mark.parametrize("rank", [0, 21])
def test_ranks_beyond_the_budget(rank):
    with pytest.raises(FunctionError, match="allows 1 to 20"):
        low_frequencies(info(16, 20, 1), rank=rank)
