"""Every policy, model, batch and link against the slow interpreter, bit for bit."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, event, given, note, reject, settings
from hypothesis import strategies as st

import nets
import unequal
from byzantine.test_session import mixed_plan
from cloister.errors import CloisterError, InputError, RangeError, VerificationError
from cloister.graph.hidden import hide, layers
from cloister.graph.onnx import read
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.protection import OUTSOURCED, hiding
from cloister.ring import reference
from cloister.ring.freivalds import P52
from cloister.trusted import module_engines
from cloister.trusted.program.steps import Fused
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.worker.engine import Engine
from cloister.worker.serve import start_server
from trusted.links import DirectLink
from trusted.modules import Planned, Started, onnx_module
from trusted.program.oracle import Oracle
from trusted.random_models import models, runtime
from trusted.test_channel_scales import graph_of
from trusted.test_random_models import EXAMPLES, batches, is_listed, random_models
from trusted.test_session import plan_of

LINKS = ("in-process", "shm", "rpc")


@pytest.fixture(scope="module")
def connect():
    """A new link of one kind; links of one kind share a worker."""
    local = connect_local_worker(3 * len(nets.ALL) * len(policies.NAMES))
    server = start_server("127.0.0.1:0")
    made = []

    def link(kind):
        if kind == "in-process":
            made.append(InProcessLink(Engine().handle))
        else:
            made.append(local.pop() if kind == "shm" else RpcLink(server.address))
        return made[-1]

    yield link
    for one in (*made, *local):
        one.close()
    server.close()


def inputs(model, count, *, factor=1):
    samples = nets.samples(model, count, seed=count)
    return {name: np.float32(factor) * value for name, value in samples.items()}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("policy", policies.NAMES)
@pytest.mark.parametrize("net", nets.ALL)
def test_a_session_does_what_the_interpreter_says(connect, net, policy, kind):
    """Batches in parts and whole, inputs beyond the calibrated range; memory is used again."""
    model = nets.ALL[net]()
    oracle = Oracle(plan_of(model, policy))
    for record in (True, False) if kind == "shm" else (True,):
        with oracle.session(connect(kind), record=record) as session:
            for count, factor in ((3, 1), (1, 10), (2, 1)):
                feeds = inputs(model, count, factor=factor)
                oracle.assert_explains(session.run(feeds), feeds)


@pytest.mark.parametrize("policy", OUTSOURCED)
@pytest.mark.parametrize("net", ["residual", "branches", "depthwise", "several"])
def test_on_every_instruction_set(net, policy, isa):
    model = nets.ALL[net]()
    oracle = Oracle(plan_of(model, policy))
    with oracle.session(InProcessLink(Engine().handle)) as session:
        feeds = inputs(model, 3, factor=3)
        oracle.assert_explains(session.run(feeds), feeds)


@pytest.mark.parametrize("policy", OUTSOURCED)
def test_other_clamps_before_and_behind_a_depthwise_convolution(policy):
    net = nets.Net()
    bounds = [net.constant(np.float32(bound)) for bound in (-0.5, 0.75, -0.25, 0.125)]
    x = net.op("Clip", net.conv(net.input("image", 3, 7, 9), 3, 16, (1, 1)), *bounds[:2])
    x = net.op("Clip", net.conv(x, 16, 16, group=16, pads=[1] * 4), *bounds[2:])
    model = net.model(net.conv(x, 16, 4, (1, 1)))
    oracle = Oracle(plan_of(model, policy))
    (clamped,) = {
        (epilogue.lo, epilogue.hi, epilogue.after_lo, epilogue.after_hi)
        for epilogue in (s.epilogue for s in oracle.program.steps if isinstance(s, Fused))
        if epilogue.depthwise is not None
    }
    assert clamped == (-0.5, 0.75, -0.25, 0.125)
    with oracle.session(InProcessLink(Engine().handle)) as session:
        feeds = inputs(model, 3)
        oracle.assert_explains(session.run(feeds), feeds)


@pytest.mark.parametrize("kind", LINKS)
def test_a_plan_of_several_protections(connect, kind):
    oracle = Oracle(mixed_plan())
    with oracle.session(connect(kind)) as session:
        feeds = inputs(nets.chain(), 3)
        oracle.assert_explains(session.run(feeds), feeds)


@pytest.mark.parametrize("policy", OUTSOURCED)
@pytest.mark.parametrize("net", unequal.ALL)
def test_factors_of_raw_inputs(net, policy):
    model = unequal.ALL[net]()
    plan = policies.make(policy, graph_of(model), calibration=unequal.samples(model, 16))
    oracle = Oracle(plan)
    with oracle.session(InProcessLink(Engine().handle)) as session:
        feeds = unequal.samples(model, 3, seed=1)
        oracle.assert_explains(session.run(feeds), feeds)


@pytest.mark.parametrize("policy", OUTSOURCED)
def test_what_has_no_fixed_point_form_is_refused(policy):
    net = nets.Net()
    model = net.model(net.gemm(net.op("Sqrt", net.input("x", 12)), 12, 3))
    graph = graph_of(model)
    positive = {"x": np.ones((2, 12), np.float32)}
    oracle = Oracle(policies.make(policy, graph, calibration=positive))
    with oracle.session(InProcessLink(Engine().handle)) as session:
        oracle.assert_explains(session.run(positive), positive)
        negative = {"x": -positive["x"]}
        for run in (session.run, oracle.interpret):
            with pytest.raises(RangeError, match="NaN or infinite"):
                run(negative)


def check(data, policy, link):
    """A random model on a link; None: the session's own local worker."""
    net = data.draw(models())
    feeds = net.feeds(N=data.draw(st.integers(1, 5)), D=data.draw(st.integers(1, 4)))
    note(str(net))
    model = net.model()
    try:
        runtime(model).run(None, feeds)
    except ORT_ERRORS:
        reject()  # its own shape inference contradicts its own kernels
    graph = normalise.prepare(read.from_model(model, name="random"))
    try:
        plan = policies.make(policy, graph, calibration=feeds)
        oracle = Oracle(plan, batch=data.draw(batches(plan)))
        with oracle.session(link) as session:
            result = session.run(feeds)
    except CloisterError as error:
        if not is_listed(error, net):
            raise
        event(f"refused: {error}"[:40])
        return
    event("compared")
    oracle.assert_explains(result, feeds)


