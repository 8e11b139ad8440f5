"""Data beside a model: found wherever they are named, read from its folder or not at all."""

import os
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cloister.errors import ModelError
from cloister.graph.onnx.external_data import (
    is_external,
    messages,
    read_external_data,
    require_inside,
)
from cloister.graph.onnx.model_file import MAX_FILE_BYTES
from cloister.graph.onnx.read import from_model, load
from cloister.graph.weights_as_inputs import WeightsAsInputs

DATA = np.arange(1, 5, dtype=np.float32)


def places(message=onnx.ModelProto.DESCRIPTOR, path=(), seen=None):
    """Every field of ONNX's messages that may hold a tensor, with a way there from a model."""
    seen = set() if seen is None else seen
    for field in message.fields:
        if field.message_type is None or field.full_name in seen:
            continue
        seen.add(field.full_name)
        here = (*path, field)
        if field.message_type.full_name == "onnx.TensorProto":
            yield here
        else:
            yield from places(field.message_type, here, seen)


def at(path, tensor):
    """A model with a tensor in one place."""
    root = message = onnx.ModelProto()
    for field in path:
        inner = getattr(message, field.name)
        if hasattr(inner, "add"):
            inner = inner.add()
        inner.SetInParent()
        message = inner
    message.CopyFrom(tensor)
    return root


def outside(location="data.bin", *, dims=(4,), kind=TensorProto.FLOAT, **fields):
    tensor = TensorProto(name="w", data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def adds(tensor):
    """y = x + w"""
    shape = [1, *tensor.dims]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], name="add")],
        "adds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(folder, model):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


PLACES = {".".join(field.name for field in path): path for path in places()}


def test_the_places_are_those_of_the_format():
    kinds = {path[-1].full_name for path in PLACES.values()}
    assert kinds >= {
        "onnx.GraphProto.initializer",
        "onnx.SparseTensorProto.values",
        "onnx.SparseTensorProto.indices",
        "onnx.AttributeProto.t",
        "onnx.AttributeProto.tensors",
    }
    names = "\n".join(field.full_name for path in PLACES.values() for field in path)
    assert "onnx.ModelProto" in names


@pytest.mark.parametrize("path", PLACES.values(), ids=PLACES)
def test_no_place_is_forgotten(path, tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "model", tmp_path / "current"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "data.bin").write_bytes(DATA.tobytes())
    (elsewhere / "data.bin").write_bytes(bytes(DATA.nbytes))
    monkeypatch.chdir(elsewhere)
    model = at(path, outside())
    with pytest.raises(ModelError, match="net: constant 'w' lies in another file"):
        require_inside(model, name="net")
    with pytest.raises(ModelError, match="load the model by its path"):
        read_external_data(model, folder=None, name="net")
    read_external_data(model, folder=folder, name="net")
    require_inside(model, name="net")
    (tensor,) = (one for one in messages(model) if isinstance(one, TensorProto))
    assert tensor.raw_data == DATA.tobytes()
    assert not is_external(tensor)


def wrapped(holder, field):
    """A model inside whose attribute, function or training step another graph holds the tensor."""
    model = onnx.ModelProto()
    attribute = model.graph.node.add().attribute.add()
    graph = attribute.g if field == "g" else attribute.graphs.add()
    if holder == "function":
        attribute = model.functions.add().node.add().attribute.add()
        graph = attribute.g if field == "g" else attribute.graphs.add()
    elif holder == "training":
        graph = model.training_info.add().algorithm
    return model, graph


@pytest.mark.parametrize("holder", ["node", "function", "training"])
@pytest.mark.parametrize("field", ["g", "graphs"])
@pytest.mark.parametrize("inside", ["initializer", "values", "indices", "t", "sparse_tensors"])
def test_subgraphs_functions_and_training_steps_are_walked(holder, field, inside):
    model, graph = wrapped(holder, field)
    for _ in range(3):  # deeper
        graph = graph.node.add().attribute.add().g
    attribute = graph.node.add().attribute.add()
    target = {
        "initializer": lambda: graph.initializer.add(),
        "values": lambda: graph.sparse_initializer.add().values,
        "indices": lambda: graph.sparse_initializer.add().indices,
        "t": lambda: attribute.t,
        "sparse_tensors": lambda: attribute.sparse_tensors.add().values,
    }[inside]()
    target.CopyFrom(outside())
    with pytest.raises(ModelError, match="'w'"):
        require_inside(model, name="net")


