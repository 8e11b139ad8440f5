"""Whole sessions against lying workers: no lie is accepted, no lie is followed by a leak."""

import dataclasses

import numpy as np
import pytest

import nets
from cloister.errors import (
    ProtocolError,
    VerificationError,
    WorkerTimeout,
    WorkerUnavailable,
)
from cloister.plan.plan import Plan
from cloister.plan.protection import BLINDED_VERIFIED, OPEN, VERIFIED
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.byzantine import VALUE_LIES, Lie
from cloister.worker.engine import Engine
from trusted.links import DirectLink
from trusted.test_session import flip_one, plan_of

NODES = 3
PATIENCE_S = {Lie.HANG: 1.0, Lie.DIE: 20.0}
"""A worker that hangs is waited for in vain; one that dies has time to answer first."""


@pytest.fixture(scope="module")
def plan():
    return plan_of(nets.chain())


@pytest.mark.parametrize("transport", ["in-process", "shm", "rpc"])
@pytest.mark.parametrize("after", [0, NODES + 1])
@pytest.mark.parametrize("lie", sorted(set(Lie) - {Lie.HANG, Lie.DIE}))
def test_every_lie_is_refused(lying_link, plan, transport, lie, after):
    """`after` is the honest answers: the lie falls into the first image's run or the second's."""
    feeds = nets.samples(nets.chain(), 1)
    # An old answer exists from the second run on only.
    silent = lie in (Lie.STALE_CONTENT, Lie.STALE_ID) and after == 0
    with (
        lying_link(transport, lie, after=after) as link,
        Session(plan, workers=[link], timeout_s=20.0) as session,
    ):
        error = VerificationError if lie in VALUE_LIES else ProtocolError
        with pytest.raises(error):
            for _ in range(3 if silent else 1 + (after > 0)):
                session.run(feeds)
        with pytest.raises(WorkerUnavailable):
            session.run(feeds)


@pytest.mark.parametrize("transport", ["in-process", "shm", "rpc"])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("lie", [Lie.FLIP_ONE, Lie.SCALE, Lie.WRONG_SHAPE])
def test_every_lie_is_refused_around_an_open_segment(lying_link, transport, after, lie):
    """`after` is the honest answers: a layer's, the segment's, a layer's."""
    plan, outputs = with_an_open_segment(), None
    feeds = nets.samples(nets.chain(), 1)
    with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
        entries = session.run(feeds).transcript.messages(direction="to_worker")
    assert [entry.target_id for entry in entries] == [0, len(plan.linear_nodes), 1]
    with (
        lying_link(transport, lie, after=after) as link,
        Session(plan, workers=[link], timeout_s=20.0) as session,
        pytest.raises(VerificationError if lie in VALUE_LIES else ProtocolError),
    ):
        outputs = session.run(feeds)
    assert outputs is None


@pytest.mark.parametrize("lie", [Lie.HANG, Lie.DIE])
def test_a_worker_that_stops_is_replaced_under_fresh_pads(lying_link, plan, lie):
    feeds = nets.samples(nets.chain(), 2)
    with Session(plan, workers=[DirectLink()]) as session:
        expected = session.run(feeds).outputs
    with (
        lying_link("shm", lie, after=1) as link,
        Session(plan, workers=[link, DirectLink("spare")], timeout_s=PATIENCE_S[lie]) as session,
    ):
        result = session.run(feeds)
    assert result.report.pads_used == 4
    for name, value in expected.items():
        np.testing.assert_array_equal(result.outputs[name], value)


@pytest.mark.parametrize("lie", [Lie.HANG, Lie.DIE])
def test_a_worker_that_stops_in_a_segment_is_replaced(lying_link, lie):
    plan, feeds = with_an_open_segment(), nets.samples(nets.chain(), 2)
    with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
        expected = session.run(feeds).outputs
    with (
        lying_link("shm", lie, after=1) as link,
        Session(
            plan,
            workers=[link, InProcessLink(Engine().handle, name="spare")],
            timeout_s=PATIENCE_S[lie],
        ) as session,
    ):
        result = session.run(feeds)
    assert result.report.pads_used == 4
    for name, value in expected.items():
        np.testing.assert_array_equal(result.outputs[name], value)


@pytest.mark.parametrize(
    ("lie", "error"), [(Lie.HANG, WorkerTimeout), (Lie.DIE, WorkerUnavailable)]
)
def test_a_worker_that_stops_without_a_replacement_is_an_error(lying_link, plan, lie, error):
    with (
        lying_link("shm", lie, after=1) as link,
        Session(plan, workers=[link], timeout_s=PATIENCE_S[lie]) as session,
        pytest.raises(error, match="1 s" if lie is Lie.HANG else "ended"),
    ):
        session.run(nets.samples(nets.chain(), 1))


class WatchingLink(DirectLink):
    """Keeps every buffer it lent: what a worker on shared memory can read at any time."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.lent: list[np.ndarray] = []

    def send_buffer(self, spec):
        buffer = super().send_buffer(spec)
        self.lent.append(buffer)
        return buffer


def mixed_plan() -> Plan:
    """The first convolution hidden and checked, everything later in the clear and checked."""
    plan = plan_of(nets.chain())
    protections = dict(plan.protections)
    first, *later = (node.node for node in plan.linear_nodes)
    assert protections[first] is BLINDED_VERIFIED
    protections.update(dict.fromkeys(later, VERIFIED))
    return dataclasses.replace(plan, policy="mixed", protections=protections)


def with_an_open_segment() -> Plan:
    """Everything behind the first linear node but one of the others in the open."""
    plan = plan_of(nets.chain())
    protections = dict(plan.protections)
    order = [node.name for node in plan.graph.nodes]
    first, *_, last = (node.node for node in plan.linear_nodes)
    between = order[order.index(first) + 2 : order.index(last)]
    protections.update(dict.fromkeys(between, OPEN))
    kept = {name: numbers for name, numbers in plan.quantised.items() if name in (first, last)}
    return dataclasses.replace(plan, policy="mixed", protections=protections, quantised=kept)


def test_a_lie_about_a_hidden_node_keeps_the_clear_message_from_leaving():
    """Otherwise the worker would read in the clear what its error did, and only then be caught."""
    plan = mixed_plan()
    feeds = nets.samples(nets.chain(), 2)
    honest = WatchingLink()
    with Session(plan, workers=[honest]) as session:
        session.run(feeds)
    assert [message.dtype for _, message in honest.seen] == [np.uint32, np.int16, np.int16]
    liar = WatchingLink(lie=lambda target, answer: flip_one(target, answer))
    with Session(plan, workers=[liar]) as session, pytest.raises(VerificationError):
        session.run(feeds)
    assert [target for target, _ in liar.seen] == [0]
    # Nor did it see the clear message in memory it shares: none was ever written there.
    assert [buffer.dtype for buffer in liar.lent] == [np.uint32]


def test_a_lie_about_the_last_node_releases_no_output():
    plan = plan_of(nets.chain())
    last = len(plan.linear_nodes) - 1
    link = DirectLink(lie=lambda t, a: flip_one(t, a) if t == last else a)
    outputs = None
    with Session(plan, workers=[link]) as session, pytest.raises(VerificationError) as refusal:
        outputs = session.run(nets.samples(nets.chain(), 1))
    assert outputs is None
    assert not any(
        char.isdigit() for char in str(refusal.value).replace(plan.linear_nodes[last].node, "")
    )
