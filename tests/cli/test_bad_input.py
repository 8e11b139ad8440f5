"""Every way an input can be wrong: one line, exit code 2, no traceback."""

import socket

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets


@pytest.fixture
def array(tmp_path):
    """A good input for the tiny model."""
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).random((2, 3, 8, 6)).astype(np.float32))
    return path


def saved(path, model):
    onnx.save(model, path)
    return path


def test_missing_model(refused, tmp_path, array):
    for verb, *more in (("inspect",), ("run", array), ("compare", array)):
        assert "nothing.onnx" in refused(verb, tmp_path / "nothing.onnx", *more)


def test_a_folder_is_no_model(refused, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    assert "folder.onnx" in refused("inspect", tmp_path / "folder.onnx")


@pytest.mark.parametrize("keep", [0, 1, 50, -3])
def test_truncated_model(refused, tmp_path, model_file, keep):
    (tmp_path / "cut.onnx").write_bytes(model_file.read_bytes()[:keep])
    assert "cut" in refused("inspect", tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    "content", [b"hello world", b"\x89PNG\r\n\x1a\n", bytes(1000), b"\xff" * 64]
)
def test_no_model_at_all(refused, tmp_path, content):
    (tmp_path / "noise.onnx").write_bytes(content)
    assert "noise" in refused("inspect", tmp_path / "noise.onnx")


def test_oversized_model(refused, tmp_path):
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31 + 1)  # a sparse file: it takes no room
    assert "huge" in refused("inspect", tmp_path / "huge.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "missing.bin"])
def test_external_data_outside_the_models_folder(refused, tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 3 * 5))
    net = nets.Net()
    model = net.model(net.op("Gemm", net.input("x", 3), net.weights(5, 3), transB=1))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "60")):
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    refused("inspect", folder / "m.onnx")


def test_dynamic_shapes(refused, tmp_path):
    net = nets.Net()
    model = net.model(net.conv(net.input("image", 3, 8, 6), 3, 4))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    message = refused("bench", "inference", saved(tmp_path / "dynamic.onnx", model))
    assert "free size 'height'" in message
    assert "--dim height=SIZE" in message


def test_unknown_operator_is_listed_with_a_remedy(cloister, tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["m"], name="first", domain="nobody"),
        helper.make_node("Twiddle", ["m"], ["y"], name="second", domain="nobody"),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    graph = helper.make_graph(nodes, "odd", [value], [out])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    ran = cloister("inspect", saved(tmp_path / "odd.onnx", model))
    assert ran.code == 2
    assert "first" in ran.out + ran.err
    assert "second" in ran.out + ran.err


def test_integers_where_floats_are_expected(refused, model_file, tmp_path):
    np.save(tmp_path / "ints.npy", np.zeros((1, 3, 8, 6), np.int32))
    message = refused("run", model_file, tmp_path / "ints.npy")
    assert "ints.npy: holds int32 numbers" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_inputs(refused, model_file, tmp_path, value):
    np.save(tmp_path / "bad.npy", np.full((1, 3, 8, 6), value, np.float32))
    np.save(tmp_path / "good.npy", np.zeros((1, 3, 8, 6), np.float32))
    message = refused(
        "run", model_file, tmp_path / "bad.npy", "--calibration", tmp_path / "good.npy"
    )
    assert "(input 'image': sample 0 contains NaN or infinity)" in message


def test_wrong_channel_count(refused, model_file, tmp_path):
    np.save(tmp_path / "four.npy", np.zeros((1, 4, 8, 6), np.float32))
    assert "four.npy" in refused("run", model_file, tmp_path / "four.npy")


def test_pictures_that_do_not_decode(refused, model_file, pictures, tmp_path):
    (tmp_path / "half.png").write_bytes(pictures[0].read_bytes()[:100])
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("half.png", "text.jpg", "missing.png"):
        assert name in refused("run", model_file, tmp_path / name)


def test_unreachable_worker(refused, model_file, array):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    message = refused(
        "run", model_file, "--worker", address, "--timeout", 2, array
    )  # fmt: skip
    assert address in message


def test_slow_worker(refused, model_file, array):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        refused("run", model_file, "--worker", address, "--timeout", 1, array)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", ":", "127.0.0.1:port"])
def test_worker_addresses(refused, model_file, array, address):
    refused("run", model_file, "--worker", address, "--timeout", 1, array)
    refused("worker", "serve", "--listen", address)


def test_unknown_policy(refused, model_file, array):
    for verb, *more in (("inspect",), ("run", array), ("plan", "--out", "never.plan")):
        message = refused(verb, model_file, *more, "--policy", "slalomm")
        assert "unknown policy 'slalomm'; choose one of slalom" in message


