"""Linear nodes on several rows for each sample, and batches that go through computed shapes."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from cloister.graph.batch import batch_factor, bound_size, times_batch
from cloister.graph.onnx import read
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from nets import Net

POLICIES = ("enclave", "open", "slalom", "verified", "blinded")


def plain(model, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def sent(report):
    return sum(row.bytes_to_worker > 0 for row in report.layers)


def assert_goes_out(model, feeds, nodes, *, batch=2, policies_=POLICIES):
    """Every policy gives what ONNX Runtime does; under slalom this many nodes go to the worker."""
    graph = prepare(read.from_model(model, name="net"))
    for policy in policies_:
        plan = policies.make(policy, graph, calibration=feeds)
        with Session(plan, workers=[InProcessLink(Engine().handle)], batch=batch) as session:
            result = session.run(feeds)
        for found, wanted in zip(result.outputs.values(), plain(model, feeds), strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), policy
            np.testing.assert_allclose(found, wanted, atol=0.06, err_msg=policy)
        if policy == "slalom":
            assert sent(result.report) == nodes
    return graph


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(net, *values):
    return net.constant(np.array(values, np.int64))


def reshaped(net, value, *target):
    return net.op("Reshape", value, integers(net, *target))


def ops(graph):
    return [node.op for node in graph.nodes]


# ---- layers on every step


@pytest.mark.parametrize("steps", [1, 5])
def test_dense_layers_on_every_step(steps):
    net = Net()
    value = reshaped(net, net.input("x", steps, 3), -1, 3)
    value = net.op("Relu", net.gemm(value, 3, 6))
    value = net.op("Tanh", net.gemm(value, 6, 4))
    model = net.model(reshaped(net, value, -1, steps, 4))
    graph = assert_goes_out(model, {"x": normal(5, steps, 3)}, 2)
    if steps > 1:
        # The rows of a step are nowhere merged with those of another any more.
        assert ops(graph) == ["MatMul", "Add", "Relu", "MatMul", "Add", "Tanh", "Reshape"]


def test_a_dense_layer_with_factors():
    net = Net()
    value = reshaped(net, net.input("x", 2, 3), -1, 3)
    bias = net.constant(normal(1, 4))
    value = net.op("Gemm", value, net.weights(3, 4), bias, alpha=0.5, beta=2.0)
    assert_goes_out(net.model(value), {"x": normal(3, 2, 3)}, 1)


def test_a_product_of_rank_one_bias_and_no_bias():
    net = Net()
    value = net.op("MatMul", reshaped(net, net.input("x", 2, 3), -1, 3), net.weights(3, 4))
    value = net.op("Add", value, net.constant(normal(4)))
    value = net.op("Sub", net.constant(np.float32(1)), value)
    graph = assert_goes_out(net.model(reshaped(net, value, -1, 2, 4)), {"x": normal(3, 2, 3)}, 1)
    assert ops(graph) == ["MatMul", "Add", "Sub", "Reshape"]


def test_rows_of_another_layer_order():
    """The batch as second axis, as recurrent networks have it."""
    net = Net()
    value = net.op("Transpose", net.input("x", 5, 3), perm=[1, 0, 2])
    value = net.op("Relu", net.op("MatMul", value, net.weights(3, 4)))
    model = net.model(net.op("Transpose", value, perm=[1, 0, 2]))
    assert_goes_out(model, {"x": normal(5, 5, 3)}, 1)


CONVOLUTIONS = {
    "one_axis": ((3, 9), (4, 3, 3), {"strides": [2], "pads": [2, 1], "dilations": [2]}),
    "plain": ((3, 6, 5), (4, 3, 1, 1), {}),
    "same": ((3, 6, 5), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "words": ((3, 7, 5), (4, 3, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "strides": ((4, 7, 6), (4, 2, 2, 3), {"strides": [3, 2], "pads": [2, 0, 0, 1], "group": 2}),
    "wide_strides": ((3, 7, 6), (4, 3, 1, 2), {"strides": [3, 1]}),
    "dilated": ((3, 8, 6), (2, 3, 3, 2), {"dilations": [2, 1], "pads": [0, 1, 3, 0]}),
}
TRANSPOSED = {
    "one_axis": ((3, 5), (3, 4, 3), {"strides": [2], "output_padding": [1]}),
    "plain": ((3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    "cropped": ((3, 4, 5), (3, 4, 4, 3), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    "spread": ((4, 4, 5), (4, 2, 2, 2), {"strides": [3, 3], "output_padding": [1, 0], "group": 2}),
    "dilated": ((3, 4, 5), (3, 2, 3, 2), {"dilations": [2, 2], "pads": [2, 0, 1, 0]}),
    "same": ((3, 4, 5), (3, 2, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [*(("Conv", c) for c in CONVOLUTIONS.values()),
     *(("ConvTranspose", c) for c in TRANSPOSED.values())],
    ids=[*CONVOLUTIONS, *(f"transposed_{name}" for name in TRANSPOSED)],
)  # fmt: skip
def test_convolutions_of_every_picture_of_a_film(kind, case):
    image, weights, attributes = case
    net = Net()
    value = reshaped(net, net.input("x", 3, *image), -1, *image)
    made = weights[0] if kind == "Conv" else weights[1] * attributes.get("group", 1)
    bias = net.constant(normal(made))
    value = net.op(kind, value, net.weights(*weights), bias, **attributes)
    model = net.model(net.op("Relu", value))
    assert_goes_out(model, {"x": normal(3, 3, *image)}, 1)


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_stacked_pictures_in_every_operator_set(opset):
    net = Net()
    value = reshaped(net, net.input("x", 2, 3, 6, 5), -1, 3, 6, 5)
    model = net.model(net.conv(value, 3, 4, pads=[1, 1, 1, 1]))
    model.opset_import[0].version = opset
    assert_goes_out(model, {"x": normal(3, 2, 3, 6, 5)}, 1)


# ---- sizes of the batch that nodes compute


def batch_of(net, value="x"):
    """The batch as a vector of one entry."""
    return net.op("Slice", net.op("Shape", value), *(integers(net, at) for at in (0, 1, 0)))


def computed_target(net, value):
    """PyTorch's x.reshape(x.size(0) * x.size(1), 3)."""
    shape = net.op("Shape", value)
    first, second = (net.op("Gather", shape, integers(net, at)) for at in (0, 1))
    rows = net.op("Concat", net.op("Mul", first, second), integers(net, 3), axis=0)
    return net.op("Reshape", value, rows)


