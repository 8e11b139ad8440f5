"""Raw input channels of different scale are as accurate as others, whatever reads them."""

import numpy as np
import onnxruntime as ort
import pytest

import unequal
from cloister.errors import ClipWarning, PrecisionWarning
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.quantised import WRAP_LIMIT, static_bound
from cloister.trusted.compare import compare
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Fused
from cloister.trusted.session import Session
from cloister.wire.shm.shm_link import start_local_worker
from trusted.links import DirectLink

POLICIES = ("slalom", "verified", "blinded")
LIMIT = 0.01


@pytest.fixture(scope="module")
def worker():
    link = start_local_worker()
    yield link
    link.close()


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


def exact_of(model, feeds):
    session = ort.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def error(found, exact):
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", unequal.ALL)
def test_outputs_are_those_of_float32(net, policy):
    model = unequal.ALL[net]()
    plan = policies.make(policy, graph_of(model), calibration=unequal.samples(model, 16))
    assert any(node.x_factors is not None for node in plan.linear_nodes)
    assert all(static_bound(node) == node.bound < WRAP_LIMIT for node in plan.linear_nodes)
    feeds = unequal.samples(model, 16)
    with Session(plan, workers=[DirectLink()]) as session:
        outputs = session.run(feeds).outputs
    for name, exact in exact_of(model, feeds).items():
        assert error(outputs[name], exact) < LIMIT, name
    simulated = compare(plan, feeds).outputs
    for name, value in outputs.items():
        np.testing.assert_array_equal(simulated[name], value)


@pytest.mark.parametrize("net", sorted(set(unequal.ALL) - {"several"}))
def test_one_scale_for_all_channels_loses_the_small_ones_and_says_so(net):
    model = unequal.ALL[net]()
    samples = unequal.samples(model, 16)
    with pytest.warns(PrecisionWarning, match="relative L2 error, bound 0.02"):
        policies.make("slalom", graph_of(model), calibration=samples, by_channel=False)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", unequal.ALL)
def test_every_link_gives_the_same_bits(worker, net, policy):
    model = unequal.ALL[net]()
    plan = policies.make(policy, graph_of(model), calibration=unequal.samples(model, 16))
    shared = Session(plan, workers=[worker], on_clip="ignore")
    for count in (1, 3, 3):
        feeds = unequal.samples(model, count, seed=count)
        with Session(plan, workers=[DirectLink()], on_clip="ignore") as session:
            direct = session.run(feeds)
        result = shared.run(feeds)
        for name, value in direct.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], value)
    shared._executor.forget(worker)


def test_the_ranges_of_a_stored_plan_make_the_same_plan(tmp_path):
    model = unequal.table()
    plan = policies.make("slalom", graph_of(model), calibration=unequal.samples(model, 16))
    plan.save(tmp_path / "a.plan")
    stored = Plan.load(tmp_path / "a.plan")
    assert stored.ranges == plan.ranges
    assert max(map(len, stored.ranges.values())) > 1
    again = policies.from_ranges("slalom", graph_of(model), ranges=stored.ranges)
    assert again.digest == plan.digest


def test_factors_belong_to_the_plan():
    model = unequal.table()
    graph, samples = graph_of(model), unequal.samples(model, 16)
    other = {"x": samples["x"] * np.array([64, 1, 1, 1], np.float32)}
    made = [policies.make("slalom", graph, calibration=one) for one in (samples, other)]
    assert made[0].digest != made[1].digest
    # The worker's integers are all that differs for it, and they say which channel grew.
    first = [plan.linear_nodes[0].linear.weights for plan in made]
    assert (first[0] != first[1]).any()


def test_only_nodes_that_read_raw_inputs_have_factors():
    model = unequal.table()
    plan = policies.make("slalom", graph_of(model), calibration=unequal.samples(model, 16))
    assert [node.x_factors is not None for node in plan.linear_nodes] == [True, False]
    fused = [step for step in compile_plan(plan).steps if isinstance(step, Fused)]
    assert [step.factors is not None for step in fused] == [True, False, False]


def test_equal_channels_need_no_factors():
    model = unequal.image()
    plain = {"x": unequal.samples(model, 16)["x"] / unequal.SCALES.reshape(4, 1, 1)}
    plan = policies.make("slalom", graph_of(model), calibration=plain)
    assert all(node.x_factors is None for node in plan.linear_nodes)


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_a_column_that_calibration_does_not_show_is_not_lost(value):
    """Column 0 is constant in calibration; later it is as large as the weights expect."""
    model = unequal.table()
    samples, feeds = unequal.samples(model, 16), unequal.samples(model, 16, seed=1)
    samples["x"][:, 0] = value
    plan = policies.make("slalom", graph_of(model), calibration=samples)
    first = compare(plan, feeds).layers[0]
    assert first.clipped == 0
    assert first.relative_error < LIMIT


def test_inputs_far_beyond_the_range_overflow_nothing():
    model = unequal.table()
    plan = policies.make("slalom", graph_of(model), calibration=unequal.samples(model, 16))
    top = np.finfo(np.float32).max
    feeds = {"x": np.full((2, 4), [[top], [-top]], np.float32)}
    with (
        Session(plan, workers=[DirectLink()]) as session,
        pytest.warns(ClipWarning, match="2 of 2 inputs"),
    ):
        outputs = session.run(feeds).outputs
    assert all(np.isfinite(value).all() for value in outputs.values())


def test_claims_tell_that_calibration_shows_in_the_weights():
    model = unequal.table()
    graph, samples = graph_of(model), unequal.samples(model, 16)
    told = "in the calibration samples, by which the weights of 1 of these layers are divided"
    plan = policies.make("slalom", graph, calibration=samples)
    assert told in str(plan.claims())
    plain = {"x": samples["x"] / unequal.SCALES}
    plan = policies.make("slalom", graph, calibration=plain)
    assert "calibration" not in str(plan.claims())
