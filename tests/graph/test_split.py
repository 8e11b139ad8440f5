"""Where a model may be split: the nodes before, what crosses, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import nets
from cloister.errors import CloisterError, InputError
from cloister.graph.graph import Graph, Node, Subgraph
from cloister.graph.interpreter import interpret
from cloister.graph.onnx import read
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.part import reads
from cloister.graph.passes import normalise
from cloister.graph.split import nodes_before, part_before, split_at, split_points
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from trusted.random_models import models
from trusted.split_plans import every_split
from trusted.test_random_models import random_models

NETS = pytest.mark.parametrize("net", nets.ALL)


def graph_of(build) -> Graph:
    return normalise.prepare(read.from_model(build(), name="net"))


def needs(graph, names):
    """The nodes that these depend on, and themselves: found by looking again until none is new."""
    found = set(names)
    while True:
        values = {v for node in graph.nodes if node.name in found for v in reads(node)}
        more = {node.name for node in graph.nodes if values & set(node.outputs)}
        if more <= found:
            return found
        found |= more


def follows_from_inputs(graph, value):
    maker = next((node for node in graph.nodes if value in node.outputs), None)
    if maker is None:
        return value in graph.inputs
    return any(follows_from_inputs(graph, one) for one in reads(maker))


def assert_is_split(graph, split):
    """Both sides and what crosses, by their definitions."""
    assert split.before == needs(graph, split.until)
    after = [node for node in graph.nodes if node.name not in split.before]
    assert any(is_linear(graph, node) for node in after)
    assert any(is_linear(graph, node) for node in graph.nodes if node.name in split.before)
    assert not {value for node in after for value in reads(node)} & set(graph.inputs)
    crossing = [
        value
        for node in graph.nodes if node.name in split.before
        for value in node.outputs
        if any(value in reads(other) for other in after) and follows_from_inputs(graph, value)
    ]  # fmt: skip
    assert list(split.values) == crossing
    # The last nodes: no node before the split reads them, and they are enough to name it.
    read_before = {v for node in graph.nodes if node.name in split.before for v in reads(node)}
    for node in graph.nodes:
        if node.name in split.until:
            assert not read_before & set(node.outputs)
    assert split_at(graph, split.until) == split


@NETS
def test_every_split_is_one_by_its_definition(net):
    graph = graph_of(nets.ALL[net])
    splits = every_split(graph)
    assert splits
    for split in splits:
        assert_is_split(graph, split)


@random_models
@given(st.data())
def test_random_models(data):
    try:
        graph = normalise.prepare(read.from_model(data.draw(models()).model(), name="random"))
    except CloisterError:
        return
    splits = every_split(graph)
    event(f"{min(len(splits), 3)} splits")
    for split in splits:
        assert_is_split(graph, split)
    for split in split_points(graph):
        assert_is_split(graph, split)
        assert len(split.values) == 1


@NETS
def test_the_part_before_a_split_makes_what_crosses(net):
    model = nets.ALL[net]()
    graph, feeds = graph_of(nets.ALL[net]), nets.samples(model, 3)
    for split in every_split(graph):
        part = part_before(graph, split)
        assert part.outputs == split.values
        everything = interpret(graph, feeds, wanted=split.values)
        found = interpret(part, feeds)
        for value in split.values:
            np.testing.assert_array_equal(found[value], everything[value])


def test_the_points_of_a_chain():
    """Behind each layer and all that follows it, up to the last layer."""
    graph = graph_of(nets.chain)
    assert [split.name for split in split_points(graph)] == ["MaxPool_2", "AveragePool_5"]


def test_the_points_of_a_residual_model_are_between_blocks():
    graph = graph_of(nets.residual)
    for split in split_points(graph):
        (value,) = split.values
        crossing = [node for node in graph.nodes if node.name not in split.before]
        assert any(value in reads(node) for node in crossing)


def test_the_name_of_a_split():
    graph = graph_of(nets.branches)
    ends = [node.name for node in graph.nodes if node.op == "Relu"][1:3]
    split = split_at(graph, ends)
    assert split.name == ",".join(ends)
    # Whatever their order, and however many nodes before them are named.
    assert split_at(graph, [*reversed(ends), *split.before]) == split
    assert split_at(graph, [ends[0], ends[0], ends[1]]) == split


def test_values_that_a_body_captures_cross():
    """The nodes of a body are after the split, and so is what they read."""
    net = nets.Net()
    x = net.op("Relu", net.gemm(net.input("x", 6), 6, 6))
    model = net.model(net.gemm(net.op("Neg", x), 6, 2))
    graph = normalise.prepare(read.from_model(model, name="net"))
    (relu,) = [node for node in graph.nodes if node.op == "Relu"]
    (neg,) = [node for node in graph.nodes if node.op == "Neg"]
    body = Subgraph("body", (Node("inner", "Neg", (x,), ("y",)),), (), (), {})
    flag = Node("flag", "ConstantOfShape", (), ("flag",))
    choice = Node(neg.name, "If", ("flag",), neg.outputs, {"then_branch": body})
    nodes = tuple(choice if node is neg else node for node in graph.nodes)
    bodied = replace(graph, nodes=(flag, *nodes))
    split = split_at(bodied, (relu.name,))
    assert split.values == (x,)
    assert flag.name not in split.before
    assert nodes_before(bodied, (neg.name,)) == {*split.before, "flag", neg.name}


def test_values_of_no_input_do_not_cross():
    """A table made of constants, which both sides read: it tells nothing of an input."""
    net = nets.Net()
    table = net.op("Neg", net.constant(np.ones((1, 6), np.float32)))
    x = net.op("Add", net.gemm(net.input("x", 6), 6, 6), table)
    model = net.model(net.gemm(net.op("Mul", x, table), 6, 2))
    # As it is: the passes would compute the table.
    graph = read.from_model(model, name="net")
    (end,) = [node.name for node in graph.nodes if x in node.outputs]
    split = split_at(graph, (end,))
    assert split.values == (x,)
    assert any(table in node.outputs and node.name in split.before for node in graph.nodes)


# ---- what is refused


def test_an_input_that_gets_past():
    """A cut that is no cut: the node and the input are named."""
    net = nets.Net()
    x = net.input("x", 6)
    y = net.op("Relu", net.gemm(x, 6, 6))
    model = net.model(net.gemm(net.op("Add", y, x), 6, 2))
    graph = normalise.prepare(read.from_model(model, name="net"))
    relu, add = (next(n.name for n in graph.nodes if n.op == op) for op in ("Relu", "Add"))
    said = f"split after '{relu}': node '{add}' reads the input 'x' around it; name a node on"
    with pytest.raises(InputError, match=said):
        split_at(graph, (relu,))
    assert split_at(graph, (add,)).values


def test_an_input_that_gets_past_in_another_form():
    """What follows from an input without a linear node tells what the input tells."""
    net = nets.Net()
    x = net.op("Sigmoid", net.input("x", 6))
    y = net.op("Relu", net.gemm(net.op("Tanh", x), 6, 6))
    z = net.op("Relu", net.gemm(net.op("Neg", x), 6, 6))
    model = net.model(net.gemm(net.op("Add", y, z), 6, 2))
    graph = normalise.prepare(read.from_model(model, name="net"))
    one, other = (n.name for n in graph.nodes if {y, z} & set(n.outputs))
    said = f"split after '{one}': node '.*' reads the input as '{x}' around it"
    with pytest.raises(InputError, match=said):
        split_at(graph, (one,))
    assert split_at(graph, (one, other)).values == (y, z)


def test_no_split_point_is_before_every_linear_node_of_its_path():
    """The first linear node's answer is an output of the model, and no node reads it."""
    net = nets.Net()
    x = net.input("x", 6)
    early = net.gemm(x, 6, 2)
    y = net.op("Relu", net.gemm(net.op("Sigmoid", x), 6, 6))
    model = net.model(net.gemm(y, 6, 2), early)
    graph = normalise.prepare(read.from_model(model, name="net"))
    (split,) = split_points(graph)
    assert split.values == (y,)
    assert {value for n in graph.nodes if n.name in split.before for value in n.outputs} >= {early}


