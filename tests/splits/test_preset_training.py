"""Training of presets: it learns, it is reproducible, and the answer is the graph itself."""

from functools import cache

import numpy as np
import pytest

from cloister.graph.interpreter import interpret
from cloister.splits.net_builder import NetBuilder
from cloister.splits.preset_data import PresetData, PresetSamples
from cloister.splits.presets import Recipe

training = pytest.importorskip("cloister.splits.preset_training")


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower with more."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(classes):
    """Every operator of the presets, small."""
    net = NetBuilder("small", "words", (12,), np.int32)
    x = net.dropout(net.embedding("words", 30, 8), 0.1)
    x = net.max_pool(net.separable(x, 6), 2)
    x = net.relu(net.dense(net.dropout(net.flatten(x), 0.2), 36, 16))
    logits = net.dense(x, 16, classes)
    last = net.softmax(logits) if classes > 1 else net.sigmoid(logits)
    return net.network(last, logits=logits)


def samples(count, seed, classes):
    """The class is the first word's remainder."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 30, (count, 12)).astype(np.int32)
    return PresetSamples(x, (x[:, 0] % classes).astype(np.int64))


@cache
def run(classes):
    data = PresetData(samples(600, 0, classes), samples(200, 1, classes))
    net, seen = network(1 if classes == 2 else classes), []
    recipe = Recipe("words", epochs=12, batch=50, rate=1e-2)
    graph = training.train(net, data, recipe, lambda *at: seen.append(at))
    return net, data, graph, seen


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns(classes):
    net, data, graph, seen = run(classes)
    assert seen[-1] == ("training", 144, 144)
    before = training.accuracy(net, net.graph, data.test, lambda *_: None)
    after = training.accuracy(net, graph, data.test, lambda *_: None)
    assert before < 0.7 < 0.9 < after
    # The graph alone, as others run it, gives the same classes.
    (found,) = interpret(graph, {"words": data.test.x}).values()
    classes_found = found.argmax(1) if found.shape[1] > 1 else found[:, 0] > 0.5
    assert (classes_found == data.test.y).mean() == pytest.approx(after)


def test_it_is_reproducible():
    (*_, first, _), (*_, second, _) = run(2), run.__wrapped__(2)
    for name, array in first.constants.items():
        np.testing.assert_array_equal(array, second.constants[name])


def test_the_untrained_graph_is_not_written_to():
    net, _, graph, _ = run(2)
    fresh = network(1).graph
    for name, array in net.graph.constants.items():
        np.testing.assert_array_equal(array, fresh.constants[name])
        assert array.shape == graph.constants[name].shape
