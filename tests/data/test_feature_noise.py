"""Noise: its distribution, its bound on one sample, and what the accountant says."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cloister.base.rng import InsecureSeededRandom
from cloister.data import feature_noise as module
from cloister.data.encoding import Encoding
from cloister.data.feature_noise import GaussianNoise, StepNoise, epsilon, gaussian, perturb
from cloister.errors import InputError, RangeError, UnsupportedError
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.training.layers import Samples
from cloister.training.losses import TrainingObjective, cross_entropy
from cloister.training.models import encrypt_first
from cloister.training.private import PrivateStep
from cloister.training.products import Products
from cloister.training.trainer import epoch_order
from training.doubles import MemoryAuthority, MemoryDataset, blobs
from training.test_trainer import TRUSTED, trainer

SHAPE = (6, 5, 1)
STEP = StepNoise(bytes(32), 0, 0, lambda: b"")


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
    step = PrivateStep(model, layer, noise=noise, objective=TrainingObjective(cross_entropy))
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
        step.backward(samples.of(np.array([sample], np.int64)), y[sample : sample + 1], step=STEP)
        gradients = [parameter.grad for parameter in model.parameters()]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        assert 1e-4 < norm <= 0.01


@MODELS
@pytest.mark.parametrize("offset", [0.0, 2.0, -0.7])
def test_without_clipping_and_noise_it_is_the_plain_gradient(build, offset):
    plain = build()
    step, model, samples, clear, y = private_model(plain, clip=1e4, sigma=1e-12, offset=offset)
    loss, scores = step.backward(samples.of(np.arange(10, dtype=np.int64)), y, step=STEP)
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
    step.backward(samples.of(np.arange(10, dtype=np.int64)), y, step=STEP)
    values = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert abs(float(values.std()) * 10 / 1000 - 1) < 0.15
    assert all(bool(parameter.grad.abs().max() > 20) for parameter in model.parameters())


def test_the_scale_does_not_depend_on_the_data():
    step, *_ = private_model(conv_model())
    small = step.truncate(torch.full((8, 4, 6, 5), 1e-9))
    large = step.truncate(torch.full((8, 4, 6, 5), step._limit / 120))
    assert small.exponent == large.exponent
    assert int(np.abs(large.integers.astype(np.int64)).sum((0, 1, 2)).max()) * 127 < 2**31


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


class Liar(LocalCiphertextServer):
    """Answers `altered` samples by one more in their first entry, in forward products, in
    ciphertexts, or in both."""

    def __init__(self, dataset, altered, *, forward=True, gradient=True):
        super().__init__(dataset)
        self._altered, self._forward, self._gradient = altered, forward, gradient

    def ask(self, request):
        lying = self._forward if request.kind == "forward" else self._gradient
        found = self.data(request.dataset, request.ids).copy()
        found[np.isin(request.ids, self._altered), 0, 0, 0] += np.uint32(50 * lying)
        return request.image([(slice(None), found)], threads=1)


def first_step(folder, *, sigma, altered=(), model=None, offload=True, **lie):
    """All parameters after one step, behind which the run is killed."""
    noisy = replace(TRUSTED, noise=GaussianNoise(sigma, "gradients"), offload_gradients=offload)
    x, y, encoding = blobs(200, SHAPE)
    server = Liar(MemoryDataset(x, y, encoding=encoding), altered, **lie)
    model = model or conv_model()
    made, _, _ = trainer(noisy, model=model, checkpoint_dir=folder, server=server)

    def dies(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.fit(1, update=dies)
    return {name: p.detach().double().numpy().ravel() for name, p in made.model.named_parameters()}


def a_sample_of_the_first_step():
    made, _, _ = trainer(TRUSTED)
    order = epoch_order(len(made._train_ids), seed=TRUSTED.seed, epoch=0)
    return made._train_ids[order[:1]]


@pytest.mark.parametrize(("forward", "gradient"), [(True, True), (True, False), (False, True)])
def test_the_noise_of_a_step_with_an_altered_sample_does_not_cancel(forward, gradient, tmp_path):
    """The adversary kills a run behind a step, has it made again under the same key with one of
    its samples altered, and subtracts. What is left must be two noises, not one sample's doing."""
    victim, lie = a_sample_of_the_first_step(), {"forward": forward, "gradient": gradient}
    seen = first_step(tmp_path / "run", sigma=4.0)
    key = load(tmp_path / "run" / "checkpoint.pt")["noise_key"]
    again = first_step(tmp_path / "run", sigma=4.0, altered=victim, **lie)
    assert load(tmp_path / "run" / "checkpoint.pt")["noise_key"] == key
    clean = first_step(tmp_path / "a", sigma=1e-9)
    other = first_step(tmp_path / "b", sigma=1e-9, altered=victim, **lie)
    for name, value in seen.items():
        if not forward and name != "0.weight":
            # All that they hide was done before the lie.
            np.testing.assert_array_equal(value, again[name])
            continue
        left, truth = value - again[name], clean[name] - other[name]
        # Learning rate 0.05, batch 16: one noise has a deviation of 4 * 0.05 / 16.
        assert np.sqrt(np.mean(left**2)) > 0.5 * math.sqrt(2) * 4 * 0.05 / 16, name
        assert np.abs(left).min() > 0, name
        assert np.abs(truth).max() < 0.05 / 16
    whole, truth = (
        np.concatenate([one[name] - two[name] for name in one])
        for one, two in ((seen, again), (clean, other))
    )
    if forward:
        assert abs(np.corrcoef(whole, truth)[0, 1]) < 0.25
    # And who alters nothing gets nothing new, bit for bit.
    same = first_step(tmp_path / "run", sigma=4.0)
    for name, value in seen.items():
        np.testing.assert_array_equal(value, same[name])


