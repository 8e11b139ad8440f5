import numpy as np
import pytest

import nets
import unequal
from cloister.errors import PlanError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import input_factors as module
from cloister.plan.input_factors import (
    HEADROOM,
    divisors,
    input_factors,
    reads_raw,
)
from cloister.plan.quantise import calibrate, quantise_node
from cloister.plan.quantised import Precision, factor_shape, multiplied
from cloister.ring.linear import Geometry

QMAX = 2047


def dense(channels, outputs):
    return Geometry((1, 1), channels, (1, 1), outputs)


def factors_of(weights, ranges):
    shape = dense(weights.shape[1], weights.shape[0])
    found = input_factors(
        weights.astype(np.float32).reshape(shape.weight_shape),
        shape,
        np.asarray(ranges, np.float64).reshape(1, 1, -1),
    )
    return None if found is None else found.reshape(-1)


@pytest.mark.parametrize("seed", range(20))
def test_steps_and_clips_are_bounded_by_the_largest_part_of_an_output(seed):
    rng = np.random.default_rng(seed)
    channels, outputs = rng.integers(2, 12, 2)
    ranges = 10.0 ** rng.uniform(-6, 6, channels)
    weights = rng.standard_normal((outputs, channels)) * 10.0 ** rng.uniform(-6, 6, channels)
    weights = weights.astype(np.float32).astype(np.float64)
    found = factors_of(weights, ranges)
    factors = np.ones(channels) if found is None else found.astype(np.float64)
    assert (np.log2(factors) == np.rint(np.log2(factors))).all()
    assert factors.min() == 1
    part = np.abs(weights) * ranges
    largest = part.max(axis=1, keepdims=True)
    step = ranges.max() / factors / QMAX
    assert (np.abs(weights) * step <= 2 * HEADROOM / QMAX * largest * (1 + 1e-9)).all()
    # Nothing is clipped within HEADROOM times its calibrated range, the largest channel excepted.
    scaled = factors > 1
    assert (HEADROOM * ranges * factors <= ranges.max() * (1 + 1e-9))[scaled].all()


def test_both_factors_are_exact():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50, 1, 1, 4)) * unequal.SCALES).astype(np.float32)
    weights = (rng.standard_normal((6, 1, 1, 4)) / unequal.SCALES).astype(np.float32)
    shape = dense(4, 6)
    ranges = np.abs(x).max(axis=(0, 1, 2), keepdims=True)[0]
    factors = input_factors(weights, shape, ranges)
    assert factors is not None
    assert factors.max() > 2**20
    divided = (weights / divisors(factors, shape, slice(None))).astype(np.float32)
    scaled = multiplied(x, factors)
    for o in range(6):
        np.testing.assert_array_equal(scaled * divided[o], x * weights[o])


@pytest.mark.parametrize("ranges", [[1, 1, 1], [1, 0.13, 1], [0, 0, 0], [5, 0.01, 0]])
def test_weights_that_do_not_make_up_for_the_ranges_need_no_factors(ranges):
    weights = np.ones((4, 3))
    assert factors_of(weights, ranges) is None


def test_a_channel_that_was_always_zero_counts_against_the_largest_part_of_all_outputs():
    weights = np.array([[1.0, 1e-5], [1.0, 1e-9]])
    assert factors_of(weights, [0, 1e5]).tolist() == [2.0**14, 1]
    # No output shows anything: nothing is known.
    assert factors_of(np.array([[1.0, 0.0]]), [0, 1e5]) is None


def test_factors_stay_ordinary_numbers():
    found = factors_of(np.array([[1e30, 1e-30]]), [1e-30, 1e30])
    assert found.tolist() == [2.0**126, 1]
    with np.errstate(all="raise"):
        wide = multiplied(np.full((1, 1, 1, 2), 1e30, np.float32), found.reshape(1, 1, 2))
    assert wide.ravel().tolist() == [np.inf, np.float32(1e30)]


def test_one_part_at_a_time_gives_the_same(monkeypatch):
    graph = normalise.prepare(read.from_model(unequal.grouped(), name="net"))
    (node,) = graph.nodes
    samples = unequal.samples(unequal.grouped(), 8)
    ranges = calibrate(graph, [node], samples, by_channel=frozenset({node.name}))[node.name]
    whole = quantise_node(graph, node, ranges=ranges, precision=Precision())
    monkeypatch.setattr(module, "PART_ELEMENTS", 1)
    parts = quantise_node(graph, node, ranges=ranges, precision=Precision())
    np.testing.assert_array_equal(parts.x_factors, whole.x_factors)
    with pytest.raises(PlanError, match="3 ranges for 4 input channels"):
        quantise_node(graph, node, ranges=ranges[:3], precision=Precision())


def test_an_element_has_its_own_factor_where_one_window_covers_the_image():
    assert factor_shape(Geometry((3, 2), 4, (1, 1), 5, kernel=(3, 2))) == (3, 2, 4)
    assert factor_shape(Geometry((3, 2), 4, (1, 1), 5, kernel=(3, 2), stride=(2, 2))) == (3, 2, 4)
    for other in (
        Geometry((3, 2), 4, (2, 1), 5, kernel=(2, 2)),
        Geometry((3, 2), 4, (1, 1), 5, kernel=(3, 2), pad=(1, 0)),
        Geometry((1, 6), 4, (1, 6), 5),
    ):
        assert factor_shape(other) == (1, 1, 4)


def test_raw_means_without_a_layer_on_the_worker_before():
    graph = normalise.prepare(read.from_model(nets.residual(), name="net"))
    sent = frozenset(node.name for node in graph.nodes if node.op in ("Conv", "Gemm"))
    linear = [node for node in graph.nodes if node.name in sent]
    assert [reads_raw(graph, node, sent) for node in linear] == [True] + [False] * 6
    assert all(reads_raw(graph, node, frozenset()) for node in linear)


def test_calibration_by_channel():
    model = unequal.several()
    graph = normalise.prepare(read.from_model(model, name="net"))
    nodes = [node for node in graph.nodes if node.op == "Conv"]
    samples = unequal.samples(model, 11)
    found = calibrate(graph, nodes, samples, by_channel=frozenset({nodes[0].name}))
    peaks = np.abs(samples["x"]).max(axis=(0, 2, 3))
    assert found[nodes[0].name] == tuple(peaks.tolist())
    assert found[nodes[1].name] == (float(peaks.max()),)