def test_a_head_that_reads_an_early_value_is_before_later_split_points():
    net = nets.Net()
    x = net.op("Relu", net.gemm(net.input("x", 6), 6, 6))
    head = net.gemm(x, 6, 2)
    y = net.op("Relu", net.gemm(x, 6, 6))
    model = net.model(net.gemm(y, 6, 2), head)
    graph = normalise.prepare(read.from_model(model, name="net"))
    assert [split.values for split in split_points(graph)] == [(x,), (y,)]
    samples = nets.samples(model, 4)
    for split in split_points(graph):
        at = PlannedSplit(split.until)
        policies.make("origami-prefix", graph, calibration=samples, split=at)


def test_a_second_input_counts_too():
    graph = graph_of(nets.several)
    (conv,) = [node.name for node in graph.nodes if node.op == "Conv"]
    with pytest.raises(InputError, match="reads the input 'left' around it"):
        split_at(graph, (conv,))


def test_unknown_nodes_and_no_nodes():
    graph = graph_of(nets.chain)
    with pytest.raises(InputError, match=r"node 'pool9': .* it can be split at MaxPool_2, Aver"):
        split_at(graph, ("Relu_1", "pool9"))
    with pytest.raises(InputError, match="node '': the model has none of that name"):
        split_at(graph, ("",))
    with pytest.raises(InputError, match="name the last nodes before it"):
        split_at(graph, ())


def test_a_side_without_layers():
    graph = graph_of(nets.chain)
    last = graph.nodes[-1].name
    with pytest.raises(InputError, match=f"'{last}': no linear node is after it; use policy slal"):
        split_at(graph, (last,))
    net = nets.Net()
    x = net.op("Relu", net.input("x", 6))
    graph = normalise.prepare(read.from_model(net.model(net.gemm(x, 6, 2)), name="net"))
    with pytest.raises(InputError, match="no linear node is before it; use policy verified"):
        split_at(graph, (graph.nodes[0].name,))
