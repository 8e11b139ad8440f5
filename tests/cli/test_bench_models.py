"""The networks that benchmarks run, and the engines they are compared with."""

import importlib
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import nets
from cloister.cli.bench.baselines import (
    OrtBaseline,
    OrtInt8Baseline,
    Timing,
    TorchBaseline,
    interleaved,
)
from cloister.cli.bench.models import NAMES, build, load_any
from cloister.errors import InputError, ModelError, UnsupportedError
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.linear_nodes import geometry
from cloister.graph.ops.table import is_linear

# Published counts; where the original has batch normalisation, its two trained vectors per
# convolution are one bias here: 4,800 channels in ResNet-18, 26,560 in ResNet-50, 75,712 in
# ResNet-152, 10,944 in MobileNet v1 and 17,056 in MobileNet v2.
PARAMETERS = {
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512 - 4_800,
    "resnet50": 25_557_032 - 26_560,
    "resnet152": 60_192_808 - 75_712,
    "mobilenet_v1": 4_231_976 - 10_944,
    "mobilenet_v2": 3_504_872 - 17_056,
    "lenet5": 61_706,
}
SMALL = ("lenet5", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50")
UNKNOWN_TO_TORCH = {"sequence", "separable", "transposed"}


def parameters(model: onnx.ModelProto) -> int:
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.dims)


def images(model: onnx.ModelProto, count: int) -> np.ndarray:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (count, *shape)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_the_published_number_of_parameters(name):
    assert parameters(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", 1.81e9), ("resnet50", 4.09e9), ("resnet152", 11.5e9),
        ("mobilenet_v1", 0.569e9), ("mobilenet_v2", 0.300e9),
    ],
)  # fmt: skip
def test_every_network_has_the_published_number_of_multiply_adds(name, macs):
    graph = from_model(build(name), name=name)
    found = sum(geometry(graph, node).macs for node in graph.nodes if is_linear(graph, node))
    assert found == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_valid_and_their_values_stay_in_range(name):
    model = build(name)
    onnx.checker.check_model(model, full_check=True)
    inner = [node.output[0] for node in model.graph.node]
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in inner[:-1])
    x = images(model, 1)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(None, {"image": x})
    assert values[0].shape == (1, 10 if name == "lenet5" else 1000)
    for value in values:
        assert np.isfinite(value).all()
        assert 1e-3 < value.std() < 30


@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v1"])
def test_networks_are_the_same_every_time_and_take_any_batch(name):
    model = build(name)
    assert model.SerializeToString() == build(name).SerializeToString()
    x = images(model, 3)
    engine = OrtBaseline(model, 1)
    (together,) = engine.run(x)
    for i in range(3):
        np.testing.assert_allclose(engine.run(x[i : i + 1])[0][0], together[i], atol=1e-4)
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1]
    first = {array.ravel()[:2].tobytes() for array in weights}
    assert len(first) == len(weights)


def test_unknown_networks_are_refused_and_files_are_loaded(tmp_path):
    with pytest.raises(InputError, match="no benchmark model 'vgg'; choose vgg16"):
        build("vgg")
    assert parameters(load_any("lenet5")) == PARAMETERS["lenet5"]
    path = tmp_path / "net.onnx"
    onnx.save(nets.chain(), path)
    x = images(nets.chain(), 2)
    expected = OrtBaseline(nets.chain(), 1).run(x)
    np.testing.assert_allclose(OrtBaseline(load_any(path), 1).run(x)[0], expected[0], atol=1e-5)
    with pytest.raises(ModelError, match="nothing"):
        load_any(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("name", sorted(set(nets.ALL) - UNKNOWN_TO_TORCH - {"several"}))
def test_both_engines_agree_on_every_structure(name):
    pytest.importorskip("torch")
    model = nets.ALL[name]()
    x = images(model, 2)
    first, second = OrtBaseline(model, 1).run(x), TorchBaseline(model, 1).run(x)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v2", "resnet18"])
def test_both_engines_agree_on_the_networks(name):
    pytest.importorskip("torch")
    model = build(name)
    x = images(model, 1)
    torch = TorchBaseline(model.SerializeToString(), 1)
    (a,), (b,) = OrtBaseline(model.SerializeToString(), 1).run(x), torch.run(x)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max())
    assert torch.layout(x.shape) in ("channels first", "channels last")
    assert torch.layout((1,)) is None
    for last in (False, True):
        np.testing.assert_allclose(torch._run(x, channels_last=last)[0], b, rtol=1e-3, atol=1e-3)


def single(op: str, *constants: np.ndarray, shape=(3, 9, 7), **attributes) -> onnx.ModelProto:
    net = nets.Net()
    x = net.input("image", *shape)
    return net.model(net.op(op, x, *(net.constant(c) for c in constants), **attributes))


