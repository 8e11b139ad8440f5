"""Weights of a thief's own: which there are, and that training finds them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nets  # noqa: E402
from cloister.audit.model import surrogate  # noqa: E402
from cloister.audit.model.theft_settings import TheftSettings  # noqa: E402
from cloister.audit.model.victim import victim  # noqa: E402
from cloister.graph.onnx.read import from_model  # noqa: E402
from cloister.graph.passes.normalise import prepare  # noqa: E402


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_exposed_layers_keep_their_weights_and_hidden_ones_do_not():
    whole = victim(prepare(from_model(nets.chain(), name="chain")))
    part = whole.split(1)
    made = surrogate.HiddenLayers(part.hidden, part.known, generator=seeded())
    x = nets.samples(nets.chain(), 4)["image"]
    assert sum(weight.numel() for weight in made.weights) == 17 * 4 * 2 * 5 + 5
    true = whole.logits(x)
    found = surrogate.predict(made, part.values(x))
    assert found.shape == true.shape
    assert np.abs(found - true).max() > 0.1
    for name, tensor in made.constants.items():
        if name not in surrogate.secret(part.hidden, part.known):
            np.testing.assert_array_equal(tensor.numpy(), part.hidden.constants[name])
    # With the victim's own weights it is the victim.
    for name in surrogate.secret(part.hidden, part.known):
        made.constants[name] = torch.from_numpy(np.array(part.hidden.constants[name]))
    np.testing.assert_allclose(surrogate.predict(made, part.values(x)), true, atol=1e-4)


def test_numbers_and_shared_constants_are_no_secrets():
    net = nets.Net(3)
    six = [net.constant(np.float32(0)), net.constant(np.full(1, 6, np.float32))]
    x = net.op("Clip", net.gemm(net.input("x", 6), 6, 6), six[0], net.constant(np.float32(6)))
    x = net.op("Mul", x, six[1])
    graph = prepare(from_model(net.model(x), name="net"))
    names = surrogate.secret(graph, frozenset())
    assert {graph.constants[name].shape for name in names} == {(6, 6), (6,)}
    assert len(surrogate.secret(graph, names)) == 0


@pytest.mark.parametrize("name", ["residual", "branches", "separable", "text", "sequence"])
def test_initial_weights_keep_values_of_ordinary_size(name):
    graph = prepare(from_model(nets.ALL[name](), name=name))
    x = nets.samples(nets.ALL[name](), 16)
    made = surrogate.HiddenLayers(graph, frozenset(), generator=seeded())
    with torch.no_grad():
        found = made([torch.from_numpy(x[one]) for one in graph.inputs])
    assert 1e-3 < float(found.abs().max()) < 100
    again = surrogate.HiddenLayers(graph, frozenset(), generator=seeded())
    for one, other in zip(made.weights, again.weights, strict=True):
        assert torch.equal(one, other)
    other = surrogate.HiddenLayers(graph, frozenset(), generator=seeded(1))
    assert not torch.equal(made.weights[-1], other.weights[-1])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4), (20,)])
def test_training_fits_the_answers(shape):
    x = np.random.default_rng(0).standard_normal((60, *shape)).astype(np.float32)
    labels = (x.reshape(60, -1)[:, 0] > x.reshape(60, -1)[:, 1]).astype(int)
    targets = torch.from_numpy(np.eye(2, dtype=np.float32)[labels])
    values = surrogate.tensors([x])
    small = surrogate.SmallNetwork(shape, 2, generator=seeded())
    probe = surrogate.LinearProbe(values, 2)
    for network in (small, probe):
        before = surrogate.predict(network, [x])
        surrogate.fit(network, values, targets, TheftSettings(steps=200), generator=seeded())
        assert (before.argmax(axis=1) == labels).mean() < 0.8
        assert (surrogate.predict(network, [x]).argmax(axis=1) == labels).mean() > 0.95