def test_a_host_that_lies_about_ciphertexts_is_not_asked_for_them(tmp_path):
    """The noise is made for samples within their encoding's range. A host that handed out
    ciphertexts could enlarge one and read its output gradient through any noise."""
    victim = a_sample_of_the_first_step()
    honest = first_step(tmp_path / "run", sigma=4.0, offload=False)
    lied_to = first_step(tmp_path / "run", sigma=4.0, offload=False, altered=victim, forward=False)
    for name, value in honest.items():
        np.testing.assert_array_equal(value, lied_to[name])


def test_a_lie_that_changes_no_sum_changes_the_noise(tmp_path):
    """Else equal weights would tell, without any noise, that a sample's gradient is zero: so is
    every sample's here, behind a ReLU that is dead."""

    def dead():
        model = conv_model()
        nn.init.constant_(model[0].bias, -100.0)
        return model

    victim = a_sample_of_the_first_step()
    seen = first_step(tmp_path / "run", sigma=4.0, model=dead())
    again = first_step(tmp_path / "run", sigma=4.0, model=dead(), altered=victim, gradient=False)
    assert (seen["0.weight"] != again["0.weight"]).all()


def test_equal_noise_needs_all_to_be_equal():
    def noise(key=bytes(32), epoch=0, step=0, seen=b"", name="w", values=(1.0, 2.0), unit=0.5):
        made = StepNoise(key, epoch, step, lambda: seen)
        return made.of(name, np.array(values), unit=unit).random_bytes(16)

    others = [
        {}, {"key": bytes(31) + b"1"}, {"epoch": 1}, {"step": 1}, {"seen": b"1"}, {"name": "v"},
        {"values": (1.0, 3.0)}, {"values": ((1.0,), (2.0,))}, {"unit": 0.25},
    ]  # fmt: skip
    assert noise() == noise()
    assert len({noise(**other) for other in others}) == len(others)


@MODELS
@pytest.mark.parametrize("offset", [0.0, 1.7, -0.3])
def test_nothing_is_added_to_the_first_layers_noisy_sum(build, offset):
    """What is added behind the noise without being rounded has low bits that can be read."""
    step, _, samples, _, y = private_model(build(), offset=offset, sigma=4.0)
    real, released = step.add_noise, []

    def watched(values, exponent):
        found = real(values, exponent)
        released.append((found, exponent))
        return found

    step.add_noise = watched
    step.backward(samples.of(np.arange(10, dtype=np.int64)), y, step=STEP)
    [(found, exponent)] = released
    assert (found == np.rint(found)).all()
    layer = step._layer
    factor = np.float32(layer.encoding.scale * 2.0**-exponent)
    sums = np.float32(found).transpose(0, 3, 1, 2).reshape(layer.weight.shape) * factor
    np.testing.assert_array_equal(layer.weight.grad.numpy(), sums / np.float32(10))


def test_a_coarse_first_layer_is_rounded_to_a_finer_grid():
    """Rounding the offset's part must not move a sum by more than the clip's margin covers."""
    step, *_ = private_model(conv_model(), offset=1.7)
    step.truncate(torch.zeros(10, 4, 6, 5))
    step._step, units = STEP, []
    real = step._with_noise

    def watched(name, total, *, unit):
        units.append(unit)
        return real(name, total, unit=unit)

    step._with_noise = watched
    for exponent in (5, 12, 30):
        found = step.add_noise(np.zeros(step._layer.geometry.weight_shape, np.int64), exponent)
        assert units[-1] * math.sqrt(found.size) <= 2.0**-12
        steps = found * (step._layer.encoding.scale * 2.0**-exponent / units[-1])
        np.testing.assert_array_equal(steps, np.rint(steps))


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
