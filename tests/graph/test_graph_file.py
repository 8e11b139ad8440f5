"""Graphs as canonical bytes: one encoding each, and nothing but InputError for anything else."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

import nets
from cloister.errors import InputError, ModelError
from cloister.graph import graph_file
from cloister.graph.canonical import ALIGNMENT, PRELUDE
from cloister.graph.element_types import ELEMENT_TYPES, TEXT
from cloister.graph.graph import Graph, Node, OpaqueType, Subgraph, TensorType
from cloister.graph.interpreter import interpret
from cloister.graph.legality import unsupported
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare

NETS = {**nets.ALL, "choosing": nets.choosing}


def graph_of(build) -> Graph:
    return prepare(from_model(build(), name="net"))


def document_of(data: bytes) -> dict:
    return json.loads(data[PRELUDE.size :][: PRELUDE.unpack_from(data)[2]])


def with_document(data: bytes, text: bytes) -> bytes:
    """The same tensors behind another document."""
    magic, version, length = PRELUDE.unpack_from(data)
    end = PRELUDE.size + length
    head = PRELUDE.pack(magic, version, len(text)) + text
    return head + bytes(-len(head) % ALIGNMENT) + data[end + -end % ALIGNMENT :]


def canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_a_graph_comes_back_whole(build):
    graph = graph_of(build)
    data = graph_file.to_bytes(graph)
    again = graph_file.from_bytes(data)
    assert graph_file.to_bytes(again) == data
    assert (again.name, again.inputs, again.outputs) == (graph.name, graph.inputs, graph.outputs)
    assert again.types == graph.types and again.opaque == graph.opaque
    assert (again.separable, again.joins) == (graph.separable, graph.joins)
    assert (again.opset, again.domains) == (graph.opset, graph.domains)
    feeds = nets.samples(build(), 3)
    wanted, found = interpret(graph, feeds), interpret(again, feeds)
    for name in graph.outputs:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert onnx.ModelProto.FromString(model_bytes(again)).graph.output == (
        onnx.ModelProto.FromString(model_bytes(graph)).graph.output
    )


def test_the_order_of_names_does_not_matter():
    graph = graph_of(nets.residual)
    turned = replace(
        graph,
        constants=dict(reversed(graph.constants.items())),
        types=dict(reversed(graph.types.items())),
        nodes=tuple(
            replace(node, attributes=dict(reversed(node.attributes.items())))
            for node in graph.nodes
        ),
    )
    assert graph_file.to_bytes(turned) == graph_file.to_bytes(graph)
    assert graph_file.to_bytes(replace(graph, name="other")) != graph_file.to_bytes(graph)


FLOAT = np.dtype(np.float32)
ATTRIBUTES = {
    "int": -3, "float": 0.1, "whole float": 1.0, "infinite": float("-inf"), "text": "\u00e9\n",
    "bytes": b"\xff\x00", "ints": (1, -(2**63)), "floats": (0.5, -0.0), "texts": ("a", ""),
    "none": (), "array": np.arange(6, dtype=np.int64).reshape(2, 3),
    "arrays": (np.ones(2), np.zeros(())), "type": OpaqueType(FLOAT, (2, "batch", "")),
    "types": (OpaqueType(np.dtype(object), ()), OpaqueType()), "other": OpaqueType(proto=b"\x22"),
    "body": Subgraph("body", (Node("n", "Relu", ("x",), ("y",)),), (("x", OpaqueType(FLOAT, ())),),
                     (("y", OpaqueType()),), {"c": np.array([1.5], np.float16)}),
}  # fmt: skip


def with_attribute(value: object) -> Graph:
    node = Node("n", "Op", ("x",), ("y",), {"what": value}, "com.microsoft")
    types = {name: TensorType(FLOAT, (None, 2)) for name in ("x", "y")}
    return Graph("g", (node,), ("x",), ("y",), {}, types, 17, domains={"com.microsoft": 1})


@pytest.mark.parametrize("value", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_every_kind_of_attribute_comes_back(value):
    graph = with_attribute(value)
    data = graph_file.to_bytes(graph)
    again = graph_file.from_bytes(data)
    assert model_bytes(again) == model_bytes(graph)
    assert type(again.nodes[0].attributes["what"]) is type(value)


def test_an_attribute_that_no_file_holds_is_named():
    for value in (None, 1j, [1], {"a": 1}, ((1,), 2)):
        with pytest.raises(InputError, match="node 'n': attribute 'what'"):
            graph_file.to_bytes(with_attribute(value))


@pytest.mark.parametrize("number", ELEMENT_TYPES)
def test_every_element_type_comes_back(number):
    dtype = ELEMENT_TYPES[number]
    values = np.arange(6).reshape(2, 3) % 4
    array = np.array(values.astype(str), object) if number == TEXT else values.astype(dtype)
    graph = with_attribute(array)
    again = graph_file.from_bytes(graph_file.to_bytes(graph)).nodes[0].attributes["what"]
    assert again.dtype == dtype and again.shape == (2, 3)
    np.testing.assert_array_equal(again.astype(complex), array.astype(complex))


def test_constants_are_views_that_nobody_can_change():
    data = graph_file.to_bytes(graph_of(nets.chain))
    for array in graph_file.from_bytes(data).constants.values():
        assert not array.flags.writeable
        assert array.base is not None


# ---- other bytes


@pytest.fixture(scope="module")
def data() -> bytes:
    return graph_file.to_bytes(graph_of(nets.residual))


def test_another_encoding_of_the_same_graph_is_refused(data):
    document = document_of(data)
    spaced = json.dumps(document, sort_keys=True).encode()
    unsorted = json.dumps(dict(reversed(document.items())), separators=(",", ":")).encode()
    as_float = canonical(document).replace(b'"opset":17', b'"opset":17.0')
    escaped = canonical(document).replace(b'"nodes"', b'"n\\u006fdes"')
    twice = canonical(document).replace(b'"opset":17', b'"opset":16,"opset":17')
    for text in (spaced, unsorted, as_float, escaped, twice):
        assert text != canonical(document)
        with pytest.raises(InputError):
            graph_file.from_bytes(with_document(data, text))
    assert graph_file.from_bytes(with_document(data, canonical(document))).opset == 17


def test_bytes_before_between_and_behind_are_refused(data):
    length = PRELUDE.unpack_from(data)[2]
    gap = PRELUDE.size + length
    assert gap % ALIGNMENT
    filled = bytearray(data)
    filled[gap] = 1
    for other in (b"", data[:10], data[:gap], data[:-1], data + b"\0", bytes(filled), b"X" + data):
        with pytest.raises(InputError):
            graph_file.from_bytes(other)


def test_another_version_is_named(data):
    magic, version, length = PRELUDE.unpack_from(data)
    for other, message in (
        (PRELUDE.pack(magic, version + 1, length), "version 2, and this version reads 1"),
        (PRELUDE.pack(b"CLOX", version, length), "begins otherwise"),
        (PRELUDE.pack(magic, version, 2**40), "cut off or too long"),
    ):
        with pytest.raises(InputError, match=message):
            graph_file.from_bytes(other + data[PRELUDE.size :])


def changed(document, path, value):
    *rest, last = path
    for key in rest:
        document = document[key]
    document[last] = value


ODD = {
    "an unknown field": (("more",), 1),
    "a name that is no text": (("name",), 5),
    "half a pair of surrogates": (("name",), "\ud800"),
    "a version below one": (("opset",), 0),
    "truth as a number": (("opset",), True),
    "a number as truth": (("separable",), 1),
    "an input twice": (("inputs",), ["x", "x"]),
    "an output that nobody makes": (("outputs",), ["nowhere"]),
    "a node of no operator": (("nodes", 0, "op"), None),
    "a node whose name does not print": (("nodes", 0, "name"), "\x1b[2J"),
    "a node that reads later values": (("nodes", 0, "inputs"), ["v5"]),
    "an attribute of no kind": (("nodes", 0, "attributes"), {"a": {"pickle": ""}}),
    "an attribute of two kinds": (("nodes", 0, "attributes"), {"a": {"bytes": "", "more": 1}}),
    "an attribute that is no int64": (("nodes", 0, "attributes"), {"a": 2**63}),
    "a nested list": (("nodes", 0, "attributes"), {"a": [[1]]}),
    "an element type that is none": (("types", "v0"), [99, [1]]),
    "a negative size": (("types", "v0"), [1, [-1]]),
    "an absurd size": (("types", "v0"), [1, [2**40]]),
    "an absurd rank": (("types", "v0"), [1, [1] * 40]),
    "a value of no type": (("types",), {}),
    "a constant that is left out": (("constants", "c0"), None),
    "a constant of another type": (("constants", "c0"), [5, [9, 3, 3, 6]]),
    "a constant beyond the end": (("constants", "c0"), [1, [2**31, 2**31]]),
    "a constant of huge and no sizes": (("constants", "c0"), [1, [2**62, 0]]),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), ODD.values(), ids=ODD)
def test_what_no_graph_says_is_refused(data, path, value):
    document = document_of(data)
    changed(document, path, value)
    with pytest.raises(InputError):
        graph_file.from_bytes(with_document(data, canonical(document)))


def test_a_type_is_a_tensor_s_or_something_else_s():
    graph = with_attribute(OpaqueType(FLOAT, None, b"\x22"))
    with pytest.raises(InputError, match="a tensor's and something else's"):
        graph_file.from_bytes(graph_file.to_bytes(graph))


def test_stored_truth_is_0_or_1():
    data = bytearray(graph_file.to_bytes(with_attribute(np.array([True]))))
    data[-1] = 2
    with pytest.raises(InputError, match="neither 0 nor 1"):
        graph_file.from_bytes(bytes(data))


def test_a_document_nested_without_end_is_refused(data):
    for text in (b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(InputError):
            graph_file.from_bytes(with_document(data, text))


def test_a_node_that_opens_a_file_is_unsupported():
    body = Subgraph("b", (Node("e", "EPContext", (), ("y",), {}, "com.microsoft"),), (), (), {})
    for node in (
        Node("n", "EPContext", ("x",), ("y",), {}, "com.microsoft"),
        Node("n", "If", ("x",), ("y",), {"then_branch": body}),
    ):
        (found,) = unsupported(replace(with_attribute(1), nodes=(node,)))
        assert found[0] == "n" and "reads a file" in found[1]


def test_an_unknown_operator_is_refused_when_a_model_is_read():
    model = nets.chain()
    model.graph.node[0].op_type = "Strange"
    with pytest.raises(ModelError, match="Strange"):
        from_model(model, name="net")


def test_no_library_that_reads_models_is_needed(data):
    script = """
import sys
sys.modules.update(onnx=None, grpc=None)
from cloister.graph import graph_file
from cloister.graph.interpreter import evaluate_with_runtime
graph = graph_file.from_bytes(sys.stdin.buffer.read())
print(len(graph.nodes))
"""
    ran = subprocess.run([sys.executable, "-P", "-c", script], input=data, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == len(graph_of(nets.residual).nodes)
