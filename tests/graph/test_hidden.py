"""The hidden end of a model: its nodes, what of it is left outside, and what it computes."""

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets
from cloister.errors import InputError, ModelError, UnsupportedError
from cloister.graph import graph_file
from cloister.graph.batch import batch_axis
from cloister.graph.graph import MODULE_DOMAIN, MODULE_OP, Graph, Node, TensorType
from cloister.graph.hidden import HiddenSplit, hide, layers
from cloister.graph.interpreter import interpret
from cloister.graph.legality import require_supported, unsupported
from cloister.graph.module_node import check_module, module_digest, module_queries
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare

DIGEST = bytes(range(32))


def graph_of(model: onnx.ModelProto) -> Graph:
    return prepare(from_model(model, name="net"))


def vgg() -> onnx.ModelProto:
    """Convolutions and pooling, then three dense layers, as VGG16 has them."""
    net = nets.Net(10)
    x = net.input("image", 3, 16, 12)
    for cin, cout in ((3, 4), (4, 8)):
        x = net.op("Relu", net.conv(x, cin, cout, pads=[1] * 4))
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.gemm(net.op("Flatten", x), 8 * 4 * 3, 10))
    x = net.op("Relu", net.gemm(x, 10, 9))
    return net.model(net.op("Softmax", net.gemm(x, 9, 5), axis=1))


def mlp() -> onnx.ModelProto:
    """An embedding, its mean, dense layers without a bias and with one apart."""
    net = nets.Net(11)
    net.inputs.append(helper.make_tensor_value_info("words", TensorProto.INT64, ["N", 6]))
    x = net.op("Gather", net.weights(20, 8), "words", axis=0)
    x = net.op("ReduceMean", x, axes=[1], keepdims=0)
    x = net.op("Relu", net.op("Add", net.op("MatMul", x, net.weights(8, 7)), net.weights(7)))
    return net.model(net.op("Sigmoid", net.op("MatMul", x, net.weights(7, 2))))


BUILDS = {**nets.ALL, "vgg": vgg, "mlp": mlp}
COUNTS = {"vgg": 5, "mlp": 3, "residual": 7, "separable": 6, "chain": 3, "several": 4}


def samples(build, count: int) -> dict[str, np.ndarray]:
    if build is mlp:
        return {"words": np.random.default_rng(0).integers(0, 20, (count, 6))}
    return nets.samples(build(), count)


