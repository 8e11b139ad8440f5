import json

import numpy as np
import onnxruntime
import pytest

from cloister.cli.bench.layers import VGG16, Layer, bench_layers, float_input, float_model
from cloister.errors import InputError
from cloister.ring.linear import LinearMap
from cloister.ring.ring_map import RingMap

SMALL = (Layer("conv", 5, 3, 4), Layer("dense", 1, 12, 7))


def test_rows_and_totals_agree():
    found = bench_layers(threads=1, repeats=3, layers=SMALL)
    assert json.loads(json.dumps(found)) == found
    assert [row["layer"] for row in found["layers"]] == ["conv", "dense"]
    for key in ("ort_ms", "ring_ms", "plain_ms"):
        assert found[key] == pytest.approx(sum(row[key] for row in found["layers"]))
    assert found["ratio"] == pytest.approx(found["ring_ms"] / found["ort_ms"])


@pytest.mark.parametrize("layer", SMALL, ids=["conv", "dense"])
def test_both_sides_compute_the_same_layer(layer):
    rng = np.random.default_rng(1)
    weights = rng.integers(-100, 100, layer.geometry.weight_shape).astype(np.int16)
    x = rng.integers(-100, 100, (1, *layer.geometry.in_shape)).astype(np.int16)
    model = float_model(layer, weights).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": float_input(layer, x)})[0]  # exact: all sums are below 2^24
    expected = RingMap(LinearMap(layer.geometry, weights)).apply(x).view(np.int32)
    channels_last = y[:, None, None, :] if layer.size == 1 else y.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(channels_last, expected)


def test_the_layers_are_those_of_vgg16():
    assert sum(layer.geometry.macs for layer in VGG16) == 15_470_264_320
    assert len(VGG16) == 16


def test_refuses_an_empty_measurement():
    with pytest.raises(InputError, match="at least 1"):
        bench_layers(repeats=0, layers=SMALL)
