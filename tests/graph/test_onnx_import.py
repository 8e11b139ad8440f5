"""Files that are what they claim, and files that are not."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import nets
from cloister.errors import ModelError
from cloister.graph.graph import BATCH
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import from_model, load
from cloister.graph.passes.normalise import prepare
from nets import Net

MODELS = (
    "mobilenet_v1_0.75_224", "mobilenet_v2_1.0_224", "squeezenet_v1.0_227",
    "resnet20_cifar10", "resnet56_cifar10",
)  # fmt: skip


def run(model: onnx.ModelProto | bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("build", nets.ALL.values(), ids=nets.ALL)
def test_small_nets_keep_their_meaning(build):
    model = build()
    feeds = nets.samples(model, 3)
    graph = from_model(model, name="net")
    assert graph.batch is None
    for found, wanted in zip(run(model_bytes(graph), feeds), run(model, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_real_models_keep_their_meaning(data, name):
    path = data / "models" / f"{name}.onnx"
    graph = prepare(load(path))
    (value,) = graph.inputs
    shape = graph.types[value].shape
    assert shape[0] is None
    x = np.random.default_rng(1).standard_normal((3, *shape[1:])).astype(np.float32)
    original = onnx.load(path)
    wanted = np.concatenate([run(original, {value: x[i : i + 1]})[0] for i in range(3)])
    found = run(model_bytes(graph), {value: x})[0]
    assert graph.types[graph.outputs[0]].shape == (None, *wanted.shape[1:])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.data
def test_shape_arithmetic_is_gone_from_a_prepared_model(data):
    graph = prepare(load(data / "models" / "mobilenet_v2_1.0_224.onnx"))
    assert not {"Shape", "Gather", "Constant", "Pad", "Concat"} & {n.op for n in graph.nodes}


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_off_is_refused(tmp_path, keep):
    data = nets.chain().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[:keep])
    with pytest.raises(ModelError, match=r"cut") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" * 40, b"hello world", b"\x00" * 64])
def test_another_kind_of_file_is_refused(tmp_path, data):
    path = tmp_path / "other.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nothing\.onnx"):
        load(tmp_path / "nothing.onnx")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError):
        load(tmp_path)


def test_a_file_over_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 10)
    with pytest.raises(ModelError, match="2 GiB"):
        load(path)


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    data = bytearray(nets.residual().SerializeToString())
    rng = np.random.default_rng(3)
    path = tmp_path / "damaged.onnx"
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            prepare(load(path))
        except ModelError:
            continue


def test_an_absurd_constant_is_refused_before_it_is_allocated():
    model = nets.chain()
    model.graph.initializer[0].dims[:] = [2**40, 3]
    with pytest.raises(ModelError):
        from_model(model, name="net")


def test_a_constant_with_too_few_bytes_is_refused():
    model = nets.chain()
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(ModelError):
        from_model(model, name="net")


# ---- external data


def external(location: str, *, length: int | None = None) -> onnx.ModelProto:
    net = Net()
    model = net.model(net.op("MatMul", net.input("x", 5), net.weights(5, 4)))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    fields = {"location": location} | ({} if length is None else {"length": str(length)})
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_external_data_beside_the_model_is_read(tmp_path):
    weights = np.arange(20, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(weights.tobytes())
    graph = load(write(tmp_path / "model.onnx", external("weights.bin")))
    (constant,) = graph.constants.values()
    np.testing.assert_array_equal(constant.ravel(), weights)


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret.bin", "a/../../secret.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ModelError, match="outside"):
        load(write(folder / "model.onnx", external(location)))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside"):
        load(write(folder / "model.onnx", external("weights.bin")))


def test_missing_or_short_external_data_is_refused(tmp_path):
    with pytest.raises(ModelError):
        load(write(tmp_path / "model.onnx", external("weights.bin")))
    (tmp_path / "weights.bin").write_bytes(bytes(40))
    for length in (None, 80):
        with pytest.raises(ModelError):
            load(write(tmp_path / "model.onnx", external("weights.bin", length=length)))


def test_external_data_of_a_model_in_memory_is_refused():
    with pytest.raises(ModelError, match="path"):
        from_model(external("weights.bin"), name="net")


# ---- shapes


def one_input(*shape: str | int | None) -> onnx.ModelProto:
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape)))
    return net.model(net.op("Relu", "image"))


@pytest.mark.parametrize(
    ("size", "name"), [("height", "height"), (None, "image[2]"), (-1, "image[2]")]
)
def test_a_free_axis_besides_the_batch_has_a_name(size, name):
    graph = from_model(one_input("N", 3, size, 8), name="net")
    assert graph.free_sizes == (name,)
    assert graph.sizes("image") == graph.sizes(graph.outputs[0]) == (BATCH, 3, name, 8)


def test_an_input_without_a_shape_has_any_rank():
    model = one_input("N", 3)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    graph = from_model(model, name="net")
    assert graph.sizes("image") is None
    assert graph.batch == 1  # it runs whole


def test_an_input_without_a_type_is_named():
    model = one_input("N", 3)
    model.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(ModelError, match="image"):
        from_model(model, name="net")


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_freed(batch):
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 6, 5]))
    x = net.conv("image", 3, 4)
    x = net.op("Reshape", x, net.constant(np.array([batch, 4 * 4 * 3])))
    graph = from_model(net.model(net.gemm(x, 48, 2)), name="net")
    assert graph.batch is None
    assert graph.types[graph.outputs[0]].shape == (None, 2)


def test_a_batch_that_is_mixed_stays_fixed():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6]))
    total = net.op("ReduceMean", "x", axes=[0], keepdims=1)
    graph = from_model(net.model(net.op("Sub", "x", total)), name="net")
    assert graph.batch == 4


def test_a_batch_that_becomes_another_axis_stays_fixed():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]))
    graph = from_model(net.model(net.op("Transpose", "x", perm=[1, 0])), name="net")
    assert graph.batch == 2


def test_integer_inputs_are_legal_and_typed():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 7]))
    graph = from_model(net.model(net.op("Gather", net.weights(20, 4), "ids")), name="net")
    assert graph.types["ids"].dtype == np.int64
    assert graph.types[graph.outputs[0]].shape == (None, 7, 4)


# ---- names and node kinds


def test_nodes_get_unique_stable_names():
    net = Net()
    x = net.op("Relu", net.op("Relu", net.op("Relu", net.input("x", 4))))
    model = net.model(x)
    for node, name in zip(model.graph.node, ("", "same", "same"), strict=True):
        node.name = name
    names = [node.name for node in from_model(model, name="net").nodes]
    assert len(set(names)) == 3
    assert "same" in names
    assert names == [node.name for node in from_model(model, name="net").nodes]


def test_subgraphs_and_functions_run(tmp_path):
    net = Net()
    x = net.input("x", 4)
    branch = [
        helper.make_graph(
            [helper.make_node(op, [x], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["N", 4])],
        )
        for op in ("Relu", "Neg")
    ]
    condition = net.constant(np.array(False))
    choice = net.op("If", condition, then_branch=branch[0], else_branch=branch[1])
    model = net.model(net.op("Twice", choice))
    model.graph.node[-1].domain = "local"
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    feeds = {"x": np.array([[1, -2, 3, 4]], np.float32)}
    graph = from_model(model, name="net")
    for one in (graph, prepare(graph)):
        np.testing.assert_array_equal(run(model_bytes(one), feeds)[0], -2 * feeds["x"])