def strided_slice(net, value):
    """TensorFlow's x[:, ::2], with an end for every axis."""
    bounds = ((0, 0, 0), (2**31 - 1, 2**31 - 1, 3), (0, 1, 2), (1, 2, 1))
    return net.op("Slice", value, *(integers(net, *values) for values in bounds))


def padded(net, value):
    rank_pads = net.op("Concat", integers(net, 0, 1, 0), integers(net, 0, 0, 0), axis=0)
    twice = net.op("Mul", rank_pads, integers(net, 1))
    return net.op("Pad", value, twice)


def tiled(net, value):
    return net.op("Tile", value, net.op("Concat", integers(net, 2, 1), integers(net, 1), axis=0))


def with_token(net, value):
    """A class token for each sample before the others."""
    sizes = net.op("Concat", batch_of(net), integers(net, 1, 3), axis=0)
    token = net.op("Expand", net.constant(normal(1, 1, 3, seed=9)), sizes)
    return net.op("Concat", token, value, axis=1)


def with_zeros(net, value):
    sizes = net.op("Concat", batch_of(net), integers(net, 2, 3), axis=0)
    return net.op("Concat", net.op("ConstantOfShape", sizes), value, axis=1)


def resized(net, value):
    shape = net.op("Slice", net.op("Shape", value), *(integers(net, at) for at in (0, 2, 0)))
    sizes = net.op("Concat", shape, integers(net, 3), axis=0)
    doubled = net.op("Mul", sizes, integers(net, 1, 2, 1))
    return net.op("Resize", value, "", "", doubled, mode="nearest")


def of_ranges(net, value):
    """Position ids from the shape, and a table of them."""
    steps = net.op("Gather", net.op("Shape", value), net.constant(np.array(1)))
    ids = net.op("Range", net.constant(np.array(0)), steps, net.constant(np.array(1)))
    return net.op("Add", value, net.op("Gather", net.weights(8, 3), ids))


