"""The presets: the shapes of eNNclave's authors, and the same answers as Keras gives."""

import numpy as np
import pytest

from cloister.errors import InputError
from cloister.graph.hidden import layers
from cloister.graph.interpreter import interpret
from cloister.graph.onnx import frontends
from cloister.graph.passes.normalise import prepare
from cloister.splits.presets import NAMES, PRESETS, preset
from splits import keras_presets

# Parameters and layers with weights, worked out by hand from the authors' scripts.
SHAPES = {
    "mnist": (320 + 18_496 + 12_544 * 128 + 128 + 1_290, 4),
    "imdb": (20_000 * 64 + 64 + 65, 2),
    "rotten": (
        4_000_000 + 600 + 12_864 + 192 + 4_160 + 192 + 8_320 + 384 + 16_512 + 129, 10,
    ),
    "amazon": (
        640_000 + 96 + 2_112 + 192 + 8_320 + 384 + 33_024 + 768 + 65_792
        + 7_936 * 600 + 600 + 90_150 + 22_650 + 151, 13,
    ),
    "mit": (14_714_688 + 512 * 2048 + 2048 + 2048 * 2049 + 2048 * 67 + 67, 16),
    "flowers": (20_024_384 + 25_088 * 800 + 800 + 800 * 801 + 800 * 600 + 600 + 3_005, 20),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name):
    network = preset(name).build()
    parameters, deep = SHAPES[name]
    assert sum(array.size for array in network.graph.constants.values()) == parameters
    assert len(layers(prepare(network.graph))) == deep
    assert network.logits in {node.outputs[0] for node in network.graph.nodes}
    assert set(network.dropouts) <= {*network.graph.types}


def test_the_first_three_are_trained():
    assert [name for name, one in PRESETS.items() if one.recipe] == ["mnist", "imdb", "rotten"]


def test_another_name():
    with pytest.raises(InputError, match="choose mnist, imdb, rotten, amazon, mit, flowers"):
        preset("cifar")


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    return pytest.importorskip("keras")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["mnist", "imdb", "rotten", "amazon"])
def test_keras_files_of_the_presets_give_the_same_answers(keras, tmp_path, name, suffix):
    own = preset(name).build().graph
    model = keras_presets.build(keras, name)
    keras_presets.copy_weights(own, model)
    path = tmp_path / f"{name}{suffix}"
    model.save(path)
    graph = prepare(frontends.from_keras(path))
    assert len(layers(graph)) == len(layers(prepare(own)))
    x, for_keras = keras_presets.inputs(own, 3, seed=1)
    (wanted,) = interpret(own, {own.inputs[0]: x}).values()
    (found,) = interpret(graph, {graph.inputs[0]: for_keras}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
