"""Values that hold the whole image at a scale, or beside others, that rounding could hide."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.image_score import score_images
from cloister.audit.input.ridge_decoder import RidgeDecoder
from cloister.audit.input.split_attack import run_attack
from cloister.audit.input.split_view import SplitView


def brightness(x):
    return x.mean((1, 2, 3), keepdim=True)


LEAKS = {
    "tiny": lambda x: 1e-36 * x,
    "huge": lambda x: 1e37 * x,
    "offset": lambda x: 0.01 * x + 100,
    "negated": lambda x: 1 - x,
    "permuted": lambda x: x.flip(3).transpose(2, 3),
    "below the digits of another value": lambda x: 0.01 * x + 1000 * brightness(x),
    "a weak channel": lambda x: torch.cat([1e-4 * x, *7 * [10 * brightness(x).expand_as(x)]], 1),
}


def images(count, *, seed):
    """Smooth random images (n, 1, 8, 8)."""
    coarse = np.random.default_rng(seed).random((count, 1, 4, 4), np.float32)
    return coarse.repeat(2, axis=2).repeat(2, axis=3)


def view(leak, images):
    return SplitView((leak(torch.from_numpy(images)).numpy(),))


@pytest.mark.parametrize("name", LEAKS)
def test_the_linear_floor_finds_what_is_there_in_full(name):
    public, attacked = images(150, seed=1), images(60, seed=2)
    knowledge = AttackKnowledge(public, view(LEAKS[name], public), before=None)
    found = run_attack(RidgeDecoder(), knowledge, view(LEAKS[name], attacked), seed=0).images
    scores = score_images(attacked, found, blind_guess=knowledge.blind_guess)
    assert scores.identified.mean() > 0.95


@pytest.mark.parametrize("factor", [1e-36, 1.0, 1e37])
def test_features_have_one_scale_whatever_the_model_multiplies_by(factor):
    x = images(20, seed=3)
    scaled = FeatureScale(view(lambda x: factor * x, x))
    (rows,) = scaled(view(lambda x: factor * x, x))
    assert abs(float(rows.mean())) < 1e-3
    assert abs(float(rows.std()) - 1) < 1e-2


def test_constant_values_tell_nothing():
    x = images(20, seed=4)
    for constant in (0.0, 3.0):
        constants = view(lambda x, c=constant: torch.full_like(x, c), x)
        assert not FeatureScale(constants).rows(constants).any()
