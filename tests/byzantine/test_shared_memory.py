"""The executor against workers that lie or hang: what the memory they share shows them."""

import signal

import pytest

import nets
from byzantine.test_session import mixed_plan, with_an_open_segment
from cloister.base.rng import SystemRandom
from cloister.errors import ProtocolError, VerificationError
from cloister.graph.layout import from_channels_last
from cloister.trusted.executor import Executor
from cloister.trusted.pads.maker import InlinePads, PadUse
from cloister.trusted.report import Meter
from cloister.trusted.session import Session
from cloister.worker.byzantine import Lie
from trusted.test_session import plan_of


class AlarmError(Exception):
    """The alarm rang."""


def test_a_lie_keeps_the_clear_message_out_of_shared_memory(lying_link):
    plan = mixed_plan()
    executor = Executor(plan, rng=SystemRandom())
    feeds = nets.samples(nets.chain(), 1)
    with lying_link("shm", Lie.FLIP_ONE) as link:
        executor.load(link)
        sent = link.bytes_sent
        pads = PadUse(InlinePads(plan, rng=SystemRandom()), 1)
        with pytest.raises(VerificationError, match=plan.linear_nodes[0].node):
            executor.run(feeds, link=link, pads=pads, meter=Meter(), timeout_s=20.0)
        space = executor._workspace(link, 1)
        message = plan.linear_nodes[0].linear.geometry.in_elements * 4
        assert message < link.bytes_sent - sent < message + 1000
        clear = space.message(1, link)
        assert clear.any()
        shared = link._arena._segments[space.region.segment].memory
        assert bytes(clear)[:64] not in bytes(shared[: space.region.offset + space.region.size])


@pytest.mark.parametrize("after", [0, 1])
def test_a_segment_s_message_comes_to_shared_memory_after_the_checks(lying_link, after):
    """`after` is the honest answers; with one, the worker lies about the segment itself."""
    plan = with_an_open_segment()
    executor = Executor(plan, rng=SystemRandom())
    with lying_link("shm", Lie.WRONG_SHAPE if after else Lie.FLIP_ONE, after=after) as link:
        executor.load(link)
        pads = PadUse(InlinePads(plan, rng=SystemRandom()), 1)
        feeds = nets.samples(nets.chain(), 1)
        with pytest.raises(ProtocolError if after else VerificationError):
            executor.run(feeds, link=link, pads=pads, meter=Meter(), timeout_s=20.0)
        space = executor._workspace(link, 1)
        ((name, channels_first),) = space.layout.crossing.values()
        assert channels_first
        message = from_channels_last(
            space.values[name, True], plan.graph.types[name].shape, channels_first=True
        )
        assert message.any()
        shared = link._arena._segments[space.region.segment].memory
        there = message.tobytes() in bytes(shared[: space.region.offset + space.region.size])
        assert there == (after == 1)


def test_a_signal_handler_ends_the_wait(lying_link):
    def ring(*_):
        raise AlarmError

    model = nets.chain()
    with lying_link("shm", Lie.HANG) as link:
        session = Session(plan_of(model), workers=[link], timeout_s=60.0)
        lane = session._made[0]
        lane.executor.load(link)
        lane._loaded = link
        before = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(AlarmError):
                session.run(nets.samples(model, 1))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        # The answer may still come: the link is left to those who read packets one by one.
        assert link.native_channel() is None
        assert session._executor._next_request_id > 1
