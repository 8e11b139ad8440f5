"""Parts of a graph as models of their own."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import nets
from cloister.errors import ModelError
from cloister.graph.element_types import (
    ELEMENT_TYPES,
    TEXT,
    element_number,
    from_raw,
    raw_bytes,
    raw_size,
)
from cloister.graph.graph import Node, OpaqueType, Subgraph
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.export import model_bytes, node_bytes, tensor_bytes
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from graph import onnx_reference as reference
from nets import Net


def to_model(*graph, **part) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model_bytes(*graph, **part))


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


def test_lists_of_numbers_are_written_as_protobuf_writes_them():
    """Whole numbers of every length, and negative ones; as bytes, since a reader takes others."""
    rng = np.random.default_rng(3)
    ends = [s * 2**bits - (s > 0 and d) for bits in range(63) for s in (-1, 1) for d in (0, 1)]
    numbers = [*ends, 2**63 - 1, -(2**63), *rng.integers(-(2**63), 2**63 - 1, 500).tolist()]
    reals = [0.0, -1.5, 2.0**127, *rng.standard_normal(500).astype(np.float32).tolist()]
    made = onnx.helper.make_node(
        "Odd", ["x"], ["y"], name="odd", domain="somewhere", numbers=numbers, reals=reals
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [made], "net", [onnx.helper.make_tensor_value_info("x", 1, [2])],
            [onnx.helper.make_tensor_value_info("y", 1, [2])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("somewhere", 1)],
    )  # fmt: skip
    (node,) = from_model(model, name="net").nodes
    assert (node.attributes["numbers"], node.attributes["reals"]) == (tuple(numbers), tuple(reals))
    assert node_bytes(node) == made.SerializeToString()


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


# ---- the encoder, against ONNX's own library


@pytest.mark.parametrize("build", nets.ALL.values(), ids=nets.ALL)
def test_the_bytes_are_those_that_onnx_writes(build):
    for graph in (from_model(build(), name="net"), prepare(from_model(build(), name="net"))):
        assert model_bytes(graph) == reference.to_model(graph).SerializeToString()


ATTRIBUTES = {
    "int": -3, "zero": 0, "large": 2**63 - 1, "small": -(2**63), "float": 0.1, "infinite": -np.inf,
    "text": "\u00e9", "no text": "", "bytes": b"\xff\x00", "ints": (1, -2, 2**40),
    "floats": (0.5, -1.0),
    "numbers": (1, 0.5), "texts": ("a", ""), "many bytes": (b"\xff", b""), "none": (),
    "array": np.arange(6, dtype=np.int64).reshape(2, 3), "arrays": (np.ones(2), np.zeros(())),
    "type": OpaqueType(np.dtype(np.float32), (2, "batch", "")),
    "of no rank": OpaqueType(np.dtype(bool)),
    "types": (OpaqueType(np.dtype(object), ()), OpaqueType()),
    "sequence": OpaqueType(proto=onnx.helper.make_sequence_type_proto(
        onnx.helper.make_tensor_type_proto(1, [2])).SerializeToString()),
    "body": Subgraph("body", (Node("n", "Relu", ("x", ""), ("y",)),),
                     (("x", OpaqueType(np.dtype(np.float32), (3,))),), (("y", OpaqueType()),),
                     {"c": np.array([1.5], np.float16)}),
}  # fmt: skip


@pytest.mark.parametrize("value", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_every_kind_of_attribute_is_written_as_onnx_writes_it(value):
    node = Node("name", "Op", ("a", "", "b"), ("c",), {"what": value, "more": 1}, "com.example")
    assert node_bytes(node) == reference.to_node(node).SerializeToString()


def test_an_attribute_that_onnx_has_no_kind_for_is_named():
    for value in (None, 1j, {"a": 1}, (1, "a"), [1]):
        with pytest.raises(ModelError, match="node 'n': attribute 'odd'"):
            node_bytes(Node("n", "Op", (), (), {"odd": value}))


@pytest.mark.parametrize("number", ELEMENT_TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (4, 4)])
def test_every_element_type_is_written_as_onnx_writes_it(number, shape):
    dtype = ELEMENT_TYPES[number]
    values = np.arange(int(np.prod(shape))).reshape(shape) % 4
    array = np.array(values.astype(str), object) if number == TEXT else values.astype(dtype)
    assert onnx.helper.np_dtype_to_tensor_dtype(dtype) == number == element_number(dtype)
    assert tensor_bytes(array, "w") == reference.to_tensor(array, "w").SerializeToString()
    if number != TEXT:
        raw = np.frombuffer(raw_bytes(array), np.uint8)
        assert len(raw) == raw_size(number, shape)
        again = from_raw(raw, number, shape)
        assert again.dtype == dtype and again.shape == shape
        np.testing.assert_array_equal(again.astype(complex), array.astype(complex))


def test_bytes_that_are_never_written_are_no_tensor():
    for number, data, shape in ((9, [2], (1,)), (22, [0x10], (1,)), (26, [0xFF], (3,))):
        with pytest.raises(ValueError):
            from_raw(np.array(data, np.uint8), number, shape)


def test_arrays_in_any_order_of_memory_are_written_in_c_order():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view in (array.T, array[:, ::-1], np.asfortranarray(array), array.astype(">f4")):
        native = view.astype("<f4")
        assert tensor_bytes(view, "w") == reference.to_tensor(native, "w").SerializeToString()


def test_lengths_of_every_width_are_written():
    for size in (0, 1, 127, 128, 16_383, 16_384, 2_097_152):
        array = np.zeros(size, np.uint8)
        assert tensor_bytes(array, "w") == reference.to_tensor(array, "w").SerializeToString()
