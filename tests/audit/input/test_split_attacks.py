"""Attacks on a split: every form of values and images, and nothing left to chance."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import torch
from torch.nn import functional

from audit.input.digit_views import Before, attacked_by, digits, knowledge_of, trained_layer
from cloister.audit.input.attack_battery import BATTERY
from cloister.audit.input.image_generator import ImageGenerator
from cloister.audit.input.image_priors import DeepImagePrior, ImageVariation, TotalVariation
from cloister.audit.input.linear_estimate import LinearEstimate
from cloister.audit.input.split_attack import run_attack
from cloister.audit.input.split_view import SplitView
from cloister.errors import InputError, ShapeError
from cloister.plan.split_report import ATTACKS, FLOOR

FORMS = {
    "a vector": [lambda x: x.flatten(2).mean(2)],
    "ten numbers": [lambda x: x.flatten(1)[:, :10]],
    "a map of its own size": [lambda x: torch.relu(x - 0.3)],
    "a smaller map": [lambda x: functional.avg_pool2d(x, 2, ceil_mode=True)],
    "a map of one place": [lambda x: x.mean((2, 3), keepdim=True)],
    "a larger map": [lambda x: functional.interpolate(x, scale_factor=2)],
    "a map without its border": [lambda x: x[:, :, 1:-1, 1:-1]],
    "all kinds at once": [
        lambda x: x.flatten(2).mean(2),
        lambda x: functional.max_pool2d(x, 4),
        lambda x: torch.relu(x),
        lambda x: functional.avg_pool2d(x, 2),
    ],
}
SIZES = [(1, 8, 8), (3, 17, 23), (1, 28, 22), (1, 56, 46)]


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost these small products more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def smooth_images(shape, count=60):
    channels, height, width = shape
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((count, channels, 4, 4), generator=generator)
    return functional.interpolate(coarse, size=(height, width), mode="bilinear").numpy()


@pytest.mark.parametrize("name", BATTERY)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_values_is_attacked(name, form):
    shape = SIZES[list(FORMS).index(form) % len(SIZES)]
    images, before = smooth_images(shape), Before(*FORMS[form])
    knowledge = knowledge_of(before, images[:40])
    view = before.view(images[40:])
    found = run_attack(BATTERY[name], knowledge, view, seed=0, effort=0.004)
    assert found.images.shape == (20, *shape)
    assert found.images.dtype == np.float32
    assert 0 <= found.images.min() <= found.images.max() <= 1
    assert found.cpu_s > 0


@pytest.mark.parametrize("name", BATTERY)
def test_a_seed_decides_every_choice_and_nothing_global_is_touched(name):
    public, attacked = digits()
    before = trained_layer()
    knowledge, view = knowledge_of(before, public[:100]), before.view(attacked[:10])
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()

    def found(seed):
        return run_attack(BATTERY[name], knowledge, view, seed=seed, effort=0.03).images

    first = found(0)
    torch.manual_seed(99)
    assert np.array_equal(found(0), first)
    assert np.array_equal(found(1), first) == (name == FLOOR)
    torch.random.set_rng_state(state)
    found(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_battery_is_that_of_the_rule():
    assert sorted(BATTERY) == sorted(ATTACKS)
    assert all(attack.name == name for name, attack in BATTERY.items())


def test_more_effort_finds_more():
    public, attacked = digits()
    before = trained_layer()
    knowledge, view = knowledge_of(before, public), before.view(attacked)
    little, more = (
        attacked_by(BATTERY["decoder"], knowledge, attacked, view, effort=effort).ssim.mean()
        for effort in (0.005, 0.2)
    )
    assert more > little + 0.02


@pytest.mark.parametrize("effort", [0, -1, float("nan")])
def test_efforts_that_are_none_are_refused(effort):
    public, _ = digits()
    knowledge = knowledge_of(Before(torch.relu), public)
    with pytest.raises(InputError, match="give a positive number"):
        run_attack(BATTERY["ridge"], knowledge, knowledge.view, seed=0, effort=effort)


def test_a_view_of_another_split_is_refused():
    public, _ = digits()
    knowledge = knowledge_of(Before(torch.relu), public)
    other = Before(lambda x: x.flatten(1)).view(public)
    with pytest.raises(InputError, match=r"\(64,\).*the public one \(\(1, 8, 8\),\)"):
        run_attack(BATTERY["ridge"], knowledge, other, seed=0)


def test_a_model_that_makes_other_values_than_those_sent_is_refused():
    public, _ = digits()
    knowledge = knowledge_of(Before(torch.relu), public)
    half = SplitView((knowledge.view.values[0][:, :, :4],))
    cut = type(knowledge)(public, half, knowledge.before)
    with pytest.raises(ShapeError, match="makes 64 numbers, the view has 32"):
        run_attack(BATTERY["optimise"], cut, half, seed=0, effort=0.01)


# ---- the linear estimate


@pytest.mark.parametrize("width", [20, 64, 300])
def test_the_linear_estimate_is_ridge_regression(width):
    # By the normal equations, with fewer values than images and with more.
    generator = torch.Generator().manual_seed(2)
    x = torch.randn((80, width), generator=generator)
    weights = torch.randn((width, 16), generator=generator) / width**0.5
    images = (x @ weights + 0.5 * torch.randn((80, 16), generator=generator)).reshape(80, 1, 4, 4)
    estimate = LinearEstimate(SplitView((x.numpy(),)), images)
    found = estimate(SplitView((x[:7].numpy(),)))

    rows = (x - x.mean(0)) / (x - x.mean(0)).square().mean(0).sqrt()
    y = images.flatten(1)
    errors = {}
    for power in range(-6, 5):
        kept = rows.square().sum() / width * 10.0**power * torch.eye(width)

        def solution(x, y, kept=kept):
            a, b = x - x.mean(0), y - y.mean(0)
            inverse = torch.linalg.solve((a.T @ a + kept).double(), (a.T @ b).double()).float()
            return lambda z, x=x, y=y: (z - x.mean(0)) @ inverse + y.mean(0)

        others = [torch.arange(80) != i for i in range(80)]
        left_out = torch.stack([solution(rows[o], y[o])(rows[~o])[0] for o in others])
        errors[power] = float((left_out - y).square().mean()), left_out, solution(rows, y)(rows[:7])
    _, left_out, wanted = min(errors.values(), key=lambda one: one[0])
    assert torch.allclose(found.flatten(1), wanted, atol=2e-3)
    # Leaving an image out also moves the scale of the others' values, which the estimate keeps.
    assert torch.allclose(estimate.left_out.flatten(1), left_out, atol=2e-2)


def test_a_generator_starts_at_the_estimate():
    generator = torch.Generator().manual_seed(0)
    network = ImageGenerator([(4, 9, 7), (3,)], (1, 18, 14), generator=generator)
    estimate = torch.rand((2, 1, 18, 14), generator=generator)
    drawn = network([torch.ones(2, 4, 9, 7), torch.ones(2, 3)], estimate)
    assert torch.equal(drawn, estimate)


# ---- priors on images


def test_total_variation_prefers_smooth_images():
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand((1, 1, 8, 8), generator=generator)
    smooth = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    prior = TotalVariation(1.0)
    assert float(prior.penalty([smooth], smooth)) < float(prior.penalty([rough], rough))
    sharp = smooth.clone().requires_grad_()
    prior.penalty([sharp], sharp).sum().backward()
    assert torch.isfinite(sharp.grad).all()


@pytest.mark.parametrize("count", [30, 300])
def test_images_vary_as_their_covariance_says(count):
    images = torch.from_numpy(smooth_images((1, 9, 7), count))
    variation = ImageVariation(images)
    coordinates = variation.coordinates(images)
    assert torch.allclose(variation.images(coordinates), images, atol=1e-3)
    covariance = coordinates.T @ coordinates / count
    assert torch.allclose(covariance, torch.eye(len(covariance)), atol=2e-2)


def test_networks_of_the_deep_image_prior_do_not_depend_on_each_other():
    generator = torch.Generator().manual_seed(0)
    prior = DeepImagePrior((3, 17, 23), generator=generator)
    searched = prior.begin(torch.zeros(3, 3, 17, 23), generator=generator)
    images = prior.images(searched)
    assert images.shape == (3, 3, 17, 23)
    alone = prior.images([tensor[1:2] for tensor in searched])
    assert torch.allclose(images[1:2], alone, atol=1e-6)