def test_pad_options(refused, model_file, array, tmp_path):
    assert "--key" in refused("run", model_file, "--pads", tmp_path, array)
    key = ("--key", tmp_path / "key")
    message = refused("run", model_file, "--pads", tmp_path, *key, array)
    assert "key: does not exist" in message
    missing = (tmp_path / "none", *key)
    refused("pads", "status", *missing)
    assert "--calibration" in refused("pads", "make", model_file, "--count", 1, *missing)
    message = refused(
        "pads", "make", model_file, "--count", 1, *missing, "--policy", "verified",
        "--calibration", array,
    )  # fmt: skip
    assert "blinds nothing" in message


@pytest.mark.parametrize("content", ["", "[]", "{", "CLOP", "CLOP" + "\0" * 40, "[" * 100_000])
def test_damaged_plan_files(refused, array, tmp_path, content):
    path = tmp_path / "c.plan"
    path.write_text(content)
    assert "c.plan: not a plan that can be read" in refused("run", path, array)


def test_a_calibration_that_is_no_input(refused, model_file, array, tmp_path):
    path = tmp_path / "c.json"
    path.write_text("{}")
    assert "c.json" in refused("run", model_file, "--calibration", path, array)


def test_output_in_a_missing_folder(refused, model_file, array, tmp_path):
    for path in (tmp_path / "none" / "y.npz", tmp_path / "y.txt"):
        assert "--out" in refused("run", model_file, array, "--out", path)


@pytest.mark.parametrize("bits", [("--weight-bits", 17), ("--activation-bits", 1)])
def test_bits_out_of_range(refused, model_file, array, bits):
    assert "bits must be" in refused("run", model_file, *bits, array)


def test_usage_errors_are_one_line_too(refused, model_file):
    refused("run", model_file)
    refused("fly")
    refused("inspect", model_file, "--colour", "red")
    refused("run", model_file, "--top", "many", "x.npy")


def test_labels_are_read_before_anything_runs(refused, model_file, array, tmp_path):
    message = refused(
        "run", model_file, array, "--labels", tmp_path / "none.txt"
    )  # fmt: skip
    assert "none.txt: no such file" in message


def test_names_with_control_characters_stay_on_one_line(refused, tmp_path):
    refused("inspect", tmp_path / "two\nlines\x1b[31m.onnx")


def test_numbers_that_the_network_turns_into_nan(refused, tmp_path, array):
    net = nets.Net()
    huge = net.constant(np.float32(3e38))
    x = net.op("Mul", net.op("Mul", net.input("image", 3, 8, 6), huge), huge)
    model = net.model(net.conv(x, 3, 4))
    assert "NaN or infinite" in refused(
        "run", saved(tmp_path / "explodes.onnx", model), array
    )  # fmt: skip


def test_nan_weights(refused, tmp_path, array):
    net = nets.Net()
    model = net.model(net.conv(net.input("image", 3, 8, 6), 3, 4))
    weights = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weights[0] = np.nan
    name = model.graph.initializer[1].name
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, name))
    message = refused("run", saved(tmp_path / "nan.onnx", model), array)
    assert "weights contain NaN" in message


def test_a_path_that_cannot_be_written_is_named_with_its_option(refused, model_file, array):
    for option, kinds in (("--out", ".npz or .csv"), ("--transcript", ".npz")):
        message = refused("run", model_file, array, option, "/nowhere/x.npz")
        assert message.startswith(f"error: {option} /nowhere/x.npz: name a {kinds} file")


def test_samples_for_the_ranges_are_given_once(refused, tmp_path, model_file, array):
    given = (model_file, array, "--calibration", array, "--out", tmp_path / "m.plan")
    assert "give one of the two" in refused("plan", *given)
    assert not (tmp_path / "m.plan").exists()


def test_a_plan_cannot_be_measured(refused, tmp_path):
    assert "is a plan; give the model" in refused("bench", "inference", tmp_path / "m.plan")


@pytest.mark.parametrize("group", ["audit", "authority", "bench", "data", "pads", "worker"])
def test_a_group_without_a_verb_lists_its_verbs(cloister, group):
    ran = cloister(group)
    assert ran.code == 2
    assert "Commands" in ran.out + ran.err
    assert "error" not in ran.out + ran.err


def test_the_clip_of_no_noise(refused, tmp_path):
    connection = ("--authority", "https://127.0.0.1:1", "--pin", tmp_path, "--token", "t")
    message = refused("train", tmp_path / "d.cloister", *connection, "--noise-clip", 2)
    assert "give --noise-sigma too" in message
