import numpy as np
import onnxruntime as ort
import pytest

import nets
from cloister.errors import (
    PadReusedError,
    PlanError,
    RangeError,
    ShapeError,
    VerificationError,
    WorkerUnavailable,
)
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.claims import Extent, Role, Verb
from cloister.ring.reference import linear_map
from cloister.trusted.pads.maker import InlinePads, PadUse
from cloister.trusted.session import Session
from trusted.links import DirectLink, DyingLink

POLICIES = ("slalom", "verified", "blinded")


def plan_of(model, policy="slalom", count=6):
    graph = normalise.prepare(read.from_model(model, name="net"))
    return policies.make(policy, graph, calibration=nets.samples(model, count))


def plain(model, feeds):
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, feeds)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", nets.ALL)
def test_outputs_are_close_to_float32(net, policy):
    model = nets.ALL[net]()
    feeds = nets.samples(model, 5)
    with Session(plan_of(model, policy), workers=[DirectLink()], batch=2) as session:
        result = session.run(feeds)
    for expected, (name, got) in zip(plain(model, feeds), result.outputs.items(), strict=True):
        assert got.shape == expected.shape, name
        assert np.abs(got - expected).max() <= 0.02 * max(np.abs(expected).max(), 1.0), name


@pytest.mark.parametrize("net", nets.ALL)
def test_policies_agree_bit_for_bit(net):
    """Blinding and checking change no number: all three policies compute the same integers."""
    model = nets.ALL[net]()
    feeds = nets.samples(model, 3)
    results = []
    for policy in POLICIES:
        with Session(plan_of(model, policy), workers=[DirectLink()]) as session:
            results.append(session.run(feeds).outputs)
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_array_equal(value, other[name])


def test_enclave_needs_no_worker_and_equals_float32():
    model = nets.chain()
    feeds = nets.samples(model, 3)
    graph = normalise.prepare(read.from_model(model, name="net"))
    with Session(policies.enclave(graph)) as session:
        result = session.run(feeds)
    assert result.report.workers == ()
    assert result.report.bytes_to_worker == 0
    np.testing.assert_allclose(
        next(iter(result.outputs.values())), plain(model, feeds)[0], rtol=1e-4, atol=1e-5
    )


