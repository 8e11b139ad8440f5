"""Noise: its distribution, its bound on one sample, and what the accountant says."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cloister.crypto.csprng import InsecureSeededRandom
from cloister.errors import InputError, RangeError, UnsupportedError
from cloister.fe.encoding import Encoding
from cloister.training import noise as module
from cloister.training.layers import Samples
from cloister.training.models import encrypt_first
from cloister.training.noise import GaussianNoise, epsilon, gaussian, perturb
from cloister.training.private import PrivateStep
from cloister.training.products import Products
from cloister.training.server import LocalCiphertextServer
from training.doubles import MemoryAuthority, MemoryDataset, blobs
from training.test_trainer import TRUSTED, trainer

SHAPE = (6, 5, 1)


def test_gaussian_values():
    values = gaussian(200_001, rng=InsecureSeededRandom(1))
    assert len(values) == 200_001
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    shares = [(np.abs(values) < k).mean() for k in (1, 2, 3)]
    np.testing.assert_allclose(shares, [0.6827, 0.9545, 0.9973], atol=0.005)


def private_model(plain, *, offset=0.0, sigma=1e-9, clip=1.0, n=10):
    """A model whose first layer is encrypted, and the same in the clear, with a batch for each."""
    x, y, encoding = blobs(n, SHAPE, offset=offset)
    dataset = MemoryDataset(x, y, encoding=encoding, classes=3)
    authority = MemoryAuthority(dataset)
    products = Products(
        authority.describe(""), LocalCiphertextServer(dataset), keys=authority, receiver="trusted"
    )
    samples = Samples(SHAPE)
    model = copy.deepcopy(plain)
    layer = encrypt_first(model, SHAPE, samples=samples, products=products, encoding=encoding)
    noise = GaussianNoise(sigma, "gradients", clip=clip)
    step = PrivateStep(model, layer, noise=noise, rng=InsecureSeededRandom(2))
    clear = torch.from_numpy(x).float().permute(0, 3, 1, 2)
    return step, model, samples, clear, torch.from_numpy(y)


def conv_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(120, 3))


def dense_model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    )


MODELS = pytest.mark.parametrize("build", [conv_model, dense_model])


@MODELS
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_one_sample_moves_the_step_by_at_most_the_clip(build, offset):
    step, model, samples, _, y = private_model(build(), offset=offset, clip=0.01)
    for sample in range(10):
        model.zero_grad()
        step.backward(samples.of(np.array([sample], np.int64)), y[sample : sample + 1])
        gradients = [parameter.grad for parameter in model.parameters()]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        assert 1e-4 < norm <= 0.01


@MODELS
def test_without_clipping_and_noise_it_is_the_plain_gradient(build):
    plain = build()
    step, model, samples, clear, y = private_model(plain, clip=1e4, sigma=1e-12)
    loss, scores = step.backward(samples.of(np.arange(10, dtype=np.int64)), y)
    wanted = nn.functional.cross_entropy(plain(clear), y)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores, plain(clear), rtol=1e-2, atol=1e-2)
    for found, exact in zip(model.parameters(), plain.parameters(), strict=True):
        # The grid of a clip of 10^4 is coarse.
        torch.testing.assert_close(found.grad, exact.grad, rtol=0.1, atol=0.1)


@MODELS
def test_every_parameter_gets_noise_of_the_stated_deviation(build):
    step, model, samples, _, y = private_model(build(), sigma=500.0, clip=2.0)
    step.backward(samples.of(np.arange(10, dtype=np.int64)), y)
    values = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert abs(float(values.std()) * 10 / 1000 - 1) < 0.15
    assert all(bool(parameter.grad.abs().max() > 20) for parameter in model.parameters())


def test_the_scale_does_not_depend_on_the_data():
    step, *_ = private_model(conv_model())
    small = step.truncate(torch.full((8, 6, 5, 4), 1e-9))
    large = step.truncate(torch.full((8, 6, 5, 4), step._limit / 120))
    assert small.exponent == large.exponent
    assert int(large.integers.to(torch.int64).abs().sum((0, 1, 2)).max()) * 127 < 2**31


def test_models_without_a_per_sample_gradient_are_refused():
    mixing = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(24, 3))
    with pytest.raises(UnsupportedError, match="GroupNorm"):
        private_model(mixing)
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(24, 3))
    with pytest.raises(UnsupportedError, match="Sequential"):
        private_model(nested)


def test_a_private_run_learns():
    settings = replace(TRUSTED, noise=GaussianNoise(0.5, "gradients", clip=1.0))
    made, _, _ = trainer(settings, model=conv_model(), n=400)
    assert made.fit(6)[-1].test_accuracy > 0.6


def weights(made):
    return {name: value.clone() for name, value in made.model.state_dict().items()}


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_killed_step_is_made_again_with_the_same_noise(steps, tmp_path):
    """Two noises on one sum would tell more of it than the accountant has counted."""
    noisy = replace(TRUSTED, noise=GaussianNoise(4.0, "gradients"), checkpoint_every=2)

    def run(folder, count, seed):
        """The weights after a number of steps, where the run is killed."""
        made, _, _ = trainer(noisy, model=conv_model(), checkpoint_dir=folder, seed_of_noise=seed)

        def dies(done, _):
            if done == count:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made.fit(2, update=dies)
        return weights(made)

    seen = run(tmp_path / "run", steps, 1)
    kept = load(tmp_path / "run" / "checkpoint.pt")["position"]["step"]
    assert kept == (steps - 1) // 2 * 2
    again = run(tmp_path / "run", steps, 2)
    other = run(tmp_path / "other", steps, 3)
    for name, value in seen.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), name


def test_a_checkpoint_tells_nothing_of_the_noise_of_steps_that_are_done(tmp_path):
    noisy = replace(TRUSTED, noise=GaussianNoise(4.0, "gradients"), checkpoint_every=1)
    made, _, _ = trainer(noisy, model=conv_model(), checkpoint_dir=tmp_path)
    keys = []
    made.fit(1, update=lambda *_: keys.append(load(tmp_path / "checkpoint.pt")["noise_key"]))
    assert len(set(keys)) == len(keys) > 5
    assert (tmp_path / "checkpoint.pt").stat().st_mode & 0o777 == 0o600
    final = load(tmp_path / "checkpoint.pt")["noise_key"]
    assert final not in keys
    one, two = (module.StepRandom(bytes(32), epoch=0, step=step).random_bytes(8) for step in (0, 1))
    assert one != two


def load(path):
    return torch.load(path, weights_only=True)


def test_epsilon():
    """The Gaussian mechanism's exact curve bounds from below what the accountant may say."""
    noise = GaussianNoise(4.0, "gradients")
    one, many = epsilon(noise, epochs=1), epsilon(noise, epochs=10)
    assert 0 < _exact(2.0, noise.delta) <= one < 1.3 * _exact(2.0, noise.delta)
    assert one < many <= 1.3 * _exact(2.0 / math.sqrt(10), noise.delta)
    assert epsilon(GaussianNoise(8.0, "gradients")) < one
    local = GaussianNoise(2.0, "ciphertexts")
    assert epsilon(local, fields=4) > epsilon(local)


