"""Inputs that are sequences, maps or optional: under every policy, as ONNX Runtime takes them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cloister.errors import RangeError, ShapeError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from trusted.random_models import runtime
from trusted.test_output_kinds import ML, Model, assert_same, normal, tensor


class OnlyInputs(Model):
    """Without the input and the product of the others."""

    def __init__(self, name, proto):
        super().__init__()
        self.nodes, self.inputs = [], [helper.make_value_info(name, proto)]


def sequence():
    net = OnlyInputs("s", helper.make_sequence_type_proto(tensor(shape=[2, 3])))
    x = net.op("SequenceAt", "s", net.number(1))
    net.gives(net.op("MatMul", x, net.weights(3, 4)))
    return net.gives_type("s", helper.make_sequence_type_proto(tensor(shape=[2, 3])))


def optional():
    net = OnlyInputs("o", helper.make_optional_type_proto(tensor(shape=[2, 3])))
    has = net.op("OptionalHasElement", "o")
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]))
    return net.gives(net.op("MatMul", "x", net.weights(3, 4))).gives(has, TensorProto.BOOL)


def table():
    proto = onnx.TypeProto()
    proto.map_type.key_type = TensorProto.STRING
    proto.map_type.value_type.CopyFrom(tensor())
    net = OnlyInputs("m", proto)
    row = net.op("DictVectorizer", "m", domain=ML, string_vocabulary=["a", "b", "c"])
    row = net.op("Reshape", row, net.number([1, 3]))
    return net.gives(net.op("MatMul", row, net.weights(3, 4)))


def any_rank():
    net = OnlyInputs("x", tensor())
    flat = net.op("Reshape", "x", net.number([2, 3]))
    return net.gives(net.op("MatMul", flat, net.weights(3, 4)))


CASES = {
    "sequence": (sequence, {"s": [normal(2, 3), normal(2, 3, seed=1)]}),
    "optional": (optional, {"o": normal(2, 3), "x": normal(2, 3)}),
    "none": (optional, {"o": None, "x": normal(2, 3)}),
    "map": (table, {"m": {"a": 1.0, "c": 2.0}}),
    "any rank": (any_rank, {"x": normal(1, 3, 2)}),
}


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


@pytest.mark.parametrize("policy", ["enclave", "open", "slalom", "verified"])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_is_taken(case, policy):
    kind, feeds = CASES[case]
    model = kind().model()
    plan = policies.make(policy, graph_of(model), calibration=feeds)
    with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
        found = session.run(feeds).outputs
    close = 0.02 if plan.quantised else 1e-5
    assert_same(list(found.values()), runtime(model).run(None, feeds), close=close)


def test_entries_of_other_libraries_become_arrays():
    model = sequence().model()
    with Session(policies.enclave(graph_of(model))) as session:
        given = [np.float32([[1, 2, 3], [4, 5, 6]])] * 2
        found = session.run({"s": tuple(memoryview(one) for one in given)}).outputs
    np.testing.assert_array_equal(found["s"][1], given[1])


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("sequence", {"s": [np.zeros((2, 3))]}),
        ("sequence", {"s": np.zeros((2, 3), np.float32)}),
        ("sequence", {"s": []}),
        ("optional", {"o": None}),
        ("map", {"m": [1.0]}),
        ("map", {"m": {1: 2.0}}),
        ("map", {"m": {"a": "b"}}),
    ],
)
def test_what_does_not_fit_is_an_error_of_ours(case, wrong):
    kind, _ = CASES[case]
    if case == "optional":
        net = OnlyInputs("o", helper.make_optional_type_proto(tensor(shape=[2, 3])))
        net.gives(net.op("OptionalGetElement", "o"))
        model = net.model()
    else:
        model = kind().model()
    session = Session(policies.enclave(graph_of(model)))
    with session, pytest.raises((RangeError, ShapeError)):
        session.run(wrong)