def flip_one(_target, answer):
    answer.flat[answer.size // 2] += np.uint32(1)
    return answer


def swap_channels(_target, answer):
    return np.ascontiguousarray(answer[..., ::-1])


def swap_pixels(_target, answer):
    flat = answer.reshape(len(answer), -1, answer.shape[-1])
    return np.ascontiguousarray(flat[:, ::-1]).reshape(answer.shape)


def shift_half(_target, answer):
    return answer + np.uint32(2**31)


def scale(_target, answer):
    return answer * np.uint32(3)


def zero_tile(_target, answer):
    answer[:, : max(answer.shape[1] // 2, 1)] = 0
    return answer


@pytest.mark.parametrize("policy", ["slalom", "verified"])
@pytest.mark.parametrize(
    "lie", [flip_one, swap_channels, swap_pixels, shift_half, scale, zero_tile]
)
def test_every_lie_about_any_layer_is_refused(lie, policy):
    model = nets.chain()
    plan = plan_of(model, policy)
    feeds = nets.samples(model, 2)
    for victim in range(len(plan.linear_nodes)):

        def lying(target, answer, victim=victim):
            told = lie(target, answer.copy())
            return told if target == victim else answer

        link = DirectLink(lie=lying)
        with Session(plan, workers=[link]) as session:
            changed = plan.linear_nodes[victim].linear.geometry.out_size != (1, 1)
            if lie is swap_pixels and not changed:
                continue
            with pytest.raises(VerificationError) as refusal:
                session.run(feeds)
            assert plan.linear_nodes[victim].node in str(refusal.value)
            assert link.closed
            with pytest.raises(WorkerUnavailable):
                session.run(feeds)


def test_without_integrity_a_lie_passes_which_is_what_the_claims_say():
    model = nets.chain()
    plan = plan_of(model, "blinded")
    assert plan.claims().worst(Role.WORKER, Verb.CAN) is Extent.EVERYTHING
    with Session(plan, workers=[DirectLink(lie=flip_one)]) as session:
        session.run(nets.samples(model, 1))


def test_a_dead_worker_is_replaced_and_no_pad_is_used_twice():
    model = nets.residual()
    plan = plan_of(model)
    feeds = nets.samples(model, 2)
    dying, healthy = DyingLink("first", fatal=3), DirectLink("second")
    with Session(plan, workers=[dying, healthy]) as session:
        result = session.run(feeds)
    with Session(plan, workers=[DirectLink()]) as session:
        expected = session.run(feeds)
    for name, value in expected.outputs.items():
        np.testing.assert_array_equal(result.outputs[name], value)
    assert result.report.pads_used == 4
    assert result.report.workers_lost == ("first",)
    first = dict(dying.seen)
    for target, message in healthy.seen:
        if target in first:
            assert np.count_nonzero(message == first[target]) <= 1


def test_a_dead_worker_without_a_replacement_raises():
    model = nets.chain()
    session = Session(plan_of(model), workers=[DyingLink("only", fatal=1)])
    with session, pytest.raises(WorkerUnavailable):
        session.run(nets.samples(model, 1))


def test_check_vectors_are_redrawn_after_a_lie():
    model = nets.chain()
    links = [DirectLink("liar", lie=flip_one), DirectLink("honest")]
    with Session(plan_of(model), workers=links) as session:
        before = session._executor.checks.vectors(0)
        old = before.rows.copy()
        with pytest.raises(VerificationError):
            session.run(nets.samples(model, 1))
        session.run(nets.samples(model, 1))
        for array in (before.a, before.b, before.rows, before.columns):
            assert array is None or not array.any(), "old coefficients are erased"
        assert np.mean(session._executor.checks.vectors(0).rows == old) < 0.01


@pytest.mark.parametrize("net", ["chain", "residual", "branches"])
def test_nothing_follows_a_lie(net):
    """After a lie about one node the worker gets no further message at all."""
    model = nets.ALL[net]()
    plan = plan_of(model)
    for victim in range(len(plan.linear_nodes)):
        link = DirectLink(lie=lambda t, a, v=victim: flip_one(t, a) if t == v else a)
        with Session(plan, workers=[link]) as session, pytest.raises(VerificationError):
            session.run(nets.samples(model, 2))
        targets = [target for target, _ in link.seen]
        assert targets[-1] == victim


def test_pads_are_claimed_once():
    plan = plan_of(nets.chain())
    source = InlinePads(plan, rng=Session(plan, workers=[DirectLink()])._rng)
    pads = PadUse(source, 2)
    assert [pad.pad_id for pad in pads.claim()] == [0, 1]
    for _ in range(2):
        with pytest.raises(PadReusedError):
            pads.claim()


def test_the_blinded_message_is_the_input_plus_a_pad_the_runtime_can_remove():
    model = nets.chain()
    plan = plan_of(model)
    link, clear = DirectLink(), DirectLink()
    feeds = nets.samples(model, 2)
    with Session(plan, workers=[link]) as session:
        session.run(feeds)
    with Session(plan_of(model, "verified"), workers=[clear]) as session:
        session.run(feeds)
    for (target, message), (_, x) in zip(link.seen, clear.seen, strict=True):
        linear = plan.linear_nodes[target].linear
        pad = message - x.astype(np.int32).view(np.uint32)
        unblinded = linear_map(linear, message) - linear_map(linear, pad)
        np.testing.assert_array_equal(unblinded, linear_map(linear, x))


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (np.full((1, 3, 13, 10), np.nan, np.float32), RangeError, "sample 0"),
        (np.zeros((1, 4, 13, 10), np.float32), ShapeError, "image"),
        (np.zeros((1, 3, 13, 10), np.uint8), ShapeError, "takes float32, got uint8"),
        (np.zeros((1, 3, 13, 10), np.complex64), ShapeError, "takes float32, got complex64"),
        (np.full((2, 3, 13, 10), 1e39), RangeError, "'image': sample 0 has a number beyond"),
    ],
)
def test_bad_inputs_are_named(inputs, error, text):
    session = Session(plan_of(nets.chain()), workers=[DirectLink()])
    with session, pytest.raises(error, match=text):
        session.run(inputs)


@pytest.mark.parametrize("policy", ["slalom", "verified", "enclave", "open"])
def test_every_row_has_processor_time_and_all_rows_at_most_the_whole(policy):
    graph = normalise.prepare(read.from_model(nets.residual(), name="net"))
    feeds = nets.samples(nets.residual(), 2)
    needed = feeds if policies.needs_ranges(policy) else None
    with Session(policies.make(policy, graph, calibration=needed)) as session:
        report = session.run(feeds).report
    # Segments and exchanges as well: their messages take the trusted side's time.
    assert all(row.trusted_ms > 0 for row in report.layers)
    assert sum(row.trusted_ms for row in report.layers) <= report.trusted_ms + report.offline_ms


def test_policies_say_what_they_need():
    graph = normalise.prepare(read.from_model(nets.chain(), name="net"))
    with pytest.raises(PlanError, match="calibration"):
        policies.make("slalom", graph)
    with pytest.raises(PlanError, match="unknown policy"):
        policies.make("magic", graph)
