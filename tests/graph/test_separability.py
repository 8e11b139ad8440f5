import numpy as np
import onnxruntime as ort
import pytest

import nets
from cloister.graph import onnx_import, passes
from cloister.plan import policies
from cloister.trusted.session import Session


def centred():
    """Subtracts the mean over the batch."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    return net.model(net.op("Sub", hidden, net.op("ReduceMean", hidden, axes=[0], keepdims=1)))


def normalised():
    """Softmax over the batch."""
    net = nets.Net()
    return net.model(net.op("Softmax", net.gemm(net.input("row", 4), 4, 4), axis=0))


def backwards():
    """Turns the batch around."""
    net = nets.Net()
    x = net.gemm(net.input("row", 4), 4, 4)
    bounds = [net.constant(np.array([i], np.int64)) for i in (-1, -(2**62), 0, -1)]
    return net.model(net.op("Slice", x, *bounds))


@pytest.mark.parametrize("net", nets.ALL)
def test_ordinary_networks_may_be_run_in_parts(net):
    assert onnx_import.from_model(nets.ALL[net](), name="net").separable


@pytest.mark.parametrize("build", [centred, normalised, backwards])
def test_networks_that_mix_samples_are_run_whole(build):
    model = build()
    graph = passes.prepare(onnx_import.from_model(model, name="net"))
    assert not graph.separable
    feeds = nets.samples(model, 5)
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    with Session(policies.enclave(graph), batch=2) as session:
        (found,) = session.run(feeds).outputs.values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
