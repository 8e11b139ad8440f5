"""NaN and infinity: as in ONNX Runtime, and refused only where they would become a message."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.errors import RangeError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from nets import Net
from trusted.program.oracle import Oracle
from trusted.random_models import runtime

INF, NAN = np.inf, np.nan
POLICIES = ("enclave", "open", "slalom", "verified", "blinded")
OUTSOURCED = ("slalom", "verified", "blinded")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_odd(array, *values):
    """The array with these values in place of its first ones of every sample."""
    changed = array.copy()
    changed.reshape(len(array), -1)[:, : len(values)] = values
    return changed


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


def check(model, feeds, policies_=POLICIES, *, calibration=None):
    """Every policy gives what ONNX Runtime gives, and the interpreter the same bits."""
    wanted = runtime(model).run(None, feeds)
    for policy in policies_:
        plan = policies.make(policy, graph_of(model), calibration=calibration or feeds)
        oracle = Oracle(plan)
        with oracle.session(InProcessLink(Engine().handle)) as session:
            result = session.run(feeds)
            oracle.assert_explains(result, feeds)
        for got, expected in zip(result.outputs.values(), wanted, strict=True):
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(got[~finite], expected[~finite], err_msg=policy)
            np.testing.assert_allclose(got[finite], expected[finite], atol=0.05, err_msg=policy)


def test_a_mask_of_minus_infinity_beside_a_linear_node():
    net = Net()
    z = net.op("MatMul", net.input("x", 3), net.weights(3, 4))
    a = net.op("Add", z, net.input("mask", 4))
    mask = np.zeros((3, 4), np.float32)
    mask[0, 2:] = -INF
    check(net.model(net.op("Softmax", a, axis=-1), a), {"x": normal(3, 3), "mask": mask})


def test_missing_values_that_the_model_fills_in():
    net = Net()
    x = net.input("x", 3)
    filled = net.op("Where", net.op("IsNaN", x), net.constant(normal(3)), x)
    check(net.model(net.gemm(filled, 3, 4)), {"x": with_odd(normal(3, 3), NAN)})


@pytest.mark.parametrize("odd", [(NAN,), (INF, -INF), (NAN, -INF, INF)])
def test_a_residual_with_nan_keeps_it(odd):
    net = Net()
    y = net.gemm(net.input("x", 3), 3, 5)
    y = net.op("Relu", net.op("Add", y, net.input("r", 5)))
    check(net.model(y), {"x": normal(3, 3), "r": with_odd(normal(3, 5), *odd)})


@pytest.mark.parametrize("odd", [(NAN,), (INF,), (-INF, -INF, -INF), (NAN, -INF, INF)])
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
def test_pools_of_values(pool, odd):
    net = Net()
    x = net.input("x", 3, 5, 6)
    window = {} if pool.startswith("Global") else {"kernel_shape": [2, 3]}
    pooled = net.op(pool, net.op("Relu", net.op("Clip", x, "", net.constant(np.float32(9)))),
                    **window)  # fmt: skip
    side = net.conv(net.input("y", 3, 4, 4), 3, 2)
    model = net.model(pooled, side)
    check(model, {"x": with_odd(normal(3, 3, 5, 6), *odd), "y": normal(3, 3, 4, 4)})


def test_an_infinity_that_a_clamp_takes_away_may_become_a_message():
    net = Net()
    x = net.op("MaxPool", net.op("Relu", net.input("x", 3, 5, 6)), kernel_shape=[2, 2])
    model = net.model(net.conv(x, 3, 4))
    check(model, {"x": with_odd(normal(3, 3, 5, 6), -INF)})


def unpooled():
    net = Net()
    return net.model(net.conv(net.op("Relu", net.input("x", 3, 5, 6)), 3, 4))


def added():
    net = Net()
    y = net.op("Add", net.conv(net.input("y", 3, 5, 6), 3, 3, (1, 1)), net.input("x", 3, 5, 6))
    return net.model(net.conv(y, 3, 4))


def pooled_after():
    net = Net()
    y = net.op("Add", net.conv(net.input("y", 3, 5, 6), 3, 3, (1, 1)), net.input("x", 3, 5, 6))
    return net.model(net.op("MaxPool", y, kernel_shape=[2, 2]))


def added_twice():
    """A residual that is one of a later step too, which has its NaN from the first."""
    net = Net()
    a = net.op("Add", net.conv(net.input("y", 3, 5, 6), 3, 3, (1, 1)), net.input("x", 3, 5, 6))
    b = net.op("Add", net.conv("y", 3, 3, (1, 1)), a)
    return net.model(b, net.op("Sigmoid", a))


@pytest.mark.parametrize("policy", OUTSOURCED)
@pytest.mark.parametrize("odd", [NAN, INF])
@pytest.mark.parametrize("net", [unpooled, added, added_twice])
def test_what_would_become_a_message_is_refused(net, odd, policy):
    model = net()
    names = [value.name for value in model.graph.input]
    good = {name: normal(5, 3, 5, 6) for name in names}
    bad = {**good, "x": good["x"].copy()}
    bad["x"][3, 1, 2, 2] = odd
    oracle = Oracle(policies.make(policy, graph_of(model), calibration=good))
    with oracle.session(InProcessLink(Engine().handle)) as session:
        with pytest.raises(RangeError, match=r"NaN or infinite.*\(input 'x': sample 3 contains"):
            session.run(bad)
        wanted = runtime(model).run(None, good)  # the session serves on
        for got, expected in zip(session.run(good).outputs.values(), wanted, strict=True):
            np.testing.assert_allclose(got, expected, atol=0.05)
    check(model, bad, ("enclave", "open"))


@pytest.mark.parametrize("policy", OUTSOURCED)
def test_a_pool_that_follows_an_answer_takes_no_nan(policy):
    model = pooled_after()
    good = {name: normal(2, 3, 5, 6) for name in ("x", "y")}
    plan = policies.make(policy, graph_of(model), calibration=good)
    session = Session(plan, workers=[InProcessLink(Engine().handle)])
    with session, pytest.raises(RangeError, match="NaN or infinite"):
        session.run({**good, "x": with_odd(good["x"], NAN)})
    check(model, {**good, "x": with_odd(good["x"], INF, -INF)}, (policy,), calibration=good)


def test_constants_of_minus_infinity_stay_out_of_the_bias():
    net = Net()
    mask = np.array([0, -INF, 0, -INF], np.float32)
    y = net.op("Add", net.gemm(net.input("x", 3), 3, 4), net.constant(mask))
    check(net.model(net.op("Softmax", y), y), {"x": normal(3, 3)})
    # A bias that is a mask already: nothing else could be sent.
    net = Net()
    y = net.op("Gemm", net.input("x", 3), net.weights(3, 4), net.constant(mask))
    y = net.gemm(net.op("Softmax", y), 4, 2)
    check(net.model(y), {"x": normal(3, 3)})


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_overflow_is_infinity_as_in_onnx_runtime(dtype):
    net = Net()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    net.inputs.append(helper.make_tensor_value_info("x", kind, ["N", 2, 4, 4]))
    huge = net.constant(np.array(np.finfo(dtype).max / 4, dtype))
    y = net.op("Mul", "x", huge)
    # ONNX Runtime computes float16 in float32, so that outputs alone overflow.
    y = net.op("GlobalAveragePool", y) if dtype is np.float32 else y
    side = net.conv(net.input("z", 3, 4, 4), 3, 2)
    feeds = {"x": (8 * normal(3, 2, 4, 4)).astype(dtype), "z": normal(3, 3, 4, 4)}
    model = net.model(y, side)
    model.graph.output[0].type.tensor_type.elem_type = kind
    assert not np.isfinite(runtime(model).run(None, feeds)[0]).all()
    check(model, feeds)


def test_integers_and_truths_have_no_nan():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 3]))
    table = numpy_helper.from_array(with_odd(normal(5, 4), NAN), "table")
    net.initializers.append(table)
    row = net.op("Gather", "table", "ids")
    seen = net.op("IsNaN", row)
    y = net.gemm(net.op("Flatten", net.op("Where", seen, net.constant(np.float32(0)), row)), 12, 2)
    model = net.model(y, seen)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.BOOL
    check(model, {"ids": np.array([[0, 1, 2], [4, 0, 3], [1, 1, 1]])})
