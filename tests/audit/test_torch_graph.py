"""A graph in PyTorch computes what its interpreter computes."""

import numpy as np
import pytest

import nets
from cloister.errors import UnsupportedError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare

torch = pytest.importorskip("torch")

from cloister.audit.torch_graph import TorchGraph  # noqa: E402

UNKNOWN = {"transposed": "ConvTranspose"}


def several_shapes():
    net = nets.Net(11)
    x = net.input("x", 3, 6, 5)
    y = net.op("Pad", x, net.constant(np.array([0, 0, 1, 0, 0, 0, 2, 1])))
    axes = net.constant(np.array([2]))
    y = net.op("Slice", y, net.constant(np.array([4])), net.constant(np.array([-9])), axes,
               net.constant(np.array([-2])))  # fmt: skip
    y = net.op("Unsqueeze", y, net.constant(np.array([0, 4])))
    y = net.op("Squeeze", y, net.constant(np.array([0, 4])))
    y = net.op("Gather", y, net.constant(np.array([[0, 2], [1, 1]])), axis=1)
    y = net.op("ReduceMean", y, axes=[3], keepdims=0)
    y = net.op("Reshape", y, net.constant(np.array([0, -1])))
    z = net.op("HardSwish", net.op("Erf", y))
    scale, shift = (net.constant(np.full(1, v, np.float32)) for v in (2.0, 0.5))
    z = net.op("Div", net.op("Sub", net.op("Mul", z, scale), shift), scale)
    return net.model(net.op("Transpose", net.op("Concat", y, z, axis=1), perm=[1, 0]))


NETS = {**nets.ALL, "several_shapes": several_shapes}


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", sorted(NETS.keys() - UNKNOWN))
def test_outputs_are_the_interpreters(name, folded):
    model = NETS[name]()
    graph = from_model(model, name=name)
    graph = prepare(graph) if folded else graph
    feeds = nets.samples(model, 3)
    expected = interpret(graph, feeds)
    inputs = [torch.from_numpy(feeds[one]) for one in graph.inputs]
    found = TorchGraph(graph).run(inputs)
    assert len(found) == len(graph.outputs) > 0
    for value, tensor in zip(graph.outputs, found, strict=True):
        np.testing.assert_allclose(tensor.numpy(), expected[value], rtol=2e-4, atol=2e-5)


def test_other_constants_take_the_place_of_the_graphs():
    model = nets.chain()
    graph = prepare(from_model(model, name="chain"))
    made = TorchGraph(graph)
    zeros = {
        name: torch.zeros_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in made.constants.items()
    }
    inputs = [torch.from_numpy(nets.samples(model, 2)["image"])]
    assert made.run(inputs)[0].abs().max() > 0
    assert made.run(inputs, zeros)[0].abs().max() == 0


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_operator_is_refused_by_name(name):
    graph = prepare(from_model(NETS[name](), name=name))
    with pytest.raises(UnsupportedError, match=f"{UNKNOWN[name]}.*leave the node in the exposed"):
        TorchGraph(graph)
