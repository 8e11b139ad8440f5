import numpy as np
import onnx
import onnxruntime as ort
import pytest

import nets
from cloister.errors import ModelError
from cloister.graph.onnx import batching, mixing, read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted.session import Session


def centred():
    """Subtracts the mean over the batch."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    return net.model(net.op("Sub", hidden, net.op("ReduceMean", hidden, axes=[0], keepdims=1)))


def normalised():
    """Softmax over the batch."""
    net = nets.Net()
    return net.model(net.op("Softmax", net.gemm(net.input("row", 4), 4, 4), axis=0))


def backwards():
    """Turns the batch around."""
    net = nets.Net()
    x = net.gemm(net.input("row", 4), 4, 4)
    bounds = [net.constant(np.array([i], np.int64)) for i in (-1, -(2**62), 0, -1)]
    return net.model(net.op("Slice", x, *bounds))


def captured():
    """The mean over the batch, read by a subgraph whose output has no known shape."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    branches = {}
    for branch in ("then_branch", "else_branch"):
        mean = onnx.helper.make_node("ReduceMean", [hidden], [branch], axes=[0], keepdims=1)
        less = onnx.helper.make_node("Sub", [hidden, branch], [f"{branch}_less"])
        found = onnx.helper.make_node("NonZero", [f"{branch}_less"], [f"{branch}_found"])
        info = onnx.ValueInfoProto(name=f"{branch}_found")
        branches[branch] = onnx.helper.make_graph([mean, less, found], branch, [], [info])
    chosen = net.op("If", net.constant(np.array(True)), **branches)
    model = net.model(chosen)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def crossed():
    """One number per sample, added along the columns: three samples fit, and only three."""
    net = nets.Net()
    net.inputs.append(onnx.helper.make_tensor_value_info("row", onnx.TensorProto.FLOAT, ["N", 5]))
    net.inputs.append(onnx.helper.make_tensor_value_info("bias", onnx.TensorProto.FLOAT, ["N"]))
    return net.model(net.op("Add", net.gemm("row", 5, 5), "bias"))


@pytest.mark.parametrize("net", nets.ALL)
def test_ordinary_networks_may_be_run_in_parts(net):
    assert read.from_model(nets.ALL[net](), name="net").separable


@pytest.mark.parametrize("build", [centred, normalised, backwards, captured, crossed])
def test_networks_that_mix_samples_are_run_whole(build):
    model = build()
    graph = normalise.prepare(read.from_model(model, name="net"))
    assert not graph.separable
    feeds = nets.samples(model, 5)
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    with Session(policies.enclave(graph), batch=2) as session:
        (found,) = session.run(feeds).outputs.values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_truths_that_agree_by_chance_prove_nothing():
    """A column twice, one below the other: two samples with one truth are so in either order."""
    net = nets.Net()
    net.inputs.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.BOOL, ["N", 1]))
    model = net.model(net.op("Concat", "x", "x", axis=0))
    assert not read.from_model(model, name="net").separable


@pytest.mark.parametrize("last", [1, 2, 5, 30])
def test_the_last_samples_depend_on_how_many_there_are(last):
    net = nets.Net()
    bounds = [net.constant(np.array([i], np.int64)) for i in (-last, 2**62, 0)]
    model = net.model(net.op("Slice", net.input("x", 4), *bounds))
    assert not read.from_model(model, name="net").separable


def counted(compare):
    """Its sign depends on how many samples there are; `compare` makes a truth of their number."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    return net.model(net.op("Where", compare(net), net.op("Neg", hidden), hidden))


def more_than_four(net):
    shape = net.op("Shape", "row")
    first = net.op("Gather", shape, net.constant(np.array(0, np.int64)))
    return net.op("Greater", first, net.constant(np.array(4, np.int64)))


def more_elements_than_sixteen(net):
    return net.op("Greater", net.op("Size", "row"), net.constant(np.array(16, np.int64)))


def a_large_maximum(net):
    return net.op(
        "Greater",
        net.op("ReduceMax", "row", keepdims=0),
        net.constant(np.array(2e9, np.float32)),
    )


def chosen_by_count():
    """An If that takes one branch for up to four samples, and another for more."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    branches = {}
    for branch, op in (("then_branch", "Neg"), ("else_branch", "Identity")):
        node = onnx.helper.make_node(op, [hidden], [branch])
        info = onnx.helper.make_tensor_value_info(branch, onnx.TensorProto.FLOAT, None)
        branches[branch] = onnx.helper.make_graph([node], branch, [], [info])
    return net.model(net.op("If", more_than_four(net), **branches))


def fourths_of_the_count():
    """Adds how many times four samples there are."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    first = net.op("Gather", net.op("Shape", "row"), net.constant(np.array(0, np.int64)))
    fourths = net.op("Div", first, net.constant(np.array(4, np.int64)))
    return net.model(net.op("Add", hidden, net.op("Cast", fourths, to=onnx.TensorProto.FLOAT)))


def reshaped_by_count():
    """Reshapes to as many rows as there are samples."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    return net.model(net.op("Reshape", net.op("Exp", hidden), net.op("Shape", hidden)))


@pytest.mark.parametrize("refused", [(), (67,), mixing.BATCHES])
def test_a_model_that_does_not_take_a_tried_batch_is_run_whole(refused, monkeypatch):
    def with_batch(graph, batch):
        if batch in refused:
            raise ModelError("these shapes contradict each other")
        return typed(graph, batch)

    typed = mixing.with_batch
    monkeypatch.setattr(mixing, "with_batch", with_batch)
    assert read.from_model(reshaped_by_count(), name="net").separable is not bool(refused)


