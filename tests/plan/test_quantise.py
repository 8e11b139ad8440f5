"""Integers follow from the model and the ranges, not from the machine that computes them."""

from dataclasses import replace

import numpy as np
import pytest

import nets
from cloister.errors import ModelError
from cloister.graph.graph import TensorType
from cloister.graph.onnx.read import from_model
from cloister.graph.passes import normalise
from cloister.plan.quantise import calibrate, quantise_node
from cloister.plan.quantised import Precision
from nets import Net


def test_the_width_of_activations_does_not_follow_from_a_rounded_logarithm(monkeypatch):
    """A channel whose largest weight is exactly 128 levels has just enough of them."""
    net = Net()
    x = net.input("x", 1 << 13)
    weights = np.ones((1 << 13, 2), np.float32)
    net.op("MatMul", x, net.constant(weights))
    graph = normalise.prepare(from_model(net.model("v0"), name="net"))
    wanted = quantise_node(graph, graph.nodes[0], ranges=(1.0,), precision=Precision(16, 12))
    assert np.abs(wanted.linear.weights).max() == 128

    logarithm = np.log2
    monkeypatch.setattr(np, "log2", lambda value: np.nextafter(logarithm(value), -np.inf))
    again = quantise_node(graph, graph.nodes[0], ranges=(1.0,), precision=Precision(16, 12))
    assert again.x_qmax == wanted.x_qmax
    np.testing.assert_array_equal(again.linear.weights, wanted.linear.weights)


def test_a_value_of_another_shape_than_inference_found_is_refused():
    graph = from_model(nets.chain(), name="net")
    node = next(node for node in graph.nodes if node.inputs[0] not in graph.inputs)
    known = graph.types[node.inputs[0]]
    other = TensorType(known.dtype, (*known.shape[:-1], (known.shape[-1] or 0) + 1))
    graph = replace(graph, types={**graph.types, node.inputs[0]: other})
    with pytest.raises(ModelError, match=f"value '{node.inputs[0]}': shape inference says"):
        calibrate(graph, [node], nets.samples(nets.chain(), 2))