@pytest.mark.parametrize("policy", policies.NAMES)
@random_models
@given(st.data())
def test_random_models(policy, data):
    check(data, policy, InProcessLink(Engine().handle))


@settings(random_models, max_examples=max(EXAMPLES // 10, 1))
@given(st.data())
def test_random_models_over_shared_memory(data):
    check(data, data.draw(st.sampled_from(policies.NAMES)), None)


@pytest.mark.parametrize("outer", policies.NAMES)
@random_models
@given(st.data())
def test_random_models_with_a_hidden_end(outer, data):
    """Wherever the model can be split, and whatever of it is hidden."""
    net = data.draw(models())
    feeds = net.feeds(N=data.draw(st.integers(1, 5)), D=data.draw(st.integers(1, 4)))
    note(str(net))
    model = net.model()
    try:
        runtime(model).run(None, feeds)
    except ORT_ERRORS:
        reject()  # its own shape inference contradicts its own kernels
    graph = normalise.prepare(read.from_model(model, name="random"))
    count = len(layers(graph))
    assume(count > 0)
    try:
        split = hide(graph, last=data.draw(st.integers(1, count)))
    except InputError as error:
        known = (
            "takes one sample at a time", "a hidden part cannot", "would not be hidden",
            "a hidden part needs a number for the model's free size",
        )  # fmt: skip
        assert any(why in str(error) for why in known)
        event("not hidden")
        return
    module = onnx_module(split.hidden)
    try:
        named = split.named(module.manifest.digest)
        plan = policies.make(hiding(outer), named, calibration=feeds)
        planned = Planned(plan, module, split.hidden, graph)
        name = split.node
        oracle = Oracle(plan, batch=data.draw(batches(plan)), modules={name: planned.function})
        link = InProcessLink(Engine().handle)
        with (
            mock.patch.object(module_engines, "start_engine", Started()),
            oracle.session(link, modules=planned.modules) as session,
        ):
            result = session.run(feeds)
    except CloisterError as error:
        if "no linear node that a worker computes is left" in str(error):
            event("nothing outside")
            return
        if not is_listed(error, net):
            raise
        event(f"refused: {error}"[:40])
        return
    event("compared")
    oracle.assert_explains(result, feeds)


# ---- wrong answers


def garbled(answer):
    """Any word, in place of each."""
    return answer * np.uint32(2654435761) + np.uint32(12345)


@pytest.mark.parametrize("net", nets.ALL)
def test_wrong_answers_that_nobody_checks(net):
    """All of the ring passes through: values near its ends, clipped ones, sums that overflow."""
    model = nets.ALL[net]()
    oracle = Oracle(plan_of(model, "blinded"))
    with oracle.session(DirectLink(lie=lambda _, answer: garbled(answer))) as session:
        feeds = inputs(model, 3)
        result = session.run(feeds)
    oracle.assert_explains(
        result, feeds, worker=lambda linear, x: garbled(reference.linear_map(linear, x))
    )


def cancelling(vectors, shape):
    """An error of two words that the check with these coefficients cannot see.

    d s + e t = 0 modulo P52 has a solution below 2^27: where Euclid's algorithm on P52 and -s / t
    passes the square root of P52.
    """
    height, width, channels = shape
    at = (0, 0, 0), (height - 1, width - 1, channels - 1)
    s, t = (int(vectors.a[y * width + x]) * int(vectors.b[c]) % P52 for y, x, c in at)
    (big, small), (before, d) = (P52, -s * pow(t, -1, P52) % P52), (0, 1)
    while small >= 2**26:
        quotient = big // small
        (big, small), (before, d) = (small, big - quotient * small), (d, before - quotient * d)
    error = np.zeros(shape, np.int64)
    error[at[0]], error[at[1]] = d, small
    assert (d * s + small * t) % P52 == 0
    return error.astype(np.uint32)


@pytest.mark.parametrize("policy", ["slalom", "verified"])
@pytest.mark.parametrize("net", ["chain", "residual", "sequence", "text"])
def test_the_check_sees_what_the_coefficients_see(net, policy):
    """An error made with the coefficients passes, as the interpreter says; one word more does not.

    So the executor adds up both sums with just these coefficients, at just these places.
    """
    model = nets.ALL[net]()
    feeds = inputs(model, 2)
    for more in (0, 1):
        oracle = Oracle(plan_of(model, policy))
        linear = oracle.plan.linear_nodes[0].linear
        error = cancelling(oracle.checks[0], linear.geometry.out_shape)
        error[0, 0, 0] += np.uint32(more)
        assert error.any()

        def lie(target, answer, error=error):
            return answer + error if target == 0 else answer

        def worker(asked, x, linear=linear, error=error):
            answer = reference.linear_map(asked, x)
            return answer + error if asked is linear else answer

        with oracle.session(DirectLink(lie=lie)) as session:
            if not more:
                oracle.assert_explains(session.run(feeds), feeds, worker=worker)
                continue
            with pytest.raises(VerificationError, match=oracle.plan.linear_nodes[0].node):
                session.run(feeds)
            with pytest.raises(VerificationError, match=oracle.plan.linear_nodes[0].node):
                oracle.interpret(feeds, worker=worker)