def twice(net, value):
    """Guidance: both halves of a batch of twice the samples."""
    return net.op("Concat", value, net.op("Neg", value), axis=0)


IDIOMS = [
    computed_target, strided_slice, padded, tiled, with_token, with_zeros, resized, of_ranges,
    twice,
]  # fmt: skip


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda one: one.__name__)
def test_layers_behind_a_computed_shape_go_out(idiom, samples):
    net = Net()
    value = idiom(net, net.op("Mul", net.input("x", 4, 3), net.constant(np.float32(1))))
    model = net.model(net.op("Relu", net.op("MatMul", value, net.weights(3, 4))))
    assert_goes_out(model, {"x": normal(samples, 4, 3)}, 1)


def test_attention_over_all_heads_as_one_batch():
    """(N, T, C) to (heads N, T, C / heads) and back."""
    net = Net()
    x = net.input("x", 5, 6)
    heads = []
    for _ in range(3):
        value = net.op("MatMul", x, net.weights(6, 6))
        value = net.op("Transpose", reshaped(net, value, 0, 5, 2, 3), perm=[0, 2, 1, 3])
        rows = net.op("Concat", net.op("Mul", batch_of(net), integers(net, 2)),
                      integers(net, 5, 3), axis=0)  # fmt: skip
        heads.append(net.op("Reshape", value, rows))
    keys = net.op("Transpose", heads[1], perm=[0, 2, 1])
    scores = net.op("Softmax", net.op("MatMul", heads[0], keys), axis=-1)
    mixed = net.op("MatMul", net.op("MatMul", scores, heads[2]), net.weights(3, 3))
    rows = net.op("Concat", batch_of(net), integers(net, 2, 5, 3), axis=0)
    mixed = net.op("Transpose", net.op("Reshape", mixed, rows), perm=[0, 2, 1, 3])
    model = net.model(net.op("MatMul", reshaped(net, mixed, 0, 5, 6), net.weights(6, 2)))
    assert_goes_out(model, {"x": normal(5, 5, 6)}, 5)


# ---- branches


def without_axis_of_one(net, value, axis):
    """PyTorch's x.squeeze(axis), which asks for the size; both branches read x."""
    size = net.op("Gather", net.op("Shape", value), net.constant(np.array(axis)))
    one = net.op("Equal", size, net.constant(np.array(1)))
    bodies = {}
    for name, op, attributes in (
        ("then_branch", "ReduceMax", {"axes": [axis], "keepdims": 0}),
        ("else_branch", "Mul", {}),
    ):
        made = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
        reads = ["read"] if attributes else ["read", "factor"]
        nodes = [helper.make_node("Relu", [value], ["read"], name="first")]
        nodes.append(helper.make_node(op, reads, ["made"], name="second", **attributes))
        factor = helper.make_tensor("factor", TensorProto.FLOAT, [], [1])
        bodies[name] = helper.make_graph(nodes, name, [], [made], [factor])
    return net.op("If", one, **bodies)


@pytest.mark.parametrize("size", [1, 4])
def test_a_branch_that_every_batch_takes(size):
    net = Net()
    value = without_axis_of_one(net, net.input("x", size, 3), 1)
    value = without_axis_of_one(net, net.op("MatMul", value, net.weights(3, 4)), 1)
    model = net.model(net.op("MatMul", value, net.weights(4, 2)))
    graph = assert_goes_out(model, {"x": normal(5, size, 3)}, 2)
    assert "If" not in ops(graph)


@pytest.mark.parametrize(("samples", "nodes"), [(1, 1), (3, 2)])
def test_a_branch_of_one_sample_is_taken_by_one_sample_alone(samples, nodes):
    net = Net()
    hidden = net.op("MatMul", net.input("x", 3), net.weights(3, 4))
    value = without_axis_of_one(net, hidden, 0)
    model = net.model(net.op("MatMul", value, net.weights(4, 2)))
    inside = tuple(policy for policy in POLICIES if policy != "open")
    graph = assert_goes_out(model, {"x": normal(samples, 3)}, nodes, policies_=inside)
    assert not graph.separable