KERNEL = np.random.default_rng(2).standard_normal((4, 3, 3, 2)).astype(np.float32)
PER_CHANNEL = np.array([0.5, 2, 1], np.float32)


@pytest.mark.parametrize(
    "model",
    [
        single("Conv", KERNEL, pads=[1, 0, 2, 1], strides=[2, 1]),
        single("Conv", KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
        single("Conv", KERNEL, auto_pad="SAME_LOWER", strides=[1, 2]),
        single("Conv", KERNEL, auto_pad="VALID"),
        single("MaxPool", kernel_shape=[3, 2], pads=[0, 1, 1, 0], strides=[2, 2]),
        single("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        single("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        single("AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 1], count_include_pad=1),
        single("Clip", np.float32(-0.2), np.float32(0.5)),
        single("Reshape", np.array([0, -1, 7])),
        single("Softmax", axis=1),
        single("LeakyRelu", alpha=0.2),
        single("Transpose", perm=[0, 2, 3, 1]),
        single("BatchNormalization", *[PER_CHANNEL] * 4),
        single("MatMul", KERNEL[0, 0, 0, 0] * np.ones((7, 2), np.float32)),
        single("Mul", PER_CHANNEL.reshape(3, 1, 1)),
        single("Flatten", axis=2),
        single("Sigmoid"),
        single("Dropout"),
    ],
)
def test_both_engines_agree_on_every_operator(model):
    pytest.importorskip("torch")
    x = images(model, 2)
    (a,), (b,) = OrtBaseline(model, 1).run(x), TorchBaseline(model, 1).run(x)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_what_the_torch_baseline_cannot_do_is_said(monkeypatch):
    pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="does not know ConvTranspose"):
        TorchBaseline(nets.transposed(), 1)
    model = single("AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 1])
    with pytest.raises(UnsupportedError, match="unequal padding"):
        TorchBaseline(model, 1).run(images(model, 1))


def test_without_torch_the_baseline_is_absent_and_says_so(monkeypatch):
    real = importlib.import_module

    def without(name, package=None):
        if name == "torch":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(InputError, match="PyTorch is not installed"):
        TorchBaseline(nets.chain(), 1)


def test_eight_bits_are_close(recwarn):
    model = nets.chain()
    x = images(model, 8)
    before = model.SerializeToString()
    (exact,) = OrtBaseline(model, 1).run(x)
    (rough,) = OrtInt8Baseline(model, 1, samples=x).run(x)
    assert model.SerializeToString() == before
    assert rough.shape == exact.shape
    assert 0 < np.abs(rough - exact).max() < 0.2 * np.abs(exact).max()


def test_eight_bits_of_an_old_opset(recwarn):
    model = nets.chain()
    model.opset_import[0].version, model.ir_version = 11, 6
    x = images(model, 8)
    (exact,) = OrtBaseline(model, 1).run(x)
    (rough,) = OrtInt8Baseline(model, 1, samples=x).run(x)
    assert model.opset_import[0].version == 11
    assert 0 < np.abs(rough - exact).max() < 0.2 * np.abs(exact).max()


def test_interleaved_runs_take_turns():
    order = []
    timings = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3
    )
    assert order == ["a", "b"] * 3
    assert {len(t.walls_s) for t in timings.values()} == {3}


def test_medians_and_spreads():
    timing = Timing((1.0, 4.0, 2.0), (0.5, 0.5, 1.0))
    assert (timing.wall_s, timing.cpu_s) == (2.0, 0.5)
    assert (timing.wall_spread, timing.cpu_spread) == (1.5, 1.0)
    assert Timing((1.0,), (0.0,)).cpu_spread == 0.0


ESCAPE = "\x1b]0;all is checked\x07"


def gathers(index, *, domain=""):
    """Picks a row that is not there, or has an operator that nobody knows."""
    net = nets.Net()
    rows = net.op("Gather", net.constant(np.eye(3, dtype=np.float32)), net.constant(index))
    model = net.model(net.op("Add", net.input("x", 3), rows))
    model.graph.node[0].name = ESCAPE
    if domain:
        model.graph.node[0].domain = domain
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return model


def test_what_onnx_runtime_refuses_is_one_printable_error(capfd):
    x = np.ones((1, 3), np.float32)
    with pytest.raises(InputError, match="ONNX Runtime") as of_run:
        OrtBaseline(gathers(np.array(7)), 1).run(x)
    with pytest.raises(InputError, match="does not take the model") as of_load:
        OrtBaseline(gathers(np.array(0), domain=f"a.b{ESCAPE}"), 1)
    assert all(str(caught.value).isprintable() for caught in (of_run, of_load))
    assert capfd.readouterr() == ("", "")
