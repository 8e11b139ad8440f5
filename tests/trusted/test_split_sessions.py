"""Sessions of plans with a split: lanes and batches, workers that stop, and hidden ends."""

from unittest import mock

import numpy as np
import pytest

import nets
from cloister.errors import ProtocolError, VerificationError, WorkerUnavailable
from cloister.graph.hidden import hide
from cloister.graph.split import split_points
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import SPLITTING, hiding
from cloister.trusted import module_engines
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.byzantine import ByzantineEngine, Lie
from cloister.worker.engine import Engine
from graph.test_hidden import graph_of
from trusted.modules import Planned, Started, onnx_module
from trusted.split_plans import split_plans
from trusted.test_session import plain

MODEL = nets.residual()
POLICIES = pytest.mark.parametrize("policy", SPLITTING)


def plan_at_the_last_split(policy):
    return list(split_plans(MODEL, policy, ends=1))[-1]


def messages(result):
    return [
        (entry.target_id, entry.dtype.name)
        for entry in result.transcript.messages(direction="to_worker")
    ]


@POLICIES
def test_lanes_and_batches_change_nothing(policy):
    """Each micro-batch sends what crosses in one message, whichever lane takes it."""
    plan, feeds = plan_at_the_last_split(policy), nets.samples(MODEL, 7)
    with Session(plan, workers=[InProcessLink(Engine().handle)], batch=2) as session:
        wanted = session.run(feeds)
    with Session(plan, batch=2, lanes=3) as session:
        found = session.run(feeds)
    for name, value in wanted.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value)
    assert sorted(messages(found)) == sorted(messages(wanted))
    clear = [dtype for _, dtype in messages(found) if dtype == "float32"]
    assert len(clear) == (0 if policy == "origami" else 4)  # of seven inputs, two at a time


@pytest.mark.parametrize("lie", [Lie.HANG, Lie.STALE_ID, Lie.WRONG_SHAPE, Lie.WRONG_DTYPE])
@pytest.mark.parametrize("policy", ["origami-prefix", "origami-none"])
def test_a_segment_that_is_not_answered_as_asked(policy, lie):
    """A worker that is silent is replaced, under fresh pads; one that breaks the form is not."""
    plan, feeds = plan_at_the_last_split(policy), nets.samples(MODEL, 1)
    last = len(plan.linear_nodes)
    liar = ByzantineEngine(Engine(), lie, when=lambda message: message.target_id == last)
    links = [InProcessLink(liar.handle, name="liar", encode=liar.encode)]
    links.append(InProcessLink(Engine().handle, name="spare"))
    with Session(plan, workers=links, timeout_s=5.0) as session:
        if lie is not Lie.HANG:
            with pytest.raises(ProtocolError):
                session.run(feeds)
            return
        result = session.run(feeds)
        assert result.report.workers_lost
        assert result.report.pads_used == 2
    with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
        for name, value in session.run(feeds).outputs.items():
            np.testing.assert_array_equal(result.outputs[name], value)


@pytest.mark.parametrize("policy", ["origami", "origami-prefix"])
def test_a_lie_before_the_split_ends_the_worker(policy):
    plan, feeds = plan_at_the_last_split(policy), nets.samples(MODEL, 1)
    liar = ByzantineEngine(Engine(), Lie.FLIP_ONE)
    with Session(plan, workers=[InProcessLink(liar.handle)]) as session:
        with pytest.raises(VerificationError):
            session.run(feeds)
        with pytest.raises(WorkerUnavailable):
            session.run(feeds)


@POLICIES
def test_a_split_before_a_hidden_end_computes_the_model(policy):
    graph, feeds = graph_of(MODEL), nets.samples(MODEL, 4)
    split = hide(graph, last=2)
    module = onnx_module(split.hidden)
    until = split_points(graph)[0].until
    plan = policies.make(
        hiding(policy),
        split.named(module.manifest.digest),
        calibration=feeds,
        split=PlannedSplit(until),
    )
    planned = Planned(plan, module, split.hidden, graph)
    with (
        mock.patch.object(module_engines, "start_engine", Started()),
        Session(plan, workers=[InProcessLink(Engine().handle)], modules=planned.modules) as session,
    ):
        result = session.run(feeds)
    (found,), (wanted,) = result.outputs.values(), plain(MODEL, feeds)
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max(initial=1), rtol=0)
    clear = [dtype for _, dtype in messages(result) if dtype != "uint32"]
    assert clear
    assert ("float32" in clear) is (policy != "origami")