def small(build):
    """The model, with outputs smaller than the errors of others."""
    model = build()
    node, scale = model.graph.node[-1], np.array(1e-5, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(scale, "small"))
    wanted = node.output[0]
    node.output[0] = "large"
    model.graph.node.append(onnx.helper.make_node("Mul", ["large", "small"], [wanted]))
    return model


def rare(combined):
    """Adds what the batch has beyond a limit that few samples reach, `combined` along the batch."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    large = net.op("Greater", "row", net.constant(np.array(1e6, np.float32)))
    added = combined(net, net.op("Cast", large, to=onnx.TensorProto.FLOAT), hidden)
    return net.model(net.op("Add", hidden, added))


def along_the_batch(net, large, _):
    return net.op("CumSum", large, net.constant(np.array(0, np.int64)))


def across_the_batch(net, large, hidden):
    return net.op("MatMul", net.op("MatMul", large, net.op("Transpose", large)), hidden)


@pytest.mark.parametrize(
    "build",
    [
        lambda: rare(along_the_batch),
        lambda: rare(across_the_batch),
        lambda: counted(more_than_four),
        lambda: counted(more_elements_than_sixteen),
        lambda: counted(a_large_maximum),
        chosen_by_count,
        fourths_of_the_count,
        lambda: small(centred),
        lambda: small(normalised),
    ],
    ids=[
        "along",
        "across",
        "shape",
        "size",
        "maximum",
        "branch",
        "fourths",
        "small_mean",
        "small_softmax",
    ],
)
def test_what_two_samples_do_not_show_keeps_the_batch_whole(build):
    model = build()
    graph = normalise.prepare(read.from_model(model, name="net"))
    assert not graph.separable
    feeds = nets.samples(model, 5)
    feeds["row"][[0, 3]] += np.float32([[4e9], [3e9]])
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    with Session(policies.enclave(graph), batch=2) as session:
        (found,) = session.run(feeds).outputs.values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_numbers_that_are_multiples_of_the_batch_leave_it_free():
    """Sizes, a mask that is the same for all, and the number of each sample."""
    net = nets.Net()
    hidden = net.gemm(net.input("row", 4), 4, 4)
    count = net.op("Shape", "row", start=0, end=1)
    mask = net.op(
        "Expand",
        net.constant(np.float32([[1, 0, 2, 0]])),
        net.op("Concat", count, net.constant(np.array([4], np.int64)), axis=0),
    )
    zero, one = (net.constant(np.array(i, np.int64)) for i in (0, 1))
    numbers = net.op("Range", zero, net.op("Squeeze", count), one)
    model = net.model(net.op("Mul", net.op("Gather", hidden, numbers, axis=0), mask))
    assert read.from_model(model, name="net").separable


def test_a_loop_without_an_end_is_tried_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(batching, "TRIED_S", 0.2)
    net = nets.Net()
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    begins = [value("i", kinds.INT64, []), value("go", kinds.BOOL, [])]
    begins.append(value("sum", kinds.FLOAT, [1]))
    ends = [value("go_on", kinds.BOOL, []), value("twice", kinds.FLOAT, [1])]
    nodes = [onnx.helper.make_node("Identity", ["go"], ["go_on"])]
    nodes.append(onnx.helper.make_node("Add", ["sum", "sum"], ["twice"]))
    body = onnx.helper.make_graph(nodes, "body", begins, ends)
    count, go = net.constant(np.array(2**62, np.int64)), net.constant(np.array(True))
    found = net.op("Loop", count, go, net.constant(np.float32([1])), body=body)
    model = net.model(net.op("Mul", net.gemm(net.input("row", 4), 4, 4), found))
    assert not read.from_model(model, name="net").separable


def test_a_size_that_is_too_small_for_one_sample_is_not_tried_with_several(monkeypatch):
    """Some kernels of ONNX Runtime end the process there, where one sample is an error."""
    shapes, run = [], batching.WeightsAsInputs.run

    def watched(self, wanted, feeds, **more):
        shapes.append(feeds["x"].shape)
        return run(self, wanted, feeds, **more)

    monkeypatch.setattr(batching.WeightsAsInputs, "run", watched)
    net = nets.Net()
    hidden = net.conv(net.input("x", 1, "T"), 1, 2, (100,))
    model = net.model(net.op("ReduceMean", hidden, axes=[2]))
    assert read.from_model(model, name="net").separable
    assert {shape[2] for shape in shapes if shape[0] > 1} == {1024}
    assert {shape[2] for shape in shapes if shape[0] == 1} >= {3, 64, 1024}


def test_frames_into_which_a_window_does_not_fit_are_no_batch():
    """The first axis counts frames: of one, a slice of a convolution ended the process."""
    net = nets.Net()
    frames = net.op("Unsqueeze", net.input("T", "F"), net.constant(np.array([0, 1], np.int64)))
    hidden = net.op("Squeeze", net.conv(frames, 1, 1, (7, 3)), net.constant(np.array([0, 1])))
    bounds = [net.constant(np.array([i], np.int64)) for i in (1, 2**62, 0, 1)]
    model = net.model(net.op("Slice", hidden, *bounds))
    graph = read.from_model(model, name="net")
    assert not graph.separable
    x = np.ones((12, 5), np.float32)
    (name,) = graph.inputs
    with Session(policies.enclave(graph)) as session:
        (found,) = session.run({name: x}).outputs.values()
    assert found.shape == (5, 3)