def compute(split: HiddenSplit, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs, from those of its two parts."""
    *outside, module = split.outer.nodes
    rest = tuple(v for v in split.outer.outputs if v not in module.outputs)
    entering = tuple(dict.fromkeys((*module.inputs, *rest)))
    outer = replace(split.outer, nodes=tuple(outside), outputs=())
    values = interpret(outer, feeds, wanted=entering)
    inner = interpret(split.hidden, {name: values[name] for name in split.hidden.inputs})
    return {**{name: values[name] for name in rest}, **inner}


@pytest.mark.parametrize("name", BUILDS)
def test_both_parts_compute_the_model_wherever_it_is_split(name):
    graph, feeds = graph_of(BUILDS[name]()), samples(BUILDS[name], 3)
    expected = interpret(graph, feeds)
    count = len(layers(graph))
    assert count == COUNTS.get(name, count)
    for last in range(1, count + 1):
        split = hide(graph, last=last)
        module = split.outer.nodes[-1]
        assert (module.domain, module.op, module.name) == (MODULE_DOMAIN, MODULE_OP, split.node)
        assert len(layers(split.hidden)) == last
        assert len(split.outer.nodes) + len(split.hidden.nodes) == len(graph.nodes) + 1
        assert split.hidden.inputs == module.inputs
        assert split.hidden.outputs == module.outputs
        found = compute(split, feeds)
        assert set(found) == set(expected)
        for output, array in expected.items():
            np.testing.assert_array_equal(found[output], array)


def test_all_layers_are_all_nodes():
    graph = graph_of(vgg())
    split = hide(graph, last=5)
    assert [node.op for node in split.outer.nodes] == [MODULE_OP]
    assert split.hidden.nodes == graph.nodes
    assert split.outer.constants == {}


@pytest.mark.parametrize("name", BUILDS)
def test_an_end_from_a_node_on_is_the_end_of_as_many_layers(name):
    graph = graph_of(BUILDS[name]())
    for i, node in enumerate(layers(graph)):
        by_name = hide(graph, first=node.name)
        by_count = hide(graph, last=len(layers(graph)) - i)
        if i:
            assert graph_file.to_bytes(by_name.outer) == graph_file.to_bytes(by_count.outer)
        assert by_name.hidden.nodes[0] is node


def test_an_end_may_begin_behind_a_layers_first_node():
    graph = graph_of(vgg())
    pooling = next(node for node in graph.nodes if node.op == "MaxPool")
    assert hide(graph, first=pooling.name).hidden.nodes[0] is pooling


def test_a_residual_block_that_is_split_has_two_inputs():
    graph = graph_of(nets.residual())
    first, *_ = (node for node in graph.nodes if node.op == "Add")
    split = hide(graph, first=layers(graph)[-2].name)
    second = graph.nodes[graph.nodes.index(split.hidden.nodes[-1])]
    assert len(split.hidden.inputs) == 2
    assert first.name in {node.name for node in split.outer.nodes}
    assert second.name not in {node.name for node in split.outer.nodes}


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_of_the_hidden_part_is_outside(name):
    """Neither weights nor names of nodes, constants and inner values are in the outer bytes."""
    graph = graph_of(BUILDS[name]())
    for last in range(1, len(layers(graph)) + 1):
        split = hide(graph, last=last)
        data = graph_file.to_bytes(split.named(DIGEST))
        border = {*split.hidden.inputs, *split.hidden.outputs}
        outside = {v for node in split.outer.nodes for v in (*node.inputs, *node.outputs)}
        inner = {v for node in split.hidden.nodes for v in (*node.inputs, *node.outputs)}
        for value in inner - border - outside:
            assert f'"{value}"'.encode() not in data
        for node in split.hidden.nodes:
            assert node.name.encode() not in data
        for value in set(split.hidden.constants) - set(split.outer.constants):
            if len(np.unique(weights := split.hidden.constants[value])) > 2:
                assert weights.tobytes()[:12] not in data


def test_names_that_only_the_hidden_part_has_are_what_a_test_finds():
    """The search above finds them where they are."""
    graph = graph_of(vgg())
    data = graph_file.to_bytes(graph)
    assert f'"{graph.nodes[-1].name}"'.encode() in data
    assert f'"{graph.nodes[-1].inputs[0]}"'.encode() in data
    assert graph.constants[layers(graph)[-1].inputs[1]].tobytes()[:12] in data


def test_only_domains_in_use_are_named():
    graph = replace(graph_of(vgg()), domains={"com.microsoft": 1})
    nodes = [*graph.nodes[:-1], replace(graph.nodes[-1], domain="com.microsoft")]
    split = hide(replace(graph, nodes=tuple(nodes)), last=1)
    assert split.outer.domains == {}
    assert split.hidden.domains == {"com.microsoft": 1}


@pytest.mark.parametrize(("fixed", "count"), [(False, 2), (True, 1)])
def test_the_batch_is_free_or_one(fixed, count):
    graph = graph_of(vgg())
    feeds = samples(vgg, count)
    if fixed:
        one = {v: replace(t, shape=(1, *t.shape[1:])) if None in t.shape else t
               for v, t in graph.types.items()}  # fmt: skip
        graph = replace(graph, types=one)
    assert graph.batch == (1 if fixed else None)
    split = hide(graph, last=2)
    assert split.outer.batch == split.hidden.batch == graph.batch
    for value in (*split.outer.inputs, *split.outer.outputs):
        assert batch_axis(split.outer, value) == 0
    assert split.outer.separable
    for output, array in interpret(graph, feeds).items():
        np.testing.assert_array_equal(compute(split, feeds)[output], array)


def test_joins_of_outputs_stay():
    graph = graph_of(nets.several())
    graph = replace(graph, joins={graph.outputs[1]: 0})
    split = hide(graph, last=1)
    assert split.outer.joins == graph.joins
    assert set(split.hidden.joins) <= set(split.hidden.outputs)


def test_a_node_of_the_name_is_no_hindrance():
    graph = graph_of(vgg())
    nodes = (replace(graph.nodes[0], name="module"), *graph.nodes[1:])
    assert hide(replace(graph, nodes=nodes), last=1).node == "module_"


@pytest.mark.parametrize(("choice", "message"), [
    ({"last": 0}, "has 5 layers"),
    ({"last": 6}, "has 5 layers"),
    ({"first": "nowhere"}, "none of that name; its last layers: 'Conv_0', 'Conv_3'"),
    ({"first": "Softmax_12"}, "no node from it on has weights"),
    ({}, "give the number of its layers, or its first node"),
    ({"last": 1, "first": "Gemm_7"}, "give the number of its layers, or its first node"),
])  # fmt: skip
def test_an_end_that_is_none_is_refused(choice, message):
    graph = graph_of(vgg())
    with pytest.raises(InputError, match=re.escape(message)):
        hide(graph, **choice)


def test_weights_that_an_open_node_reads_too_are_refused():
    net = nets.Net()
    x, shared = net.input("x", 6), net.weights(6, 6)
    y = net.op("Relu", net.op("MatMul", x, shared))
    graph = graph_of(net.model(net.op("MatMul", y, shared)))
    with pytest.raises(InputError, match="'MatMul_2': node 'MatMul_0' shows its weights 'c0'"):
        hide(graph, last=1)
    assert hide(graph, last=2).outer.constants == {}


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_one_number_that_layers_share_is_no_secret(number):
    net = nets.Net()
    shared = net.constant(np.full(6, number, np.float32))
    y = net.op("Relu", net.op("Gemm", net.input("x", 6), net.weights(6, 6), shared))
    graph = graph_of(net.model(net.op("Gemm", y, net.weights(6, 6), shared)))
    assert hide(graph, last=1).hidden.nodes[0].op == "Gemm"


def test_a_bias_that_an_open_node_reads_too_is_refused():
    net = nets.Net()
    shared = net.constant(np.arange(6, dtype=np.float32))
    y = net.op("Relu", net.op("Gemm", net.input("x", 6), net.weights(6, 6), shared))
    graph = graph_of(net.model(net.op("Gemm", y, net.weights(6, 6), shared)))
    with pytest.raises(InputError, match="'Gemm_2': node 'Gemm_0' shows its weights"):
        hide(graph, last=1)


def test_a_batch_that_is_not_separable_is_refused():
    graph = replace(graph_of(vgg()), separable=False)
    with pytest.raises(UnsupportedError, match="takes one sample at a time"):
        hide(graph, last=1)


def test_a_fixed_batch_above_one_is_refused():
    graph = graph_of(vgg())
    types = {v: replace(t, shape=(4, *t.shape[1:])) if None in t.shape else t
             for v, t in graph.types.items()}  # fmt: skip
    with pytest.raises(UnsupportedError, match="free or one"):
        hide(replace(graph, types=types), last=1)


def test_a_value_without_the_batch_is_refused():
    """A table that is the same for all samples enters the hidden part."""
    net = nets.Net()
    x = net.input("x", 4)
    net.inputs.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [4]))
    graph = graph_of(net.model(net.op("Add", net.gemm(x, 4, 4), "table")))
    with pytest.raises(UnsupportedError, match="value 'table': a hidden part takes one sample"):
        hide(graph, last=1)


def test_an_element_type_that_no_module_reads_is_refused():
    net = nets.Net()
    x = net.op("Cast", net.input("x", 4), to=TensorProto.BOOL)
    x = net.op("Cast", net.op("Not", x), to=TensorProto.FLOAT)
    graph = graph_of(net.model(net.gemm(x, 4, 3)))
    cast = graph.nodes[-2]
    with pytest.raises(UnsupportedError, match="a hidden part cannot read bool"):
        hide(graph, first=cast.name)
    assert hide(graph, last=1).hidden.nodes[0] is not cast or len(graph.nodes) == 3


def test_a_part_of_a_part_is_refused():
    outer = hide(graph_of(vgg()), last=2).named(DIGEST)
    with pytest.raises(InputError, match="node 'module': is a hidden part already"):
        hide(outer, last=1)


def test_a_value_that_only_a_body_reads_enters():
    graph = graph_of(nets.choosing())
    gemm, *_, choice, tanh = graph.nodes
    graph = replace(
        graph,
        separable=True,  # which it is not; only what enters is looked at
        nodes=(gemm, *graph.nodes[1:-1], Node("end", "MatMul", (tanh.inputs[0], "w"), ("v4",))),
        constants={**graph.constants, "w": np.eye(4, dtype=np.float32)},
        types={
            **graph.types,
            "w": TensorType(np.dtype("f4"), (4, 4)),
            "v4": TensorType(np.dtype("f4"), (None, 4)),
            choice.inputs[0]: TensorType(np.dtype("i8"), (None,)),
        },
    )
    split = hide(graph, first=choice.name)
    assert split.hidden.inputs == (choice.inputs[0], gemm.outputs[0])
    assert [node.op for node in split.hidden.nodes] == ["If", "MatMul"]


# ---- the node that stands for the hidden part


def test_a_node_names_its_module_and_its_queries():
    split = hide(graph_of(vgg()), last=2)
    with pytest.raises(ModelError, match="node 'module': names no module"):
        check_module(split.outer, split.outer.nodes[-1])
    for queries in (None, 500):
        outer = split.named(DIGEST, queries=queries)
        assert module_digest(outer.nodes[-1]) == DIGEST
        assert module_queries(outer.nodes[-1]) == queries
        assert unsupported(outer) == []
        again = graph_file.from_bytes(graph_file.to_bytes(outer))
        assert graph_file.to_bytes(again) == graph_file.to_bytes(outer)
        assert again.nodes[-1].attributes == outer.nodes[-1].attributes


@pytest.mark.parametrize(("attributes", "message"), [
    ({}, "names no module"),
    ({"digest": DIGEST[1:]}, "names no module"),
    ({"digest": DIGEST.hex()}, "names no module"),
    ({"digest": DIGEST, "queries": 0}, "at least one"),
    ({"digest": DIGEST, "queries": 2**63}, "at least one"),
    ({"digest": DIGEST, "queries": 1.0}, "at least one"),
    ({"digest": DIGEST, "weights": 1}, "a digest and queries alone"),
])  # fmt: skip
def test_a_node_that_says_something_else_is_refused(attributes, message):
    outer = hide(graph_of(vgg()), last=2).outer
    nodes = (*outer.nodes[:-1], replace(outer.nodes[-1], attributes=attributes))
    with pytest.raises(ModelError, match=message):
        check_module(replace(outer, nodes=nodes), nodes[-1])


def test_a_module_of_other_values_is_refused():
    outer = hide(graph_of(vgg()), last=2).named(DIGEST)
    module = outer.nodes[-1]
    for known in (TensorType(np.dtype(bool), (None, 10)), TensorType(np.dtype("f4"), (10,))):
        types = {**outer.types, module.inputs[0]: known}
        with pytest.raises(UnsupportedError, match="hidden part"):
            check_module(replace(outer, types=types), module)
    with pytest.raises(UnsupportedError, match="at least one input"):
        check_module(outer, replace(module, inputs=()))


def test_a_module_in_a_body_is_refused():
    graph = graph_of(nets.choosing())
    (choice,) = (node for node in graph.nodes if node.op == "If")
    body = choice.attributes["then_branch"]
    module = Node("m", MODULE_OP, ("v0",), ("y",), {"digest": DIGEST}, domain=MODULE_DOMAIN)
    attributes = {**choice.attributes, "then_branch": replace(body, nodes=(module,))}
    nodes = [replace(n, attributes=attributes) if n is choice else n for n in graph.nodes]
    with pytest.raises(UnsupportedError, match="hidden part in a body"):
        require_supported(replace(graph, nodes=tuple(nodes)))


def test_another_operator_of_the_domain_has_no_implementation():
    node = helper.make_node("Other", ["x"], ["y"], domain=MODULE_DOMAIN, name="other")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MODULE_DOMAIN, 1)]
    weights = numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph([node], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(UnsupportedError, match="has no implementation"):
        require_supported(graph_of(model))
