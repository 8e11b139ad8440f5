"""The walker finds what ONNX's own parser finds, and never more."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets
from cloister.errors import ModelError
from cloister.graph.onnx.model_file import LARGE_BYTES, read_model
from cloister.graph.onnx.read import from_model, load

LARGE = LARGE_BYTES // 4 + 3


def model(*extra: TensorProto, name: str = "w") -> onnx.ModelProto:
    """y = x + w with a large w, and more constants."""
    weights = np.random.default_rng(1).standard_normal(LARGE).astype(np.float32)
    node = helper.make_node("Add", ["x", name], ["y"], name="add")
    shape = ["N", LARGE]
    graph = helper.make_graph(
        [node],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w"), *extra],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test"
    )


def write(folder: Path, built: onnx.ModelProto, *, more: bytes = b"") -> Path:
    path = folder / "model.onnx"
    path.write_bytes(built.SerializeToString() + more)
    return path


def test_large_constants_are_taken_out_and_nothing_else_changes(tmp_path):
    built = model(numpy_helper.from_array(np.arange(3), "small"))
    found = read_model(write(tmp_path, built))
    assert list(found.constants) == [0]
    np.testing.assert_array_equal(
        found.constants[0], numpy_helper.to_array(built.graph.initializer[0])
    )
    assert not found.constants[0].flags.writeable
    assert not found.skeleton.graph.initializer[0].HasField("raw_data")
    found.skeleton.graph.initializer[0].raw_data = found.constants[0].tobytes()
    assert found.skeleton == built


@pytest.mark.parametrize("build", nets.ALL.values(), ids=nets.ALL)
def test_files_and_messages_give_the_same_graph(build, tmp_path, monkeypatch):
    monkeypatch.setattr("cloister.graph.onnx.model_file.LARGE_BYTES", 1)
    built = build()
    from_file, from_memory = load(write(tmp_path, built)), from_model(built, name="model")
    assert from_file.types == from_memory.types
    assert set(from_file.constants) == set(from_memory.constants)
    for name, array in from_memory.constants.items():
        assert from_file.constants[name].dtype == array.dtype
        np.testing.assert_array_equal(from_file.constants[name], array)


@pytest.mark.parametrize(
    "array", [np.ones((300, 300), t) for t in ("f8", "f2", "i1", "u8", "i4", "u2")]
)
def test_every_type_of_number(tmp_path, array):
    found = read_model(write(tmp_path, model(numpy_helper.from_array(array, "more"))))
    assert found.constants[1].dtype == array.dtype
    np.testing.assert_array_equal(found.constants[1], array)


def test_other_forms_of_data_stay_for_onnx(tmp_path):
    floats = helper.make_tensor("floats", TensorProto.FLOAT, [LARGE], np.zeros(LARGE))
    texts = helper.make_tensor("texts", TensorProto.STRING, [2], [b"a" * LARGE_BYTES, b"b"])
    built = model(floats, texts)
    found = read_model(write(tmp_path, built))
    assert list(found.constants) == [0]
    assert list(found.skeleton.graph.initializer[1:]) == list(built.graph.initializer[1:])


def test_a_constant_of_another_size_than_its_shape_stays_and_is_refused(tmp_path):
    built = model()
    built.graph.initializer[0].dims[0] += 1
    path = write(tmp_path, built)
    assert not read_model(path).constants
    with pytest.raises(ModelError, match=r"w\b.*(65548|damaged)"):
        load(path)


def test_two_constants_of_one_name_are_refused(tmp_path):
    small = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    with pytest.raises(ModelError, match="'w' is there twice"):
        load(write(tmp_path, model(small)))
    with pytest.raises(ModelError, match="'w' is there twice"):
        from_model(model(small), name="net")


def test_a_constant_that_is_also_a_node_s_output_is_refused(tmp_path):
    built = model()
    built.graph.node[0].output[0] = "w"
    built.graph.output[0].name = "w"
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        load(write(tmp_path, built))


def test_old_models_name_their_constants_as_inputs_too(tmp_path):
    built = model()
    built.ir_version = 3
    built.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [LARGE]))
    graph = load(write(tmp_path, built))
    assert graph.inputs == ("x",)
    assert graph.constants["w"].size == LARGE


@pytest.mark.parametrize("cut", [1, 100, LARGE_BYTES // 2])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, cut):
    path = write(tmp_path, model())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError, match=r"model\.onnx: not an ONNX model, or cut off"):
        load(path)


@pytest.mark.parametrize(
    "more",
    [
        b"\x00",
        b"\x0b\x0c",  # a group, which nobody writes any more
        b"\xff" * 12,  # a number without end
        b"\x3a\xff\xff\xff\xff\x7f",  # a graph beyond the end of the file
    ],
)
def test_odd_bytes_are_onnx_s_to_judge(tmp_path, more):
    path = write(tmp_path, model(), more=more)
    data = path.read_bytes()
    try:
        expected = onnx.load_model_from_string(data)
    except Exception:  # noqa: BLE001
        with pytest.raises(ModelError):
            read_model(path)
    else:
        assert read_model(path).skeleton == expected


def test_a_second_graph_is_merged_as_protobuf_does(tmp_path):
    second = onnx.ModelProto()
    array = np.ones(LARGE, np.float32)
    second.graph.initializer.append(numpy_helper.from_array(array, "late"))
    found = read_model(write(tmp_path, model(), more=second.SerializeToString()))
    assert list(found.constants) == [0, 1]
    assert [t.name for t in found.skeleton.graph.initializer] == ["w", "late"]
    np.testing.assert_array_equal(found.constants[1], array)
