"""Parts of a graph as models of their own."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import nets
from cloister.errors import ModelError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.export import to_model
from cloister.graph.onnx.read import from_model
from nets import Net


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString()).run(None, feeds)


@pytest.mark.parametrize("build", nets.ALL.values(), ids=nets.ALL)
def test_any_cut_gives_two_models_that_make_the_whole(build):
    model = build()
    graph = from_model(model, name="net")
    feeds = nets.samples(model, 2)
    values = interpret(graph, feeds, wanted=[v for node in graph.nodes for v in node.outputs])
    values |= feeds
    for at in range(1, len(graph.nodes)):
        tail = graph.nodes[at:]
        made = {v for node in tail for v in node.outputs}
        read = dict.fromkeys(v for node in tail for v in node.inputs)
        inputs = [v for v in read if v not in made and v not in graph.constants]
        outputs = [v for v in graph.outputs if v in made]
        part = to_model(graph, nodes=tail, inputs=inputs, outputs=outputs)
        onnx.checker.check_model(part, full_check=True)
        found = run(part, {v: values[v] for v in inputs})
        for name, array in zip(outputs, found, strict=True):
            np.testing.assert_allclose(array, values[name], rtol=1e-4, atol=1e-5)


def test_only_needed_constants_are_kept():
    graph = from_model(nets.chain(), name="net")
    part = to_model(graph, nodes=graph.nodes[1:2], inputs=["v0"], outputs=["v1"])
    assert not part.graph.initializer


def test_inner_values_can_be_outputs():
    model = nets.residual()
    graph = from_model(model, name="net")
    inner = tuple(node.outputs[0] for node in graph.nodes[:-1])
    found = run(to_model(graph, outputs=(*graph.outputs, *inner)), nets.samples(model, 2))
    assert [array.shape[1:] for array in found[1:]] == [graph.types[v].shape[1:] for v in inner]


def test_attributes_survive_unchanged():
    net = Net()
    tensor = onnx.numpy_helper.from_array(np.array([2.5], np.float32))
    x = net.op("ConstantOfShape", net.constant(np.array([3, 2])), value=tensor)
    y = net.op("LeakyRelu", net.input("x", 2), alpha=1.0)
    z = net.op("Pad", y, net.constant(np.array([0, 1, 0, 0])), mode="reflect")
    model = net.model(x, z)
    exported = to_model(from_model(model, name="net"))
    wanted = [list(node.attribute) for node in model.graph.node]
    found = [list(node.attribute) for node in exported.graph.node]
    for a, b in zip(wanted, found, strict=True):
        values = [[onnx.helper.get_attribute_value(one) for one in part] for part in (a, b)]
        assert [one.type for one in a] == [one.type for one in b]
        assert len(values[0]) == len(values[1])
    np.testing.assert_array_equal(run(exported, {"x": np.zeros((1, 2), np.float32)})[0], 2.5)


def test_an_empty_list_survives():
    net = Net()
    model = net.model(net.op("ReduceMean", net.input("x", 2)))
    empty = onnx.helper.make_attribute("axes", [], attr_type=onnx.AttributeProto.INTS)
    model.graph.node[0].attribute.append(empty)
    exported = to_model(from_model(model, name="net"))
    (found,) = exported.graph.node[0].attribute
    assert (found.name, found.type, list(found.ints)) == ("axes", onnx.AttributeProto.INTS, [])


def test_a_border_of_unknown_type_is_named():
    net = Net()
    model = net.model(net.op("Odd", net.input("x", 2)))
    model.graph.node[0].domain = "somewhere"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    graph = from_model(model, name="net")
    with pytest.raises(ModelError, match="v0"):
        to_model(graph, nodes=(), inputs=("v0",), outputs=("v0",))