def _exact(sigma, delta):
    """Balle and Wang 2018, theorem 8, solved for epsilon by bisection."""
    phi = lambda t: 0.5 * math.erfc(-t / math.sqrt(2))  # noqa: E731
    low, high = 0.0, 100.0
    for _ in range(100):
        e = (low + high) / 2
        value = phi(0.5 / sigma - e * sigma) - math.exp(e) * phi(-0.5 / sigma - e * sigma)
        low, high = (e, high) if value > delta else (low, e)
    return high


def test_without_the_accountant(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(InputError, match="needs an accountant: pip install 'cloister"):
        epsilon(GaussianNoise(1.0, "gradients"))


def test_perturbed_samples_still_encode():
    encoding = Encoding(1 / 127, 0.5, 8)
    x = np.full((50, 9), 0.5)
    noisy = perturb(
        x, GaussianNoise(0.1, "ciphertexts"), encoding=encoding, rng=InsecureSeededRandom(4)
    )
    assert abs((noisy - x).std() / 0.2 - 1) < 0.1
    loud = GaussianNoise(9.0, "ciphertexts")
    encoding.encode(perturb(x, loud, encoding=encoding, rng=InsecureSeededRandom(4)))
    with pytest.raises(InputError, match="for gradients"):
        perturb(x, GaussianNoise(1.0, "gradients"), encoding=encoding, rng=InsecureSeededRandom(4))


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"sigma": math.nan}, {"clip": -1.0},
                                   {"delta": 1.0}, {"sigma": math.inf}])  # fmt: skip
def test_impossible_settings(wrong):
    with pytest.raises(RangeError):
        GaussianNoise(**{"sigma": 1.0, "on": "gradients", **wrong})
    with pytest.raises(InputError):
        GaussianNoise(1.0, "weights")
