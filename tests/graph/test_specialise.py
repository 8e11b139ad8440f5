"""Numbers in the place of free sizes, and what is known of a model that keeps them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from cloister.errors import InputError
from cloister.graph.graph import BATCH
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.load import load
from cloister.graph.onnx.read import from_model
from cloister.graph.onnx.specialise import specialise
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.session import Session
from nets import Net


def taking(net: Net, name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> str:
    net.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
    return name


def tokens(*shape: int | str | None) -> onnx.ModelProto:
    """A dense layer for each token, and one for their mean."""
    net = Net()
    x = net.op("Relu", net.op("MatMul", taking(net, "x", *shape), net.weights(4, 6)))
    return net.model(net.gemm(net.op("ReduceMean", x, axes=[1], keepdims=0), 6, 3))


def picture(*shape: int | str | None) -> onnx.ModelProto:
    """Strided convolutions of any picture, whose flattened size the model computes."""
    net = Net()
    x = net.conv(taking(net, "image", *shape), 3, 4, strides=[2, 2], pads=[1] * 4)
    x = net.op("Relu", net.conv(x, 4, 5, auto_pad="SAME_UPPER", strides=[2, 2]))
    first = net.op("Slice", net.op("Shape", x), *(net.constant(np.array([i])) for i in (0, 2)))
    shape_of = net.op("Concat", first, net.constant(np.array([-1])), axis=0)
    return net.model(net.op("Softmax", net.op("Reshape", x, shape_of), axis=2))


def linear(graph):
    return sum(is_linear(graph, node) for node in graph.nodes)


def test_numbers_take_the_place_of_symbols_in_every_value():
    graph = prepare(from_model(tokens("N", "T", 4), name="net"))
    assert (graph.free_sizes, linear(graph)) == (("T",), 1)
    bound = specialise(graph, {"T": 7})
    assert (bound.free_sizes, linear(bound)) == ((), 2)
    assert bound.types["x"].shape == (None, 7, 4)
    assert bound.separable
    assert [node.name for node in bound.nodes] == [node.name for node in graph.nodes]


def test_a_bound_batch_is_a_fixed_one():
    graph = specialise(prepare(from_model(tokens("N", "T", 4), name="net")), {BATCH: 2, "T": 5})
    assert (graph.batch, graph.types["x"].shape, linear(graph)) == (2, (2, 5, 4), 2)


@pytest.mark.parametrize("size", [32, 17])
def test_padding_and_shapes_of_a_picture_of_any_size_are_computed(size):
    model = picture("N", 3, "height", "width")
    graph = prepare(from_model(model, name="net"))
    assert graph.free_sizes == ("height", "width")
    bound = specialise(graph, {"height": size, "width": 21})
    assert linear(bound) == 2
    x = np.random.default_rng(0).standard_normal((2, 3, size, 21)).astype(np.float32)
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, {"image": x})
    for one in (graph, bound):
        np.testing.assert_allclose(interpret(one, {"image": x})[one.outputs[0]], wanted, atol=1e-5)


def test_a_fixed_batch_is_freed_beside_a_free_size():
    graph = from_model(tokens(1, None, 4), name="net")
    assert (graph.batch, graph.free_sizes, graph.separable) == (None, ("x[1]",), True)


def test_one_symbol_on_two_inputs_is_one_size():
    net = Net()
    x, y = taking(net, "x", "N", "T", 4), taking(net, "y", "N", "T", 4)
    graph = prepare(from_model(net.model(net.op("MatMul", net.op("Add", x, y), net.weights(4, 3))),
                               name="net"))  # fmt: skip
    assert graph.free_sizes == ("T",)
    assert specialise(graph, {"T": 6}).types["y"].shape == (None, 6, 4)


def test_a_size_of_zero_is_a_size():
    net = Net()
    joined = net.op("Concat", taking(net, "past", "N", 0, 4), taking(net, "x", "N", 2, 4), axis=1)
    graph = prepare(from_model(net.model(net.op("MatMul", joined, net.weights(4, 3))), name="net"))
    assert graph.sizes("past") == (BATCH, 0, 4)
    assert linear(graph) == 1


@pytest.mark.parametrize(("dims", "message"), [
    ({"S": 3}, "size 'S': the model's free sizes are 'batch', 'T'; name one"),
    ({"T": -1}, "size 'T': -1 is no number"),
])  # fmt: skip
def test_a_size_that_cannot_be_bound_is_named(dims, message):
    graph = prepare(from_model(tokens("N", "T", 4), name="net"))
    with pytest.raises(InputError, match=message):
        specialise(graph, dims)


def test_sizes_are_bound_while_a_file_is_read(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(tokens("N", "T", 4), path)
    assert load(path, dims={"T": 3}).sizes("x") == (BATCH, 3, 4)
    assert load(path, dims={"T": 3, BATCH: 2}).sizes("x") == (2, 3, 4)
    # A size that is the batch in the file is bound too, and the batch then freed where it can be.
    assert load(path, dims={"N": 2}).sizes("x") == (BATCH, "T", 4)
    with pytest.raises(InputError, match="size 'S': the model's free sizes are 'N', 'T'"):
        load(path, dims={"S": 3})


@pytest.mark.parametrize("window", [2, 50, 400])
def test_samples_are_tried_at_sizes_that_windows_fit_into(window):
    net = Net()
    net.conv(taking(net, "x", "N", 1, "T"), 1, 4, (window,), strides=[window])
    # Of a sum over the samples' values, only a run tells that it does not mix samples.
    total = net.op("ReduceSum", "v0", net.constant(np.array([1, 2])), keepdims=0)
    model = net.model(net.op("Reshape", total, net.constant(np.array([-1]))))
    assert from_model(model, name="net").separable


def test_first_sizes_that_no_run_tells_apart_are_not_taken_for_one():
    net = Net()
    image, boxes = taking(net, "image", "N", 3, "H", "W"), taking(net, "boxes", "M", 4)
    large = net.conv(image, 3, 2, (70, 70), strides=[70, 70])
    model = net.model(large, net.op("Relu", net.gemm(boxes, 4, 3)))
    graph = prepare(from_model(model, name="net"))
    assert not graph.separable
    feeds = {
        "image": np.ones((2, 3, 70, 140), np.float32),
        "boxes": np.ones((5, 4), np.float32),
    }
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    plan = policies.slalom(graph, calibration=feeds)
    assert len(plan.quantised) == 2
    with Session(plan) as session:
        found = session.run(feeds).outputs
    for got, right in zip(found.values(), wanted, strict=True):
        assert np.linalg.norm(got - right) <= 0.02 * np.linalg.norm(right)


def test_the_spectrum_of_a_sound_has_the_half_that_onnx_runtime_computes():
    net = Net()
    rng = np.random.default_rng(3)
    read = net.constant(np.int64(160)), net.constant(np.hanning(320).astype(np.float32))
    spectrum = net.op("STFT", taking(net, "x", "N", "samples"), *read)
    power = net.op("ReduceSumSquare", spectrum, axes=[-1], keepdims=0)
    mel = net.op("MatMul", power, net.constant(rng.random((161, 120), np.float32)))
    model = net.model(net.op("Log", net.op("Add", mel, net.constant(np.float32(1)))))
    x = rng.standard_normal((2, 800)).astype(np.float32)
    plan = policies.slalom(prepare(from_model(model, name="net")), calibration={"x": x})
    with Session(plan) as session:
        result = session.run({"x": x})
    (found,) = result.outputs.values()
    (right,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert [row.bytes_to_worker > 0 for row in result.report.layers].count(True) == 1
    assert found.shape == right.shape
    assert np.linalg.norm(found - right) < 1e-2 * np.linalg.norm(right)


def test_a_layer_behind_an_operator_of_scikit_learn_goes_out():
    net = Net()
    net.input("x", 4)
    model = net.model(net.gemm("scaled", 4, 3))
    attributes = {"domain": "ai.onnx.ml", "offset": [0.5] * 4, "scale": [2.0] * 4}
    model.graph.node.insert(0, helper.make_node("Scaler", ["x"], ["scaled"], **attributes))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    graph = prepare(from_model(model, name="net"))
    assert graph.sizes(graph.nodes[0].outputs[0]) == (BATCH, 4)
    with Session(policies.slalom(graph, calibration={"x": x})) as session:
        (found,) = session.run({"x": x}).outputs.values()
    (right,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found, right, atol=0.02)
