"""Inputs outside the calibrated range: what a session says, and that no worker can tell."""

import warnings
from importlib.resources import files

import numpy as np
import onnxruntime as ort
import pytest

import cloister
import cloister.base._native as native
import nets
from cloister.errors import ClipError, ClipWarning, PlanError, RangeError
from cloister.trusted.clips import LEAST, ClipRule
from cloister.trusted.session import Session
from cloister.trusted.step_costs import StepCosts, StepTable
from trusted.links import DirectLink, DyingLink
from trusted.test_session import POLICIES, plan_of


def times(feeds, factor):
    return {name: np.float32(factor) * value for name, value in feeds.items()}


def run(plan, feeds, **options):
    with Session(plan, workers=[DirectLink()], **options) as session:
        return session.run(feeds)


# ---- the rule


def judged(plan, changes):
    """Rows, and the inputs beyond the range, of three inputs; `changes`: (layer, input), count."""
    clipped = np.zeros((len(plan.linear_nodes), 3), np.uint64)
    for at, count in changes.items():
        clipped[at] = count
    elements = {node.node: node.linear.geometry.in_elements for node in plan.linear_nodes}
    count = len(elements)
    table = StepTable(tuple(elements), ("slalom",) * count, (None,) * count, elements)
    times, traffic = np.zeros((count, 3), np.int64), np.zeros((count, 2), np.int64)
    costs = StepCosts(table, times, traffic, count, clipped=clipped)
    rows = {row.name: row for row in costs}
    return rows, ClipRule(plan).beyond(clipped)


@pytest.mark.parametrize("limits", [0, 2, 4])
def test_counts_without_limits_are_refused(limits):
    with pytest.raises(ValueError, match="every node needs a limit"):
        native.reaches(np.zeros((3, 1), np.uint64), np.ones(limits, np.uint64))


def test_more_than_a_hundredth_of_one_inputs_values_is_beyond_the_range():
    plan = plan_of(nets.chain())
    sizes = [node.linear.geometry.in_elements for node in plan.linear_nodes]
    assert sizes == [390, 280, 136]
    assert judged(plan, {(0, 1): 3})[1] == ()
    assert judged(plan, {(0, 1): 4})[1] == (1,)
    # A small layer that does not read the inputs may clip a few.
    assert judged(plan, {(1, 0): LEAST - 1, (2, 2): LEAST - 1})[1] == ()
    assert judged(plan, {(1, 0): LEAST, (2, 2): LEAST})[1] == (0, 2)


def test_a_layer_that_reads_the_inputs_may_not_clip_one_of_a_few():
    net = nets.Net()
    hidden = net.op("Relu", net.gemm(net.op("Flatten", net.input("table", 13)), 13, 7))
    plan = plan_of(net.model(net.gemm(hidden, 7, 2)))
    assert judged(plan, {(0, 1): 1})[1] == (1,)
    assert judged(plan, {(1, 1): LEAST - 1})[1] == ()


def test_rows_have_sums_and_the_worst_share():
    plan = plan_of(nets.chain())
    rows, _ = judged(plan, {(0, 0): 5, (0, 2): 39})
    row = rows[plan.linear_nodes[0].node]
    assert (row.clipped, row.quantised, row.clipped_share) == (44, 3 * 390, 0.1)


# ---- what a session says


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_counts_what_lies_beyond_the_range(policy):
    model = nets.chain()
    plan = plan_of(model, policy)
    feeds = times(nets.samples(model, 5), 3)
    node = plan.linear_nodes[0]
    with pytest.warns(ClipWarning) as caught:
        report = run(plan, feeds, batch=2).report
    row = next(row for row in report.layers if row.name == node.node)
    limit = (node.x_qmax + 0.5) * node.x_scale
    assert row.clipped == np.count_nonzero(np.abs(feeds["image"]) > limit) > 0
    assert row.quantised == feeds["image"].size
    assert report.inputs_beyond == (0, 1, 2, 3, 4)
    document = report.to_dict()
    assert document["clipped"] == report.clipped == sum(row.clipped for row in report.layers)
    assert document["quantised"] == report.quantised
    assert document["layers"][1]["clipped"] == report.layers[1].clipped
    (warning,) = caught
    assert warning.filename == __file__
    for text in ("5 of 5 inputs (the first: 0)", f"% in layer {node.node!r}", "calibrate"):
        assert text in str(warning.message)


def test_plans_without_integers_clip_nothing():
    model = nets.chain()
    with Session(plan_of(model, "enclave"), on_clip="raise") as session:
        report = session.run(times(nets.samples(model, 2), 100)).report
    assert (report.clipped, report.quantised, report.inputs_beyond) == (0, 0, ())


def test_the_input_that_lies_beyond_the_range_is_named():
    model = nets.chain()
    feeds = nets.samples(model, 5)
    feeds["image"][3] *= np.float32(3)
    with pytest.warns(ClipWarning, match=r"^input 3 lies outside the calibrated range"):
        assert run(plan_of(model), feeds, batch=2).report.inputs_beyond == (3,)


