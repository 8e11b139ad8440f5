"""Models with free sizes on the command line: sizes of the inputs, or --dim."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image

from nets import Net


@pytest.fixture
def net(tmp_path):
    """A dense layer for each token, and one for their mean."""
    made = Net()
    made.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 4]))
    x = made.op("Relu", made.op("MatMul", "x", made.weights(4, 6)))
    path = tmp_path / "tokens.onnx"
    onnx.save(made.model(made.gemm(made.op("ReduceMean", x, axes=[1], keepdims=0), 6, 3)), path)
    return path


@pytest.fixture
def tokens(tmp_path):
    def write(length: int, *, count: int = 3, scale: float = 1.0):
        path = tmp_path / f"{length}-{scale}.npy"
        x = np.random.default_rng(length).uniform(-scale, scale, (count, length, 4))
        np.save(path, x.astype(np.float32))
        return path

    return write


def wanted(net, path) -> np.ndarray:
    return ort.InferenceSession(net).run(None, {"x": np.load(path)})[0]


@pytest.fixture
def outputs(cloister, tmp_path):
    """The first output of a run."""

    def run(*arguments) -> np.ndarray:
        to = tmp_path / "out.npz"
        ran = cloister("run", *arguments, "--out", to)
        assert ran.code == 0, ran
        return next(iter(np.load(to).values()))

    return run


@pytest.mark.parametrize("policy", ["slalom", "enclave"])
def test_inputs_of_another_size_than_the_calibration_are_run(outputs, net, tokens, policy):
    inputs = tokens(5)
    ranges = ("--calibration", tokens(7, scale=4.0)) if policy == "slalom" else ()
    found, right = outputs(net, inputs, "--policy", policy, *ranges), wanted(net, inputs)
    assert np.linalg.norm(found - right) <= 0.02 * np.linalg.norm(right)


def test_a_plan_and_its_pads_are_for_one_size(cloister, outputs, refused, net, tokens, tmp_path):
    plan, pads, key = tmp_path / "net.plan", tmp_path / "pads", tmp_path / "pads.key"
    ran = cloister("plan", net, tokens(7, scale=4.0), "--out", plan)
    assert ran.code == 0, ran
    assert outputs(plan, tokens(7)).shape == (3, 3)
    assert "(batch, 7, 4)" in refused("run", plan, tokens(5))
    assert "--dim: is decided by the plan" in refused("run", plan, tokens(7), "--dim", "T=7")
    given = ("--calibration", tokens(7, scale=4.0))
    made = cloister("pads", "make", net, pads, "--key", key, "--count", 6, *given)
    assert made.code == 0, made
    stored = ("--pads", pads, "--key", key)
    assert outputs(net, tokens(7), *stored).shape == (3, 3)
    assert "(batch, 7, 4)" in refused("run", net, tokens(5), *stored)


def test_inspect_shows_a_free_size_and_what_a_number_makes_of_it(cloister, net):
    found = json.loads(cloister("inspect", net, "--json").out)
    assert found["inputs"]["x"] == ["float32", ["batch", "T", 4]]
    assert found["free_sizes"] == ["T"]
    sent = [node["node"] for node in found["nodes"] if node["bytes_to_worker"]]
    bound = json.loads(cloister("inspect", net, "--dim", "T=9", "--json").out)
    assert (bound["inputs"]["x"], bound["free_sizes"]) == (["float32", ["batch", 9, 4]], [])
    assert len([node for node in bound["nodes"] if node["bytes_to_worker"]]) == len(sent) + 1
    assert "--dim T=SIZE" in cloister("inspect", net).out.replace("\n", " ")


def test_inspect_claims_nothing_before_the_sizes_are_numbers(cloister, net):
    """A node that is inside only because its size is free goes to a worker in every plan."""
    assert json.loads(cloister("inspect", net, "--json").out)["claims"] is None
    shown = cloister("inspect", net).out
    assert "who learns what, and can do what: follows from the free sizes" in shown
    assert "there is no worker" not in shown
    for more in (("--dim", "T=9"), ("--policy", "enclave")):
        assert json.loads(cloister("inspect", net, *more, "--json").out)["claims"]["statements"]


@pytest.mark.parametrize(("dim", "message"), [
    ("T", "--dim T: give NAME=SIZE"), ("T=-1", "--dim T=-1: give NAME=SIZE"),
    ("S=3", "size 'S': the model's free sizes are 'N', 'T'"),
])  # fmt: skip
def test_a_size_that_means_nothing_is_refused(refused, net, dim, message):
    assert message in refused("inspect", net, "--dim", dim)


def test_a_size_is_given_once(refused, net):
    assert "T is 3 already" in refused("inspect", net, "--dim", "T=3", "--dim", "T=4")


def test_verbs_that_need_a_number_ask_for_it(refused, cloister, net, tokens):
    for verb in (
        ("bench", "inference", net),
        ("plan", net, "--hide-input", "proven"),
        ("run", net, tokens(5), "--last", 1),
    ):
        assert "--dim T=SIZE" in refused(*verb)
    ran = cloister("bench", "inference", net, "--dim", "T=5", "--repeats", 1, "--json")
    assert ran.code == 0, ran
    ran = cloister("compare", net, tokens(5), "--calibration", tokens(7, scale=4.0), "--json")
    assert json.loads(ran.out)["inputs"] == 3


def test_files_of_different_sizes_are_not_one_batch(refused, net, tokens):
    message = refused("run", net, tokens(5), tokens(7), "--policy", "enclave")
    assert "samples of shape (7, 4)" in message
    assert "run them apart" in message


def test_a_picture_keeps_its_size_where_the_model_takes_any(cloister, tmp_path):
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"]))
    path = tmp_path / "any.onnx"
    onnx.save(net.model(net.conv("x", 3, 2, pads=[1] * 4)), path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    to = tmp_path / "out.npz"
    for resize, size in (((), (9, 12)), (("--resize", "6,8"), (6, 8))):
        ran = cloister("run", path, tmp_path / "a.png", "--out", to, *resize)
        assert ran.code == 0, ran
        assert next(iter(np.load(to).values())).shape == (1, 2, *size)
