"""Outputs of every kind, as ONNX Runtime returns them: under every policy, in parts and whole."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.graph.batch import joined
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted.compare import compare
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from nets import Net
from trusted.program.oracle import Oracle
from trusted.random_models import runtime

POLICIES = ("enclave", "open", "slalom", "verified")
ML = "ai.onnx.ml"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Model(Net):
    """A net whose outputs may have any type; `x` has rows of three, `y` those of a linear node."""

    def __init__(self):
        super().__init__()
        self.outputs = []
        self.y = self.op("MatMul", self.input("x", 3), self.weights(3, 4))

    def number(self, value, dtype=np.int64):
        return self.constant(np.array(value, dtype))

    def gives(self, value, kind=TensorProto.FLOAT, shape=None):
        self.outputs.append(helper.make_tensor_value_info(value, kind, shape))
        return self

    def gives_type(self, value, proto):
        self.outputs.append(helper.make_value_info(value, proto))
        return self

    def model(self):
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def tensor(kind=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_type_proto(kind, shape)


def probabilities(key):
    proto = onnx.TypeProto()
    proto.sequence_type.elem_type.map_type.key_type = key
    proto.sequence_type.elem_type.map_type.value_type.CopyFrom(tensor())
    return proto


def an_input_and_a_constant():
    net = Model()
    table = net.constant(normal(2, 5))
    return net.gives(net.y).gives("x", shape=["N", 3]).gives(table)


def other_first_axes():
    net = Model()
    turned = net.op("Transpose", net.y, perm=[1, 0])
    sizes = net.op("Shape", net.y)
    top = net.op("ReduceMax", net.y, keepdims=0)
    return net.gives(net.y).gives(turned).gives(sizes, TensorProto.INT64).gives(top)


def truths():
    net = Model()
    return net.gives(net.op("Greater", net.y, net.constant(np.float32(0))), TensorProto.BOOL)


def parts():
    net = Model()
    split = net.op("SplitToSequence", net.y, net.number(2), axis=1)
    return net.gives(net.y).gives_type(split, helper.make_sequence_type_proto(tensor()))


def parts_inside():
    """A sequence between two linear nodes."""
    net = Model()
    split = net.op("SplitToSequence", net.op("Relu", net.y), net.number(2), axis=1)
    return net.gives(net.op("MatMul", net.op("SequenceAt", split, net.number(1)),
                            net.weights(2, 3)))  # fmt: skip


def no_parts():
    net = Model()
    none = net.op("SequenceEmpty", dtype=TensorProto.FLOAT)
    return net.gives(net.y).gives_type(none, helper.make_sequence_type_proto(tensor()))


def optional():
    net = Model()
    given = net.op("Optional", net.y)
    return net.gives(net.y).gives_type(given, helper.make_optional_type_proto(tensor()))


def optional_that_is_not_there():
    net = Model()
    none = net.op("Optional", type=tensor(shape=[4]))
    has = net.op("OptionalHasElement", none)
    net.gives(net.y).gives_type(none, helper.make_optional_type_proto(tensor(shape=[4])))
    return net.gives(has, TensorProto.BOOL)


def maps(**keys):
    net = Model()
    p = net.op("Softmax", net.y)
    label = net.op("ArgMax", p, axis=1, keepdims=0)
    named = net.op("ZipMap", p, domain=ML, **keys)
    kind = TensorProto.INT64 if "classlabels_int64s" in keys else TensorProto.STRING
    return net.gives(label, TensorProto.INT64).gives_type(named, probabilities(kind))


def maps_of_numbers():
    return maps(classlabels_int64s=[7, 5, 3, 1])


def maps_of_names():
    return maps(classlabels_strings=["ant", "bee", "cat", "dog"])


def text():
    net = Model()
    best = net.op("ArgMax", net.y, axis=1, keepdims=0)
    named = net.op("LabelEncoder", best, domain=ML, keys_int64s=[0, 1, 2, 3],
                   values_strings=["ant", "bee", "cat", "dog"])  # fmt: skip
    return net.gives(named, TensorProto.STRING).gives(net.y)


def counted():
    """Outputs whose sizes the values decide."""
    net = Model()
    net.gives(net.op("NonZero", net.op("Relu", net.y)), TensorProto.INT64)
    kept = net.op("Compress", net.y, net.constant(np.array([True, False, True])), axis=1)
    return net.gives(kept).gives(net.op("Unique", net.op("Relu", net.y)))


def branches():
    """A fused step's value that only subgraphs read, one of them in the other's body."""
    net = Model()
    kept = net.op("Relu", net.op("MatMul", "x", net.weights(3, 4)))
    a, b, same, turns = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4])
                         for n in ("a", "b", "same", "turns"))  # fmt: skip
    yes = helper.make_graph([helper.make_node("Add", ["a", kept], ["b"])], "yes", [], [b])
    no = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "no", [], [b])
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    go, on = (helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go", "on"))
    inner = [
        helper.make_node("Identity", ["go"], ["on"]),
        helper.make_node("If", ["go"], ["same"], then_branch=yes, else_branch=no),
        helper.make_node("Identity", ["same"], ["turns"]),
    ]
    body = helper.make_graph(inner, "body", [turn, go, a], [on, same, turns])
    loop = helper.make_node("Loop", [net.number(2), net.number(True, np.bool_), net.y],
                            ["last", "all"], body=body)  # fmt: skip
    net.nodes.append(loop)
    return net.gives("last").gives("all")


KINDS = [
    an_input_and_a_constant, other_first_axes, truths, parts, parts_inside, no_parts, optional,
    optional_that_is_not_there, maps_of_numbers, maps_of_names, text, counted, branches,
]  # fmt: skip


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


def assert_same(found, wanted, *, close):
    assert type(found) is type(wanted)
    match wanted:
        case list():
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                assert_same(one, other, close=close)
        case dict():
            assert list(found) == list(wanted)
            assert_same(list(found.values()), list(wanted.values()), close=close)
        case np.ndarray() if wanted.dtype.kind == "f":
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(found, wanted, atol=close)
        case np.ndarray():
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        case float():
            assert abs(found - wanted) <= close
        case _:
            assert found == wanted


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_onnx_runtime_returns(kind, policy):
    model, feeds = kind().model(), {"x": normal(5, 3)}
    plan = policies.make(policy, graph_of(model), calibration=feeds)
    oracle = Oracle(plan)
    with oracle.session(InProcessLink(Engine().handle)) as session:
        found = session.run(feeds)
    names = [value.name for value in model.graph.output]
    assert list(found.outputs) == names
    # Integers of a graph's own scales may round a number near zero to it.
    close = 0.02 if plan.quantised else 1e-5
    if kind is not counted or not plan.quantised:
        assert_same(list(found.outputs.values()), runtime(model).run(None, feeds), close=close)
    interpreted = joined(plan.graph, [one.outputs for one in oracle.interpret(feeds)])
    for name in names:
        assert_same(found.outputs[name], interpreted[name], close=0)


@pytest.mark.parametrize(
    ("kind", "separable"), [(maps_of_numbers, True), (text, True), (parts, False), (counted, False)]
)
def test_a_batch_is_cut_where_the_outputs_of_its_parts_can_be_joined(kind, separable):
    assert graph_of(kind().model()).separable is separable


def test_a_result_is_the_callers_own():
    model, feeds = parts().model(), {"x": normal(2, 3)}
    with Session(policies.enclave(graph_of(model))) as session:
        first = session.run(feeds).outputs
        kept = [entry.copy() for entry in first[model.graph.output[1].name]]
        session.run({"x": normal(2, 3, seed=1)})
    for entry, copy in zip(first[model.graph.output[1].name], kept, strict=True):
        np.testing.assert_array_equal(entry, copy)
    model = an_input_and_a_constant().model()
    graph = graph_of(model)
    with Session(policies.enclave(graph)) as session:
        outputs = session.run(feeds).outputs
    outputs["x"][:] = 0
    outputs[model.graph.output[2].name][:] = 0
    assert feeds["x"].any()
    constant = numpy_helper.to_array(model.graph.initializer[-1])
    np.testing.assert_array_equal(graph.constants[model.graph.output[2].name], constant)


@pytest.mark.parametrize("kind", [maps_of_names, parts, counted, text])
def test_compare_takes_every_kind(kind):
    feeds = {"x": normal(9, 3)}
    plan = policies.make("slalom", graph_of(kind().model()), calibration=feeds)
    found = compare(plan, feeds)
    assert found.max_difference < 0.05 or (kind is counted and np.isinf(found.max_difference))
    assert kind is not maps_of_names or found.top1_agreement == 1
