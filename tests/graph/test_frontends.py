"""Models straight from PyTorch and Keras."""

import importlib
import sys

import numpy as np
import pytest

from cloister.errors import ModelError, UnsupportedError
from cloister.graph import frontends
from cloister.graph.interpreter import interpret
from cloister.graph.passes import prepare


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


def test_damaged_keras_files(keras, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError):
        frontends.from_keras(path)


@pytest.mark.parametrize("name", ["model.onnx", "missing.keras"])
def test_other_files_are_refused_before_keras_is_imported(monkeypatch, tmp_path, name):
    monkeypatch.setattr(importlib, "import_module", None)
    with pytest.raises(ModelError, match=name):
        frontends.from_keras(tmp_path / name)
