"""The executor against workers that lie or hang: what the memory they share shows them."""

import signal
from contextlib import nullcontext

import numpy as np
import pytest

import nets
from byzantine.test_session import mixed_plan
from cloister.base.rng import SystemRandom
from cloister.errors import VerificationError
from cloister.trusted.executor import Executor
from cloister.trusted.pads.maker import InlinePads, PadUse
from cloister.trusted.program.steps import Segment
from cloister.trusted.report import Meter
from cloister.trusted.session import Session
from cloister.wire.process import python
from cloister.wire.shm.shm_link import start_local_worker
from cloister.worker.byzantine import Lie
from trusted.split_plans import split_plans
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
        shared = link._arena._segments[space.memory.region.segment].memory
        assert bytes(clear)[:64] not in bytes(
            shared[: space.memory.region.offset + space.memory.region.size]
        )


@pytest.mark.parametrize("lie", [None, Lie.FLIP_ONE])
def test_a_lie_keeps_what_crosses_a_split_out_of_shared_memory(lie):
    """A segment's request is written where a worker reads it once all checks have passed."""
    plan = next(split_plans(nets.chain(), "origami-prefix", ends=1))
    executor = Executor(plan, rng=SystemRandom())
    (segment,) = [step for step in executor.program.steps if isinstance(step, Segment)]
    liar = () if lie is None else ("--lie", lie)
    command = python("-m", "cloister.worker", *liar)
    link = start_local_worker(command=command)
    try:
        executor.load(link)
        pads = PadUse(InlinePads(plan, rng=SystemRandom()), 1)
        with nullcontext() if lie is None else pytest.raises(VerificationError):
            executor.run(
                nets.samples(nets.chain(), 1), link=link, pads=pads, meter=Meter(), timeout_s=20.0
            )
        space = executor._workspace(link, 1)
        crossing = space.values[space.layout.crossing[segment.target]]
        assert crossing.any()
        written = np.moveaxis(crossing, -1, 1).tobytes()[:64]
        shared = bytes(link._arena._segments[space.memory.region.segment].memory)
        assert (written in shared) is (lie is None)
        assert (crossing.tobytes()[:64] in shared) is False
    finally:
        link.close()


def test_a_signal_handler_ends_the_wait(lying_link):
    def ring(*_):
        raise AlarmError

    model = nets.chain()
    with lying_link("shm", Lie.HANG) as link:
        session = Session(plan_of(model), workers=[link], timeout_s=60.0)
        lane, own = session._made[0], session._executor
        own.load(link)
        lane._loaded = link, own
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
        assert session._executor.next_request_id > 1
