"""Malformed graphs are refused by name; operators nobody runs are all listed."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

import nets
from cloister.errors import ModelError
from cloister.graph.graph import Graph, TensorType
from cloister.graph.legality import check, unsupported
from cloister.graph.onnx.read import from_model
from nets import Net


@pytest.fixture
def graph() -> Graph:
    return from_model(nets.chain(), name="net")


def test_imported_graphs_are_legal(graph):
    check(graph)


def test_nodes_out_of_order(graph):
    with pytest.raises(ModelError, match="Gemm_7"):
        check(replace(graph, nodes=graph.nodes[::-1]))


def test_an_undefined_input(graph):
    broken = replace(graph.nodes[0], inputs=("nowhere", *graph.nodes[0].inputs[1:]))
    with pytest.raises(ModelError, match="nowhere"):
        check(replace(graph, nodes=(broken, *graph.nodes[1:])))


def test_a_value_made_twice(graph):
    twin = replace(graph.nodes[0], name="twin")
    with pytest.raises(ModelError, match="twin"):
        check(replace(graph, nodes=(graph.nodes[0], twin, *graph.nodes[1:])))


def test_two_nodes_of_one_name(graph):
    twin = replace(graph.nodes[1], name=graph.nodes[0].name)
    with pytest.raises(ModelError, match=graph.nodes[0].name):
        check(replace(graph, nodes=(graph.nodes[0], twin, *graph.nodes[2:])))


def test_an_output_nobody_makes(graph):
    with pytest.raises(ModelError, match="nothing"):
        check(replace(graph, outputs=("nothing",)))


def test_a_value_without_a_type(graph):
    types = {name: known for name, known in graph.types.items() if name != "v1"}
    with pytest.raises(ModelError, match="v1"):
        check(replace(graph, types=types))


def test_a_size_that_is_not_positive(graph):
    wrong = {**graph.types, "v1": TensorType(np.dtype(np.float32), (None, -3))}
    with pytest.raises(ModelError, match="v1"):
        check(replace(graph, types=wrong))


def test_a_constant_of_another_type(graph):
    wrong = {**graph.types, "c0": TensorType(np.dtype(np.float32), (1,))}
    with pytest.raises(ModelError, match="c0"):
        check(replace(graph, types=wrong))


def test_small_nets_are_supported(graph):
    assert unsupported(graph) == []


def test_all_unsupported_operators_are_listed_at_once():
    net = Net()
    x = net.op("Odd", net.op("Relu", net.op("Strange", net.input("x", 4))))
    model = net.model(x)
    for node in (model.graph.node[0], model.graph.node[2]):
        node.domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    found = unsupported(from_model(model, name="net"))
    assert [node for node, _, _ in found] == ["Strange_0", "Odd_2"]
    assert "com.example" in found[0][1]