# ---- fixed sizes


def test_rows_of_fixed_sizes_are_what_all_layers_have_in_common():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 3]))
    value = net.op("Relu", net.gemm(reshaped(net, "x", 12, 3), 3, 4))
    value = reshaped(net, value, 4, 12)
    mixed = net.op("Softmax", net.gemm(value, 12, 2), axis=0)
    graph = assert_goes_out(net.model(mixed), {"x": normal(2, 6, 3)}, 2)
    assert graph.batch == 2


def test_a_recurrent_layout_of_fixed_sizes():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 1, 3]))
    net.inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 3]))
    value = net.op("Add", net.op("MatMul", "x", net.weights(3, 3)), "state")
    last = net.op("MatMul", "state", net.weights(3, 3))
    assert_goes_out(net.model(value, last), {"x": normal(7, 1, 3), "state": normal(1, 3)}, 2)


# ---- what sizes are called


def test_multiples_of_the_batch():
    assert (times_batch(1), times_batch(7)) == ("batch", "7*batch")
    names = ("batch", "7*batch", 7, "0*batch", "7*batches", "07*batch", "T", "")
    assert [batch_factor(size) for size in names] == [1, 7, *[None] * 6]
    sizes = {"batch": 3, "T": 4, "x*batch": 5}
    assert [bound_size(s, sizes) for s in ("batch", "7*batch", 7, "T", "x*batch", "U")] == [
        3, 21, 7, 4, 5, None,
    ]  # fmt: skip


def test_a_size_of_the_file_is_no_multiple():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]))
    net.inputs.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, ["2*batch", 4]))
    model = net.model(net.gemm("x", 3, 2), net.op("Relu", "table"))
    graph = assert_goes_out(model, {"x": normal(5, 3), "table": normal(3, 4)}, 1)
    assert graph.sizes("x")[0] == "batch"
    assert batch_factor(graph.sizes("table")[0]) is None


def test_sizes_that_depend_on_values_stay_unknown():
    net = Net()
    value = net.op("Transpose", net.op("NonZero", net.input("x", 3)), perm=[1, 0])
    value = net.op("Cast", value, to=onnx.TensorProto.FLOAT)
    model = net.model(net.op("MatMul", value, net.weights(2, 4)))
    graph = prepare(read.from_model(model, name="net"))
    assert not any(name in graph.types for name in graph.outputs)


@pytest.mark.parametrize("most", [1, 2, 8])
def test_the_first_samples_are_no_batch(most):
    net = Net()
    first = net.op("Slice", net.input("x", 3), integers(net, 0), integers(net, most))
    model = net.model(net.op("MatMul", first, net.weights(3, 4)))
    graph = prepare(read.from_model(model, name="net"))
    assert not graph.separable
    feeds = {"x": normal(9, 3)}
    for policy in POLICIES[2:]:
        plan = policies.make(policy, graph, calibration=feeds)
        with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
            (found,) = session.run(feeds).outputs.values()
        np.testing.assert_allclose(found, plain(model, feeds)[0], atol=0.02)


def test_a_layer_on_every_step_of_sequences_of_any_length():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 3]))
    value = net.op("Relu", net.gemm(computed_target(net, "x"), 3, 4))
    shape = net.op("Concat", net.op("Slice", net.op("Shape", "x"), integers(net, 0),
                                    integers(net, 2)), integers(net, 4), axis=0)  # fmt: skip
    model = net.model(net.op("Reshape", value, shape))
    graph = prepare(read.from_model(model, name="net"))
    plan = policies.slalom(graph, calibration=normal(4, 5, 3))
    assert (plan.graph.batch, len(plan.quantised)) == (None, 1)
    with Session(plan, workers=[InProcessLink(Engine().handle)], batch=2) as session:
        for steps in (5, 7):
            feeds = {"x": np.clip(normal(3, steps, 3), -2, 2)}
            result = session.run(feeds)
            (found,) = result.outputs.values()
            np.testing.assert_allclose(found, plain(model, feeds)[0], atol=0.02)
            assert sent(result.report) == 1
