import numpy as np
import pytest
from onnx import helper, numpy_helper

import nets
from cloister.errors import PlanError, UnsupportedError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.compare import compare
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine


def planned(build, policy: str):
    model = build()
    samples = next(iter(nets.samples(model, 2).values()))
    graph = prepare(from_model(model, name="net"))
    return policies.make(policy, graph, calibration=samples), samples


def float_bytes(plan) -> int:
    arrays = [a for a in plan.graph.constants.values() if a.dtype == np.float32]
    return sum(array.nbytes for array in arrays if any(array.strides) or array.size == 1)


@pytest.mark.parametrize("policy", policies.NAMES)
@pytest.mark.parametrize("name", ["chain", "residual"])
def test_a_plan_without_float_weights_is_the_same_plan(name, policy):
    plan, samples = planned(nets.ALL[name], policy)
    lean = plan.without_float_weights()
    assert lean.digest == plan.digest
    assert lean.claims() == plan.claims()
    if plan.quantised:
        assert float_bytes(lean) < float_bytes(plan) / 2
    else:
        assert float_bytes(lean) == float_bytes(plan)
    found = []
    for one in (plan, lean):
        with Session(one, workers=[InProcessLink(Engine().handle)]) as session:
            found.append(session.run(samples).outputs)
    for output, expected in found[1].items():
        np.testing.assert_array_equal(found[0][output], expected)


def test_nothing_is_compared_with_weights_that_are_gone():
    plan, samples = planned(nets.chain, "slalom")
    with pytest.raises(PlanError, match="dropped its float32 weights"):
        compare(plan.without_float_weights(), samples)
    assert compare(plan, samples).inputs == 2


def alone(op: str, shape: list[int], weights: np.ndarray, **attributes: object):
    """One node that reads an input `x` and constant weights."""
    kind = helper.np_dtype_to_tensor_dtype(weights.dtype)
    x = helper.make_tensor_value_info("x", kind, ["N", *shape])
    y = helper.make_tensor_value_info("y", kind, None)
    node = helper.make_node(op, ["x", "w"], ["y"], name="cube", **attributes)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return prepare(from_model(model, name="net"))


@pytest.mark.parametrize(("op", "shape", "weights", "attributes", "why"), [
    ("Conv", [1, 8, 8, 8], np.ones((1, 1, 17, 17, 17), np.float32), {"pads": [8] * 6},
     "it convolves 3 axes, and workers at most 2"),
    ("MatMul", [3, 4], np.ones((4, 5), np.int32), {}, "'w' has elements of type int32"),
    ("Einsum", [3, 4], np.ones((3, 4), np.float32), {"equation": "nij,ij->nij"},
     "it is none of the operators that workers compute"),
])  # fmt: skip
def test_products_that_no_worker_computes_are_named(op, shape, weights, attributes, why):
    graph = alone(op, shape, weights, **attributes)
    with pytest.raises(UnsupportedError, match=rf"node 'cube' \({op}\): {why}; use the enclave"):
        policies.make("slalom", graph, calibration=np.ones((2, *shape), weights.dtype))


def test_a_model_without_products_says_so():
    graph = alone("Mul", [4], np.ones((1, 4), np.float32))
    with pytest.raises(UnsupportedError, match="so there is nothing to send"):
        policies.make("slalom", graph, calibration=np.ones((2, 4), np.float32))
