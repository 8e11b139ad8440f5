import numpy as np
import onnxruntime as ort
import pytest

import nets
from cloister.errors import PlanError, PrecisionWarning
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.quantised import Precision
from cloister.trusted.compare import compare
from cloister.trusted.session import Session
from trusted.links import DirectLink


def plan_of(model, precision=None, policy="slalom", count=6):
    graph = normalise.prepare(read.from_model(model, name="net"))
    calibration = nets.samples(model, count)
    return policies.make(policy, graph, calibration=calibration, precision=precision)


@pytest.mark.parametrize("net", nets.ALL)
def test_the_same_numbers_as_a_session(net):
    model = nets.ALL[net]()
    plan, feeds = plan_of(model), nets.samples(model, 11, seed=1)
    for factor in (1, 10):
        scaled = {name: np.float32(factor) * value for name, value in feeds.items()}
        found = compare(plan, scaled)
        with Session(plan, workers=[DirectLink()], on_clip="ignore") as session:
            result = session.run(scaled)
        for name, value in result.outputs.items():
            np.testing.assert_array_equal(found.outputs[name], value)
        rows = {row.name: row for row in result.report.layers}
        assert result.report.clipped > 0 or factor == 1
        for layer in found.layers:
            row = rows[layer.node]
            assert (layer.clipped, layer.activations) == (row.clipped, row.quantised)


def test_end_result_and_layers():
    model = nets.chain()
    plan, feeds = plan_of(model), nets.samples(model, 11, seed=1)
    updates = []
    found = compare(plan, feeds, progress=lambda *update: updates.append(update))
    assert updates == [(8, 11), (11, 11)]
    session = ort.InferenceSession(model.SerializeToString())
    (exact,) = session.run(None, feeds)
    (got,) = found.outputs.values()
    assert found.inputs == 11
    assert found.max_difference == pytest.approx(np.abs(exact - got).max(), rel=1e-4)
    assert found.top1_agreement == np.mean(exact.argmax(axis=1) == got.argmax(axis=1))
    assert [layer.node for layer in found.layers] == [node.node for node in plan.linear_nodes]
    last = found.layers[-1]
    assert last.max_error == pytest.approx(found.max_difference)
    assert last.relative_error == pytest.approx(
        np.linalg.norm(exact - got) / np.linalg.norm(exact), rel=1e-3
    )
    assert found.layers[0].activations == feeds["image"].size


def test_clips_are_counted():
    model = nets.chain()
    graph = normalise.prepare(read.from_model(model, name="net"))
    feeds = nets.samples(model, 4)
    image = feeds["image"]
    half = {"image": np.clip(image, -0.5, 0.5).astype(np.float32)}
    layer = compare(policies.slalom(graph, calibration=half), feeds).layers[0]
    step = 0.5 / 2047
    assert layer.clipped == np.count_nonzero(np.abs(image) > 0.5 + step / 2)


def test_bits_matter():
    model = nets.residual()
    feeds = nets.samples(model, 4)
    with pytest.warns(PrecisionWarning):
        coarse = compare(plan_of(model, Precision(6, 6)), feeds).layers
    fine = compare(plan_of(model), feeds).layers
    for a, b in zip(coarse, fine, strict=True):
        assert a.relative_error > 5 * b.relative_error
        assert a.activation_bits == 6
        assert b.activation_bits == 12


@pytest.mark.parametrize("policy", ["enclave", "open"])
def test_plans_without_fixed_point(policy):
    model = nets.chain()
    with pytest.raises(PlanError, match="nothing to compare"):
        compare(plan_of(model, policy=policy), nets.samples(model, 1))
