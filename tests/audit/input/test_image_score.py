"""Scores of reconstructions, against slow definitions and cases with known answers."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch
from scipy import stats

from cloister.audit.input.image_score import (
    blind_scores,
    candidate_rows,
    explained_interval,
    identified,
    mean_interval,
    score_images,
    ssim,
    summarise,
    wilson_interval,
)
from cloister.errors import InputError, ShapeError


def noise(seed, *shape):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def slow_ssim(x, y):
    """Wang et al. (2004), equations (13) to (17), window by window; one channel."""
    height, width = x.shape
    weights = np.ones((1, 1))
    for size in (height, width):
        length = min(11, size if size % 2 else size - 1)
        places = np.arange(length) - length // 2
        bell = np.exp(-(places**2) / (2 * 1.5**2))
        weights = np.multiply.outer(weights, bell / bell.sum())
    weights = weights.reshape(weights.shape[2:])
    found = []
    for top in range(height - weights.shape[0] + 1):
        for left in range(width - weights.shape[1] + 1):
            part = slice(top, top + weights.shape[0]), slice(left, left + weights.shape[1])
            a, b = x[part].astype(float), y[part].astype(float)
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            c1, c2 = 0.01**2, 0.03**2
            one = (2 * ma * mb + c1) * (2 * cov + c2)
            found.append(one / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(found)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 13), (1, 11, 12), (1, 5, 20), (1, 1, 3)])
def test_ssim_is_that_of_the_paper(shape):
    x, y = noise(1, 3, *shape), noise(2, 3, *shape)
    y[1] = 0.7 * x[1] + 0.1
    found = ssim(torch.from_numpy(x).double(), torch.from_numpy(y).double()).numpy()
    pairs = [zip(*pair, strict=True) for pair in zip(x, y, strict=True)]
    wanted = [np.mean([slow_ssim(a, b) for a, b in pair]) for pair in pairs]
    assert found == pytest.approx(wanted, abs=1e-9)


def test_equal_images_have_the_best_scores():
    x = noise(3, 50, 3, 9, 9)
    scores = score_images(x, x, blind_guess=x.mean(axis=0))
    assert scores.ssim == pytest.approx(1)
    assert scores.psnr == pytest.approx(100)
    assert (scores.mse == 0).all()
    assert (scores.identified == 1).all()


def test_psnr_of_a_known_error():
    x = np.full((50, 1, 8, 8), 0.5, np.float32)
    scores = score_images(x, x + np.float32(0.1), blind_guess=x[0])
    assert scores.psnr == pytest.approx(20, abs=1e-4)


def test_the_blind_guess_explains_nothing_and_identifies_as_often_as_chance():
    x = noise(4, 80, 1, 8, 8)
    guess = x.mean(axis=0)
    blind = blind_scores(x, blind_guess=guess)
    found = summarise([blind], blind)
    assert found.explained.mean == pytest.approx(0)
    assert blind.identified == pytest.approx(1 / 50)


# ---- identification


def test_a_pale_reconstruction_still_points_at_its_original():
    x = noise(5, 60, 1, 8, 8)
    guess = x.mean(axis=0)
    pale = guess + 0.05 * (x - guess)
    assert (score_images(x, pale, blind_guess=guess).identified == 1).all()


def test_equal_candidates_share_the_hit():
    x = noise(6, 3, 1, 4, 4) - 0.5
    x[1] = x[0]
    assert identified(x, x, candidates=3).tolist() == [0.5, 0.5, 1]


def test_a_reconstruction_of_another_image_is_no_hit():
    x = noise(7, 50, 1, 6, 6) - 0.5
    assert identified(x, np.roll(x, 1, axis=0), candidates=50).sum() == 0


def test_candidates_are_the_true_image_and_others_the_same_in_every_audit():
    rows = candidate_rows(70, 50)
    assert (rows[:, 0] == np.arange(70)).all()
    assert all(len(set(row)) == 50 for row in rows)
    assert (rows == candidate_rows(70, 50)).all()
    assert not (np.sort(rows[0]) == np.sort(rows[1])).all()


def test_guesses_hit_as_often_as_chance_over_all_images():
    # One guess for all images: the hits have different chances, and add up all the same.
    x = noise(8, 200, 1, 5, 5) - 0.5
    rates = [
        identified(
            x, np.repeat(noise(100 + i, 1, 1, 5, 5) - 0.5, 200, axis=0), candidates=20
        ).mean()
        for i in range(40)
    ]
    assert np.mean(rates) == pytest.approx(1 / 20, abs=0.01)


# ---- intervals


def test_intervals_agree_with_scipy():
    values = np.array([0.1, 0.4, 0.2, 0.9])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    wilson = stats.binomtest(7, 40).proportion_ci(method="wilson")
    found = wilson_interval(7 / 40, 40)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-6)


def test_what_is_explained_covers_the_truth_as_often_as_said():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        blind = rng.gamma(4, 1, 100)
        mse = blind * rng.uniform(0.2, 0.8, 100)
        found = explained_interval(mse, blind)
        covered += found.low <= 0.5 <= found.high
    assert stats.binomtest(covered, 400, 0.95).pvalue > 1e-3


def test_runs_of_one_image_are_averaged_before_images_are_counted():
    x = noise(9, 60, 1, 8, 8)
    guess = x.mean(axis=0)
    y = np.clip(x + 0.3 * (noise(10, *x.shape) - 0.5), 0, 1)
    run, blind = score_images(x, y, blind_guess=guess), blind_scores(x, blind_guess=guess)
    assert summarise([run] * 4, blind) == summarise([run], blind)
    assert math.isclose(summarise([run], blind).ssim.mean, run.ssim.mean())


# ---- refusals


def test_what_cannot_be_scored_is_refused():
    x = noise(11, 50, 1, 8, 8)
    guess = x.mean(axis=0)
    with pytest.raises(ShapeError, match="not of the same images"):
        score_images(x, x[:-1], blind_guess=guess)
    with pytest.raises(InputError, match="needs as many attacked images, got 49"):
        score_images(x[1:], x[1:], blind_guess=guess)
    broken = x.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        score_images(x, broken, blind_guess=guess)
    with pytest.raises(InputError, match="at least two"):
        mean_interval(np.array([1.0]))
