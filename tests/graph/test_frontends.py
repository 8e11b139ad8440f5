"""Models straight from PyTorch and Keras."""

import importlib
import json
import sys
import zipfile

import numpy as np
import pytest

from cloister.errors import ModelError, UnsupportedError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx import frontends
from cloister.graph.onnx.load import load
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.session import Session


def test_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3),
        torch.nn.BatchNorm2d(5),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Dropout(),
        torch.nn.Linear(5 * 6 * 4, 3),
    )
    x = torch.randn(3, 3, 8, 6)
    graph = prepare(frontends.from_torch(module, x[:1]))
    assert module.training
    wanted = module.eval()(x).detach().numpy()
    found = interpret(graph, {"input": x.numpy()})[graph.outputs[0]]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert [node.op for node in graph.nodes] == ["Conv", "Relu", "Conv", "Flatten"]


def test_pytorch_with_two_inputs():
    torch = pytest.importorskip("torch")

    class Product(torch.nn.Module):
        def forward(self, x, y):
            return x * y

    graph = frontends.from_torch(Product(), (torch.ones(1, 3), torch.ones(1, 3)))
    assert len(graph.inputs) == 2
    assert graph.batch is None


def test_pytorch_with_a_state_and_a_scalar():
    torch = pytest.importorskip("torch")

    class Cell(torch.nn.Module):
        def forward(self, x, state, gain):
            return (x + state.sum(0)) * gain

    examples = (torch.ones(1, 3), torch.ones(2, 1, 3), torch.tensor(2.0))
    graph = frontends.from_torch(Cell(), examples)
    assert [graph.sizes(name) for name in graph.inputs] == [("batch", 3), (2, 1, 3), ()]


def test_pytorch_dilated_padding_of_the_same_size():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Conv1d(2, 3, 3, padding="same", dilation=4)
    x = torch.randn(2, 2, 24)
    graph = prepare(frontends.from_torch(module, x))
    found = interpret(graph, {"input": x.numpy()})[graph.outputs[0]]
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    with Session(policies.enclave(graph)) as session:
        (inside,) = session.run(x.numpy()).outputs.values()
    np.testing.assert_allclose(inside, found, rtol=1e-4, atol=1e-5)


def test_something_else_than_a_module():
    pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="Module"):
        frontends.from_torch(lambda x: x, np.zeros(3))


def test_a_module_that_cannot_be_exported():
    torch = pytest.importorskip("torch")

    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no\nway")

    with pytest.raises(UnsupportedError, match="no") as caught:
        frontends.from_torch(Broken(), torch.ones(1, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["torch", "keras"])
def test_a_missing_framework_says_what_to_install(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "model.keras"
    path.write_bytes(b"")
    with pytest.raises(UnsupportedError, match="pip install"):
        if name == "torch":
            frontends.from_torch(lambda x: x, None)
        else:
            frontends.from_keras(path)


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    return pytest.importorskip("keras")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_keras(keras, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 10, 3)),
            layers.Conv2D(8, 3, padding="same", strides=2, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    path = tmp_path / "model.keras"
    model.save(path)
    graph = prepare(frontends.from_keras(path))
    x = np.random.default_rng(0).standard_normal((3, 12, 10, 3)).astype(np.float32)
    found = interpret(graph, {graph.inputs[0]: x})[graph.outputs[0]]
    wanted = model(x).detach().cpu().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert graph.batch is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_keras_with_two_inputs(keras, tmp_path):
    layers = keras.layers
    a, b = keras.Input((4,)), keras.Input((6,))
    both = layers.Concatenate()([layers.Dense(5, "relu")(a), layers.Dense(5, "tanh")(b)])
    model = keras.Model([a, b], layers.Dense(2)(both))
    path = tmp_path / "model.keras"
    model.save(path)
    graph = prepare(frontends.from_keras(path))
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((3, size)).astype(np.float32) for size in (4, 6)]
    found = interpret(graph, dict(zip(graph.inputs, inputs, strict=True)))[graph.outputs[0]]
    np.testing.assert_allclose(found, model(inputs).detach().cpu().numpy(), rtol=1e-4, atol=1e-5)
    assert graph.batch is None


def test_damaged_keras_files(keras, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError):
        frontends.from_keras(path)


def two_layers(keras):
    layers = keras.layers
    named = [layers.Dense(3, name="first"), layers.Dense(2, name="second")]
    return keras.Sequential([keras.Input((4,)), *named])


def with_config(keras, path, change):
    """The file of two layers, the second of them changed."""
    two_layers(keras).save(path)
    if path.suffix == ".h5":
        h5py = importlib.import_module("h5py")
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config["config"]["layers"][2])
            file.attrs["model_config"] = json.dumps(config)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config["config"]["layers"][2])
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


FAULTS = {
    "option": (lambda layer: layer["config"].update(sparsity=3), "sparsity"),
    "activation": (lambda layer: layer["config"].update(activation="swirl"), "swirl"),
    "class": (lambda layer: layer.update(class_name="Dance"), "class"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_keras_layer_of_unknown_configuration_is_named(keras, tmp_path, suffix, fault):
    path = tmp_path / f"model{suffix}"
    change, said = FAULTS[fault]
    with_config(keras, path, change)
    with pytest.raises(
        UnsupportedError, match=rf"model{suffix}: layer 'second' \(.*{said}"
    ) as error:
        frontends.from_keras(path)
    assert "\n" not in str(error.value)
    assert "'first'" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_keras_layer_of_ones_own_is_named_in_a_model_in_a_model(keras, tmp_path):
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    inner = keras.Sequential([keras.Input((4,)), Doubled(name="deep")], name="inner")
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4,)), inner]).save(path)
    with pytest.raises(UnsupportedError, match=r"layer 'deep' \(Doubled\): .*replace the layer"):
        frontends.from_keras(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_keras_inputs_keep_their_types(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(7, 3)])
    graph = prepare(frontends.from_keras(model))
    assert graph.types[graph.inputs[0]].dtype == np.int32
    x = np.array([[0, 6, 1, 2, 3]], np.int32)
    (found,) = interpret(graph, {graph.inputs[0]: x}).values()
    np.testing.assert_array_equal(found[0], model.get_weights()[0][x[0]])


@pytest.mark.parametrize("name", ["model.onnx", "missing.keras"])
def test_other_files_are_refused_before_keras_is_imported(monkeypatch, tmp_path, name):
    monkeypatch.setattr(importlib, "import_module", None)
    with pytest.raises(ModelError, match=name):
        frontends.from_keras(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt", "model.PT2", "state.pth"])
def test_a_file_of_pytorch_is_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(UnsupportedError, match=rf"{name}: is a PyTorch file.*torch\.onnx\.export"):
        load(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_keras_model_in_memory_is_taken_and_anything_else_is_named(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = np.ones((2, 4), np.float32)
    graph = prepare(frontends.from_keras(model))
    (found,) = interpret(graph, {graph.inputs[0]: x}).values()
    weights, bias = model.get_weights()
    np.testing.assert_allclose(found, x @ weights + bias, rtol=1e-5)
    for other in (3, None, object()):
        with pytest.raises(UnsupportedError, match="takes a Keras model or its file"):
            frontends.from_keras(other)
