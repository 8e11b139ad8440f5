"""Models straight from PyTorch and Keras."""

import importlib
import json
import sys
import zipfile

import numpy as np
import pytest

from cloister.errors import InputError, ModelError, TracingWarning, UnsupportedError
from cloister.graph.interpreter import interpret
from cloister.graph.onnx import frontends
from cloister.graph.onnx.load import from_keras, from_torch, load
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


def two_parts(torch):
    class TwoParts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x, scale=None, *, parts=None):
            x = self.layer(x if scale is None else x * scale)
            return x if parts is None else x + parts["a"] + parts["b"][0]

    torch.manual_seed(0)
    return TwoParts()


EXAMPLES = {
    "one": (lambda x, y: x, ["input"]),
    "an array": (lambda x, y: x.numpy(), ["input"]),
    "two": (lambda x, y: (x, 2 * x), ["input_0", "input_1"]),
    "one and nothing": (lambda x, y: (x, None), ["input_0"]),
    "by keyword": (lambda x, y: {"scale": 2 * x, "x": x}, ["scale", "x"]),
    "nested": (
        lambda x, y: {"x": x, "parts": {"a": y, "b": [2 * y]}},
        ["x", "parts_a", "parts_b_0"],
    ),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_pytorch_inputs_of_any_form(kind):
    torch = pytest.importorskip("torch")
    module, (example, names) = two_parts(torch), EXAMPLES[kind]
    given = example(torch.randn(2, 3), torch.randn(2, 2))
    graph = from_torch(module, given)
    assert list(graph.inputs) == names
    assert module.training
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    given = example(x, y)
    keywords = given if isinstance(given, dict) else {}
    places = () if keywords else given if isinstance(given, tuple) else (given,)
    wanted = module(*map(as_tensor, places), **keywords).detach().numpy()
    arrays = {"x": x, "y": y, "scale": 2 * x, "input": x, "input_0": x, "input_1": 2 * x,
              "parts_a": y, "parts_b_0": 2 * y}  # fmt: skip
    feeds = {name: arrays[name].numpy() for name in names}
    with Session(policies.slalom(graph, calibration=feeds)) as session:
        (found,) = session.run(feeds).outputs.values()
    np.testing.assert_allclose(found, wanted, atol=0.02)


def as_tensor(value):
    torch = pytest.importorskip("torch")
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def test_an_example_without_a_tensor_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="no tensor"):
        from_torch(two_parts(torch), (3, None))


def test_a_decision_of_a_pytorch_module_is_named():
    torch = pytest.importorskip("torch")

    class Branches(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                x = 2 * x
            return x[: int(x.max())]

    with pytest.warns(
        TracingWarning, match=r"Branches: .*test_frontends\.py:\d+ and 1 more"
    ) as noted:
        from_torch(Branches(), torch.ones(1, 3))
    assert noted[0].filename == __file__
    assert len(noted) == 1


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


STRUCTURES = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "mapping": lambda a, b: {"b": b, "a": a},
    "nested": lambda a, b: [b, [a]],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("saved", [False, True])
def test_keras_inputs_of_any_form(keras, tmp_path, kind, saved):
    layers, form = keras.layers, STRUCTURES[kind]
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    both = layers.Concatenate()([layers.Dense(5, "relu")(a), layers.Dense(5, "tanh")(b)])
    model = keras.Model(form(a, b), layers.Dense(2)(both))
    path = tmp_path / "model.keras"
    model.save(path)
    graph = from_keras(path if saved else model)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((3, size)).astype(np.float32) for size in (4, 6))
    wanted = model(form(x, y)).detach().cpu().numpy()
    with Session(policies.slalom(graph, calibration={"a": x, "b": y})) as session:
        (found,) = session.run({"a": x, "b": y}).outputs.values()
    np.testing.assert_allclose(found, wanted, atol=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_keras_model_that_states_no_inputs_takes_an_example(keras):
    class Subclass(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(3)

        def call(self, inputs):
            return self.layer(inputs["x"]) + inputs["y"]

    model = Subclass()
    with pytest.raises(UnsupportedError, match=r"from_keras\(model, example\)"):
        from_keras(model)
    x, y = np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)
    graph = from_keras(model, ({"x": x, "y": y},))
    wanted = model({"x": x, "y": y}).detach().cpu().numpy()
    (found,) = interpret(graph, dict(zip(graph.inputs, (x, y), strict=True))).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    with pytest.raises(UnsupportedError, match="does not take the example"):
        from_keras(model, x)
    sequential = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(UnsupportedError, match="does not state its inputs"):
        from_keras(sequential)
    assert from_keras(sequential, x).sizes("input") == ("batch", 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_free_sizes_of_a_keras_model_take_numbers(keras, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((None, 4), name="x"), layers.Conv1D(3, 3, padding="same")]
    )
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(UnsupportedError, match=r'--dim "x\[1\]=SIZE"'):
        load(path)
    with pytest.raises(InputError, match="no_size"):
        load(path, dims={"no_size": 3})
    graph = load(path, dims={"x[1]": 7, "batch": 2})
    x = np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)
    assert graph.sizes("x") == (2, 7, 4)
    (found,) = interpret(graph, {"x": x}).values()
    np.testing.assert_allclose(found, model(x).detach().cpu().numpy(), rtol=1e-4, atol=1e-5)


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