def test_the_caller_chooses():
    model = nets.chain()
    plan, feeds = plan_of(model), nets.samples(model, 3)
    far = times(feeds, 3)
    with pytest.warns(ClipWarning):
        warned = run(plan, far)
    ignored = run(plan, far, on_clip="ignore")
    for name, value in warned.outputs.items():
        np.testing.assert_array_equal(ignored.outputs[name], value)
    assert ignored.report.inputs_beyond == warned.report.inputs_beyond == (0, 1, 2)
    with Session(plan, workers=[DirectLink()], on_clip="raise") as session:
        with pytest.raises(ClipError, match="nothing was released") as refusal:
            session.run(far)
        assert isinstance(refusal.value, RangeError)
        assert session.run(feeds).report.inputs_beyond == ()
    with pytest.raises(PlanError, match="on_clip= takes warn, raise, ignore"):
        Session(plan, workers=[DirectLink()], on_clip="loud")


def test_a_refusal_keeps_no_outputs():
    model = nets.chain()
    session = Session(plan_of(model), workers=[DirectLink()], on_clip="raise")
    with session, pytest.raises(ClipError) as refusal:
        session.run(times(nets.samples(model, 3), 3))
    trace = refusal.value.__traceback__
    while trace is not None:
        assert "result" not in trace.tb_frame.f_locals
        trace = trace.tb_next


def test_a_micro_batch_that_is_repeated_is_counted_once():
    model = nets.chain()
    plan, feeds = plan_of(model), times(nets.samples(model, 5), 3)
    expected = run(plan, feeds, batch=2, on_clip="ignore").report
    workers = [DyingLink("frail", fatal=5), DirectLink("sound")]
    with Session(plan, workers=workers, lanes=1, batch=2, on_clip="ignore") as session:
        report = session.run(feeds).report
    assert report.workers_lost == ("frail",)
    assert [row.clipped for row in report.layers] == [row.clipped for row in expected.layers]
    assert report.inputs_beyond == expected.inputs_beyond


@pytest.mark.parametrize("options", [{"lanes": 3}, {"lanes": 2}, {"threads": 3}])
def test_lanes_and_threads_count_the_same(options):
    model = nets.residual()
    plan, feeds = plan_of(model), nets.samples(model, 7)
    feeds["image"][2::3] *= np.float32(4)
    expected = run(plan, feeds, on_clip="ignore").report
    workers = [DirectLink(f"worker {i}") for i in range(options.get("lanes", 1))]
    with Session(plan, workers=workers, batch=2, on_clip="ignore", **options) as session:
        report = session.run(feeds).report
    counts = {row.name: (row.clipped, row.quantised) for row in expected.layers}
    assert {row.name: (row.clipped, row.quantised) for row in report.layers} == counts
    assert report.inputs_beyond == expected.inputs_beyond == (2, 5)


# ---- what a worker can tell


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", nets.ALL)
def test_what_is_sent_does_not_depend_on_what_clips(net, policy):
    """The same messages in the same order, and the same pads used, whatever the session says."""
    model = nets.ALL[net]()
    plan, feeds = plan_of(model, policy), nets.samples(model, 5)
    sent = {}
    for factor in (1, 100):
        for on_clip in ("ignore", "warn", "raise"):
            link = DirectLink()
            session = Session(plan, workers=[link], batch=2, on_clip=on_clip)
            with session, warnings.catch_warnings():
                warnings.simplefilter("ignore", ClipWarning)
                try:
                    session.run(times(feeds, factor))
                    released = True
                except ClipError:
                    released = False
            sent[factor, on_clip] = [(target, x.dtype, x.shape) for target, x in link.seen]
            assert released or (factor, on_clip) == (100, "raise")
    first, *others = sent.values()
    assert len(first) == 3 * len(plan.linear_nodes)
    assert all(other == first for other in others)


# ---- agreement with float32


def test_where_agreement_is_lost_a_session_warns():
    path = files("cloister.examples") / "digits.onnx"
    plan_inputs = np.random.default_rng(0).random((64, 1, 8, 8), np.float32)
    plan = cloister.policies.slalom(cloister.load(str(path)), calibration=plan_inputs)
    plain = ort.InferenceSession(str(path))
    feed = plain.get_inputs()[0].name
    agreement = {}
    with Session(plan, workers=[DirectLink()]) as session:
        for factor in (1, 2, 5, 20):
            x = np.float32(factor) * plan_inputs
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                (output,) = session.run(x).outputs.values()
            expected = plain.run(None, {feed: x})[0]
            agreement[factor] = (output.argmax(axis=1) == expected.argmax(axis=1)).mean()
            assert [w.category for w in caught] == ([] if factor == 1 else [ClipWarning])
    assert agreement[1] == 1.0
    assert agreement[20] < agreement[5] < agreement[2] < 0.95