def test_a_sparse_constant_is_read_from_the_models_folder(tmp_path, monkeypatch):
    folder, current = tmp_path / "model", tmp_path / "current"
    folder.mkdir()
    current.mkdir()
    (current / "secret.bin").write_bytes(np.full(4, 7, np.float32).tobytes())
    monkeypatch.chdir(current)
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(outside("secret.bin"))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], range(4)))
    model = adds(
        TensorProto(name="none", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(16))
    )
    constant = helper.make_node("Constant", [], ["w"], name="made")
    constant.attribute.add(
        name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse
    )
    model.graph.node.insert(0, constant)
    with pytest.raises(ModelError, match=r"secret\.bin.*cannot be read"):
        load(write(folder, model))
    (folder / "secret.bin").write_bytes(DATA.tobytes())
    graph = load(write(folder, model))
    (found,) = WeightsAsInputs(graph).run(None, {"x": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(found[0], DATA)


def test_after_loading_no_tensor_is_outside(monkeypatch):
    monkeypatch.setattr("cloister.graph.onnx.read.read_external_data", lambda *_, **__: None)
    with pytest.raises(ModelError, match="'w' lies in another file"):
        from_model(adds(outside()), name="net")


def test_entries_left_over_from_another_form_are_dropped(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], DATA)
    tensor.external_data.add(key="location", value="/etc/hostname")
    graph = load(write(tmp_path, adds(tensor)))
    np.testing.assert_array_equal(graph.constants["w"], DATA)


# ---- files that are no files


def in_time(call):
    """What a call raises; it must not wait for anybody."""
    found = []

    def work():
        try:
            call()
        except Exception as error:  # noqa: BLE001
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it blocks"
    return found[0]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "data.bin")
    path = write(tmp_path, adds(outside()))
    error = in_time(lambda: load(path))
    assert isinstance(error, ModelError)
    assert "data.bin" in str(error)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_neither_is_a_pipe_opened_as_a_model(tmp_path, make):
    make(tmp_path / "model.onnx")
    error = in_time(lambda: load(tmp_path / "model.onnx"))
    assert isinstance(error, ModelError)
    assert "model.onnx" in str(error)


def test_links_inside_the_folder_are_followed_and_circles_are_refused(tmp_path):
    (tmp_path / "real.bin").write_bytes(DATA.tobytes())
    (tmp_path / "data.bin").symlink_to("real.bin")
    graph = load(write(tmp_path, adds(outside())))
    np.testing.assert_array_equal(graph.constants["w"], DATA)
    (tmp_path / "data.bin").unlink()
    (tmp_path / "data.bin").symlink_to("data.bin")
    with pytest.raises(ModelError, match="'w'"):
        load(write(tmp_path, adds(outside())))


# ---- sizes


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": -4},
        {"offset": 4},
        {"offset": 1 << 70},
        {"length": 12},
        {"length": 20},
        {"length": -1},
        {"length": 1 << 70},
        {"length": "many"},
        {"offset": "9" * 5000},
    ],
)
def test_offsets_and_lengths_that_are_not_the_tensors_are_refused(tmp_path, fields):
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    with pytest.raises(ModelError, match="constant 'w'"):
        load(write(tmp_path, adds(outside(**fields))))


def test_a_part_of_a_file_is_read(tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(8) + DATA.tobytes() + bytes(8))
    graph = load(write(tmp_path, adds(outside(offset=8, length=16))))
    np.testing.assert_array_equal(graph.constants["w"], DATA)


def test_a_file_of_holes_states_no_size(tmp_path):
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(1 << 42)
    for fields in ({}, {"length": 1 << 42}):
        with pytest.raises(ModelError, match="its shape takes 16 B"):
            load(write(tmp_path, adds(outside(**fields))))
    # A shape that fits is bounded too, and so are several constants together.
    large = outside(dims=(1 << 40,), kind=TensorProto.FLOAT)
    with pytest.raises(ModelError, match="exceed 2 GiB"):
        load(write(tmp_path, adds(large)))
    half = MAX_FILE_BYTES // 4 // 2 + 1
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(4 * half)
    model = onnx.ModelProto()
    read = []
    for _ in range(2):
        model.graph.initializer.append(outside(dims=(half,)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match="exceed 2 GiB"):
        patch.setattr("cloister.graph.onnx.external_data._data", lambda *a: read.append(a) or b"")
        read_external_data(model, folder=tmp_path, name="net")
    assert len(read) == 1


@pytest.mark.parametrize("dims", [(-1, -4), (-4,)])
def test_negative_sizes_are_refused(tmp_path, dims):
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    with pytest.raises(ModelError, match="absurd"):
        read_external_data(adds(outside(dims=dims)), folder=tmp_path, name="net")


@pytest.mark.parametrize("kind", [TensorProto.STRING, 9999])
def test_types_without_a_size_are_refused(tmp_path, kind):
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    model = adds(outside(kind=kind))
    with pytest.raises(ModelError, match=r"texts|unknown"):
        read_external_data(model, folder=tmp_path, name="net")


def test_packed_types_take_less_than_a_byte(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"\x21\x43\x05")
    model = adds(outside(dims=(5,), kind=TensorProto.UINT4))
    read_external_data(model, folder=tmp_path, name="net")
    assert model.graph.initializer[0].raw_data == b"\x21\x43\x05"


def test_a_model_whose_truth_values_are_neither_0_nor_1_is_refused(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.BOOL, [4], bytes([0, 1, 255, 1]), raw=True)
    with pytest.raises(ModelError, match="'w' holds truth values that are neither 0 nor 1"):
        load(write(tmp_path, adds(tensor)))
