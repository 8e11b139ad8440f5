"""Which values carry the batch, and what a session does with the others."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.errors import RangeError, ShapeError
from cloister.graph.batch import (
    batch_axis,
    bound_sizes,
    cut,
    joined,
    rows_of,
    sample_count,
    where_not_finite,
)
from cloister.graph.onnx import batching, read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted.compare import compare
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from nets import Net

POLICIES = ("enclave", "open", "slalom", "verified", "blinded")


def given(net, name, *shape, kind=TensorProto.FLOAT):
    net.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
    return name


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


def plain(model, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def run(model, policy, feeds, batch=2):
    plan = policies.make(policy, graph_of(model), calibration=feeds)
    with Session(plan, workers=[InProcessLink(Engine().handle)], batch=batch) as session:
        return session.run(feeds)


def assert_as_onnx_runtime(model, feeds, policies_=POLICIES):
    for policy in policies_:
        found = run(model, policy, feeds).outputs
        for (name, got), expected in zip(found.items(), plain(model, feeds), strict=True):
            assert got.shape == expected.shape, (policy, name)
            assert got.dtype == expected.dtype, (policy, name)
            np.testing.assert_allclose(got, expected, atol=0.05, err_msg=f"{policy}: {name}")


def gain_and_mask(order):
    net = Net()
    inputs = {
        "x": lambda: given(net, "x", "N", 3, 4),
        "gain": lambda: given(net, "gain"),
        "mask": lambda: given(net, "mask", 1, 3, 4),
        "state": lambda: given(net, "state", 2, "N", 4),
    }
    for name in order:
        inputs[name]()
    hidden = net.op("Add", net.op("MatMul", "x", net.weights(4, 4)), "mask")
    later = net.op("Add", "state", "state")
    total = net.op("ReduceMean", net.op("Mul", hidden, "gain"), axes=[1], keepdims=0)
    first = net.op("Add", total, net.op("ReduceMean", later, axes=[0], keepdims=0))
    return net.model(first, later)


FEEDS = {
    "x": normal(7, 3, 4), "gain": np.array(1.5, np.float32), "mask": normal(1, 3, 4, seed=1),
    "state": normal(2, 7, 4, seed=2),
}  # fmt: skip


@pytest.mark.parametrize("order", [("x", "gain", "mask", "state"), ("state", "mask", "gain", "x")])
def test_only_values_with_the_symbol_are_cut_and_joined(order):
    model = gain_and_mask(order)
    graph = graph_of(model)
    assert graph.separable
    axes = {name: batch_axis(graph, name) for name in (*order, *graph.outputs)}
    assert axes == {"x": 0, "gain": None, "mask": None, "state": 1} | dict(
        zip(graph.outputs, (0, 1), strict=True)
    )
    parts = list(cut(graph, FEEDS, 3))
    assert [part["x"].shape for part in parts] == [(3, 3, 4), (3, 3, 4), (1, 3, 4)]
    assert [part["state"].shape for part in parts] == [(2, 3, 4), (2, 3, 4), (2, 1, 4)]
    assert all(part["mask"] is FEEDS["mask"] for part in parts)
    assert_as_onnx_runtime(model, FEEDS)


def test_parts_are_joined_on_the_axis_of_each_output():
    graph = graph_of(gain_and_mask(("x", "gain", "mask", "state")))
    first, later = graph.outputs
    parts = [{first: normal(n, 4), later: normal(2, n, 4)} for n in (2, 3)]
    found = joined(graph, parts)
    assert found[first].shape == (5, 4)
    assert found[later].shape == (2, 5, 4)


def test_sizes_that_disagree_are_named():
    graph = graph_of(gain_and_mask(("x", "gain", "mask", "state")))
    wrong = {**FEEDS, "state": normal(2, 6, 4)}
    with pytest.raises(
        ShapeError, match=r"'state': axis 1 \(batch\) has size 6, but 7 in input 'x'"
    ):
        policies.as_samples(graph, wrong)
    with pytest.raises(ShapeError, match=r"'mask': the model takes shape \(1, 3, 4\)"):
        policies.as_samples(graph, {**FEEDS, "mask": normal(7, 3, 4)})
    with pytest.raises(RangeError, match="empty"):
        list(cut(graph, {**FEEDS, "x": normal(0, 3, 4), "state": normal(2, 0, 4)}, 2))


def test_not_a_number_is_found_on_the_axis_of_the_batch():
    graph = graph_of(gain_and_mask(("x", "gain", "mask", "state")))
    for name, at, which in (("state", (1, 5, 0), "sample 5"), ("gain", (), "it")):
        wrong = {**FEEDS, name: FEEDS[name].copy()}
        wrong[name][at] = np.nan
        assert f"input {name!r}: {which} contains NaN" in where_not_finite(graph, wrong)
    assert where_not_finite(graph, FEEDS) == ""


def test_a_batch_that_cannot_be_freed_says_how_many_to_give():
    net = Net()
    given(net, "x", 2, 3)
    graph = graph_of(net.model(net.op("Softmax", "x", axis=0)))
    assert graph.batch == 2
    remedy = r"got \(5, 3\); give 2 at a time, or export the model with a first axis of any size"
    with pytest.raises(ShapeError, match=remedy):
        policies.as_samples(graph, normal(5, 3))
    with pytest.raises(ShapeError, match=r"got \(2, 4\)$"):
        policies.as_samples(graph, normal(2, 4))


# ---- several free sizes


def scores(first="queries", second="documents", names=("q", "d")):
    net = Net()
    for name, symbol in zip(names, (first, second), strict=True):
        given(net, name, symbol, 3)
    weights = net.weights(3, 4)
    turned = net.op("Transpose", net.op("MatMul", "d", weights), perm=[1, 0])
    return net.model(net.op("MatMul", net.op("MatMul", "q", weights), turned))


@pytest.mark.parametrize(
    "symbols", [("queries", "documents"), ("q", "batch"), (None, None), (-1, -1)]
)
@pytest.mark.parametrize("sizes", [(2, 5), (5, 2), (3, 3)])
def test_two_sizes_that_differ(symbols, sizes):
    feeds = {"q": normal(sizes[0], 3), "d": normal(sizes[1], 3, seed=1)}
    assert_as_onnx_runtime(scores(*symbols), feeds)


def test_the_size_that_is_not_the_batch_has_its_own_name():
    graph = graph_of(scores())
    assert batch_axis(graph, "q") == 0
    assert batch_axis(graph, "d") is None
    feeds = {"q": normal(2, 3), "d": normal(5, 3)}
    assert bound_sizes(graph, feeds) == {"batch": 2, "documents": 5}
    assert sample_count(graph, feeds) == 2


def test_two_names_of_one_size_are_one_batch():
    net = Net()
    given(net, "a", "rows_of_a", 3), given(net, "b", "rows_of_b", 3)
    model = net.model(net.gemm(net.op("Concat", "a", "b", axis=1), 6, 2))
    graph = graph_of(model)
    assert batch_axis(graph, "a") == batch_axis(graph, "b") == 0
    assert graph.separable
    feeds = {"a": normal(5, 3), "b": normal(5, 3, seed=1)}
    assert_as_onnx_runtime(model, feeds)
    with pytest.raises(ShapeError, match=r"'b': axis 0 \(batch\) has size 4, but 5 in input 'a'"):
        policies.as_samples(graph, {**feeds, "b": normal(4, 3)})


def test_the_batch_is_the_size_that_weights_are_used_with():
    net = Net()
    given(net, "table", "rows", 3), given(net, "x", "N", 3)
    model = net.model(net.gemm("x", 3, 2), net.op("Relu", "table"))
    graph = graph_of(model)
    assert batch_axis(graph, "x") == 0
    assert batch_axis(graph, "table") is None
    assert_as_onnx_runtime(model, {"table": normal(4, 3), "x": normal(5, 3, seed=1)})


def test_weights_that_are_inputs_do_not_choose_the_batch():
    net = Net()
    given(net, "table", "rows", 3), given(net, "weights", 5, 3), given(net, "x", "N", 3)
    turned = net.op("Transpose", "weights", perm=[1, 0])
    model = net.model(net.gemm("x", 3, 2), net.op("MatMul", "table", turned))
    assert batch_axis(graph_of(model), "x") == 0


def test_samples_against_each_other_are_run_whole():
    net = Net()
    given(net, "x", "N", 3), given(net, "links", "N", "N")
    model = net.model(net.op("MatMul", "links", net.gemm("x", 3, 4)))
    graph = graph_of(model)
    assert not graph.separable
    assert_as_onnx_runtime(model, {"x": normal(5, 3), "links": normal(5, 5, seed=1)})


# ---- fixed sizes


def test_first_sizes_that_differ_are_run_whole():
    net = Net()
    given(net, "a", 2, 3), given(net, "b", 3, 4), given(net, "c", 4)
    model = net.model(net.op("Gemm", "a", "b", "c"))
    feeds = {"a": normal(2, 3), "b": normal(3, 4, seed=1), "c": normal(4, seed=2)}
    assert_as_onnx_runtime(model, feeds, ("enclave", "open"))


@pytest.mark.parametrize("order", [("frame", "state"), ("state", "frame")])
def test_a_state_beside_a_frame(order):
    net = Net()
    shapes = {"frame": (1, 3), "state": (2, 1, 4)}
    for name in order:
        given(net, name, *shapes[name])
    hidden = net.op("MatMul", "frame", net.weights(3, 4))
    total = net.op("ReduceMean", "state", axes=[0], keepdims=0)
    model = net.model(net.op("Add", hidden, total), net.op("Add", "state", "state"))
    assert graph_of(model).batch == 1
    assert_as_onnx_runtime(model, {"frame": normal(1, 3), "state": normal(2, 1, 4, seed=1)})


def test_a_fixed_batch_beside_a_scalar_is_freed():
    net = Net()
    given(net, "x", 1, 3), given(net, "gain")
    model = net.model(net.op("Mul", net.gemm("x", 3, 2), "gain"))
    graph = graph_of(model)
    assert batch_axis(graph, "x") == 0
    assert batch_axis(graph, "gain") is None
    feeds = {"x": normal(5, 3), "gain": np.array(2, np.float32)}
    found = run(model, "slalom", feeds).outputs[graph.outputs[0]]
    rows = [plain(model, {**feeds, "x": feeds["x"][i : i + 1]})[0] for i in range(5)]
    np.testing.assert_allclose(found, np.concatenate(rows), atol=0.02)


# ---- outputs


def test_outputs_that_no_sample_changes():
    net = Net()
    given(net, "x", "N", 2, 5, 5), given(net, "table", 3, 4)
    anchors = net.constant(normal(7, 4))
    hidden = net.conv("x", 2, 2)
    model = net.model(
        hidden, net.op("Identity", anchors), net.op("Identity", "table"), anchors, "table", "x",
        net.op("MatMul", "table", net.weights(4, 4)),
    )  # fmt: skip
    graph = graph_of(model)
    assert graph.separable
    assert_as_onnx_runtime(model, {"x": normal(5, 2, 5, 5), "table": normal(3, 4, seed=1)})


def test_results_are_the_callers_own():
    net = Net()
    anchors = net.constant(normal(7, 4))
    model = net.model(net.gemm(net.input("x", 3), 3, 2), net.op("Identity", anchors))
    found = run(model, "enclave", {"x": normal(5, 3)})
    for value in found.outputs.values():
        value += 1


def test_an_output_of_all_samples_is_computed_from_all():
    net = Net()
    hidden = net.gemm(net.input("x", 3), 3, 4)
    model = net.model(hidden, net.op("ReduceMax", hidden, keepdims=0))
    assert not graph_of(model).separable
    assert_as_onnx_runtime(model, {"x": normal(5, 3)})


def test_a_model_without_inputs():
    net = Net()
    model = net.model(net.op("Add", net.constant(normal(2, 3)), net.constant(normal(2, 3))))
    assert_as_onnx_runtime(model, {}, ("enclave", "open"))
    with Session(policies.enclave(graph_of(model))) as session:
        assert session.run({}).report.inputs == 1
        with pytest.raises(ShapeError, match="the model has inputs none"):
            session.run(normal(2, 3))


# ---- calibration and comparison


def test_calibration_and_comparison_cut_what_a_session_cuts():
    model = gain_and_mask(("gain", "state", "mask", "x"))
    feeds = {
        **FEEDS, "x": normal(19, 3, 4), "state": normal(2, 19, 4, seed=2),
    }  # fmt: skip
    plan = policies.make("slalom", graph_of(model), calibration=feeds)
    steps = []
    found = compare(plan, feeds, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(8, 19), (16, 19), (19, 19)]
    for value, expected in zip(found.outputs.values(), plain(model, feeds), strict=True):
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, atol=0.05)


def test_what_a_small_file_makes_large_is_not_tried(monkeypatch):
    """A proof by example would take its memory and time before anybody asked for a result."""

    def tried(*_, **__):
        raise AssertionError("the model was run")

    monkeypatch.setattr(batching, "WeightsAsInputs", tried)
    wide = helper.make_model(
        helper.make_graph(
            [helper.make_node("CumSum", ["x", "axis"], ["y"])],
            "wide",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1 << 28])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1 << 28])],
            [numpy_helper.from_array(np.array(1), "axis")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    assert not read.from_model(wide, name="wide").separable


def test_parts_of_different_ranks_are_not_joined():
    net = Net()
    graph = read.from_model(net.model(net.op("Relu", net.input("row", 4))), name="net")
    (name,) = graph.outputs
    parts = [{name: np.zeros((3, 4), np.float32)}, {name: np.zeros(4, np.float32)}]
    scalars = [{name: np.zeros((), np.float32)} for _ in range(2)]
    for found in (parts, scalars):
        with pytest.raises(ShapeError, match="different sizes"):
            joined(graph, found)


def test_rows_of_a_request_are_known_before_it_comes():
    def graph(first, value):
        net = Net()
        given(net, "x", first, 4)
        mean = net.op("ReduceMean", "x", axes=[0], keepdims=1) if value == "mean" else "x"
        return graph_of(net.model(net.op("MatMul", mean, net.weights(4, 4))))

    free, whole, fixed = graph("N", "x"), graph("N", "mean"), graph(3, "mean")
    assert [rows_of(one, 8) for one in (free, whole, fixed)] == [8, None, fixed.batch]
    assert fixed.batch is not None
