"""What entering a session does before its first request, and what it leaves to it."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

import nets
from cloister.errors import (
    PlanError,
    ProtocolError,
    RangeError,
    WorkerUnavailable,
)
from cloister.trusted.lanes import Lanes
from cloister.trusted.session import Session
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.worker.serve import start_server
from trusted.links import DirectLink
from trusted.test_lanes import Counting
from trusted.test_session import plan_of

CHAIN = nets.chain()
SIZE = 2000


@pytest.fixture(scope="module")
def plan():
    return plan_of(CHAIN)


class FailingLoad(DirectLink):
    """Fails while it is loaded."""

    def __init__(self, name, error):
        super().__init__(name)
        self._error = error

    def load(self, message):
        raise self._error


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def equal(result, plan, feeds):
    expected = Session(plan, workers=[DirectLink()], on_clip="ignore").run(feeds)
    for name, value in expected.outputs.items():
        np.testing.assert_array_equal(result.outputs[name], value)


def test_workers_are_loaded_and_see_nothing_else_and_no_pad_is_spent(plan):
    links, pads = [DirectLink("a"), DirectLink("b")], Counting(plan)
    with Session(plan, workers=links, pads=pads):
        assert all(link.linears.keys() == set(range(len(plan.linear_nodes))) for link in links)
        assert not any(link.seen for link in links)
    assert pads.given == []


def test_a_session_that_is_not_entered_loads_with_its_first_request(plan):
    link = DirectLink()
    session = Session(plan, workers=[link])
    assert not link.linears
    equal(session.run(nets.samples(CHAIN, 1)), plan, nets.samples(CHAIN, 1))


def test_a_worker_is_loaded_once(plan):
    class Counted(DirectLink):
        loads = 0

        def load(self, message):
            self.loads += 1
            super().load(message)

    link = Counted()
    with Session(plan, workers=[link]) as session:
        session.run(nets.samples(CHAIN, 1))
    assert link.loads == len(plan.linear_nodes)


def test_the_first_requests_of_all_smaller_sizes_find_their_memory(plan):
    (link,) = connect_local_worker(1)
    feeds = nets.samples(CHAIN, SIZE)
    with Session(plan, workers=[link], batch=SIZE, on_clip="ignore") as session:
        (space,) = session._executor._at_channels[link].values()
        pages = (space.memory.region.size + space.memory.private.size) // resource.getpagesize()
        assert pages > 2000
        pads = session._plans.own.pads
        taken = pads.take(SIZE)
        pads.recycle(taken)
        sent, before = link.bytes_sent, faults()
        first = session.run(feeds)
        # Those of results and of small arrays.
        assert faults() - before < pages // 2
        assert link.bytes_sent > sent
        some = {name: array[:7] for name, array in feeds.items()}
        equal(session.run(some), plan, some)
        spaces = session._executor._at_channels[link]
        assert spaces.keys() == {SIZE, 7}
        assert {id(one.memory) for one in spaces.values()} == {id(space.memory)}
    equal(first, plan, feeds)


def test_a_larger_size_gets_new_memory_and_the_old_is_given_back(plan):
    (link,) = connect_local_worker(1)
    with Session(plan, workers=[link], batch=2, on_clip="ignore") as session:
        executor = session._executor
        (small,) = executor._at_channels[link].values()
        executor.prepare(link, 64)
        (large,) = executor._at_channels[link].values()
        assert large.memory.region.size > small.memory.region.size
        free = link._arena._segments[small.memory.region.segment].free
        assert (small.memory.region.offset, small.memory.region.size) in free
        equal(session.run(nets.samples(CHAIN, 2)), plan, nets.samples(CHAIN, 2))


def test_lanes_and_remote_workers_are_prepared(plan):
    server = start_server("127.0.0.1:0")
    with Session(plan, workers=[server.address], lanes=2, batch=3) as session:
        assert [lane.executor(session._plans.own)._private.keys() for lane in session._made] == [
            {3}, {3},
        ]  # fmt: skip
        assert [lane._loaded[0] for lane in session._made] == [lane.link for lane in session._made]
        equal(session.run(nets.samples(CHAIN, 6)), plan, nets.samples(CHAIN, 6))
    server.close()


def test_a_lie_is_raised_by_the_first_request_and_the_worker_is_not_used_again(plan):
    liar, honest = FailingLoad("liar", ProtocolError("worker liar: a lie")), DirectLink("honest")
    feeds = nets.samples(CHAIN, 1)
    with Session(plan, workers=[liar, honest], lanes=1) as session:
        assert liar.closed
        with pytest.raises(ProtocolError, match="a lie"):
            session.run(feeds)
        result = session.run(feeds)
        equal(result, plan, feeds)
        assert result.report.workers_lost == ("liar",)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_worker_that_dies_is_replaced(plan, lanes):
    dead = FailingLoad("dead", WorkerUnavailable("worker dead: died"))
    feeds = nets.samples(CHAIN, 4)
    with Session(plan, workers=[dead, DirectLink("b")], lanes=lanes, batch=2) as session:
        result = session.run(feeds)
    equal(result, plan, feeds)
    assert result.report.workers == ("b",)
    assert result.report.workers_lost == ("dead",)


def test_the_death_of_the_only_worker_is_raised_by_the_first_request(plan):
    dead = FailingLoad("dead", WorkerUnavailable("worker dead: died"))
    with Session(plan, workers=[dead]) as session:
        with pytest.raises(WorkerUnavailable, match="worker dead: died"):
            session.run(nets.samples(CHAIN, 1))
        with pytest.raises(WorkerUnavailable, match="no worker is left"):
            session.run(nets.samples(CHAIN, 1))


@pytest.mark.parametrize("lanes", [1, 2])
def test_any_other_error_is_raised_at_once_and_closes_the_session(plan, lanes):
    links = [FailingLoad(name, RangeError("too large")) for name in ("a", "b")]
    session = Session(plan, workers=links, lanes=lanes)
    with pytest.raises(RangeError, match="too large"):
        session.__enter__()
    assert all(link.closed for link in links)
    with pytest.raises(PlanError, match="closed"):
        session.run(nets.samples(CHAIN, 1))


def test_an_interrupt_ends_it_and_counts_as_a_possible_lie(plan, monkeypatch):
    session = Session(plan, workers=[FailingLoad("a", KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        session.__enter__()
    assert session._lanes.lied


def test_a_closed_session_is_entered_in_vain(plan):
    link = DirectLink()
    session = Session(plan, workers=[link])
    session.close()
    with session, pytest.raises(PlanError, match="closed"):
        session.run(nets.samples(CHAIN, 1))
    assert not link.linears


def test_lanes_without_workers_are_prepared():
    plan = plan_of(CHAIN, "enclave")
    with Session(plan, batch=4) as session:
        assert isinstance(session._lanes, Lanes)
        assert session._executor._private.keys() == {4}


def shared_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("RssShmem:")]
    return int(line.split()[1])


def test_a_worker_maps_memory_that_is_reserved_and_no_other(plan):
    (link,) = connect_local_worker(1)
    try:
        link.reserve(16 << 20)
        link.load_linear(0, plan.linear_nodes[0].linear)  # answered once the memory is mapped
        mapped, ours = shared_kib(link.pid), shared_kib(os.getpid())
        assert mapped >= 16 << 10
        link._arena._new_segment(64 << 20)
        link.load_linear(1, plan.linear_nodes[1].linear)
        assert shared_kib(link.pid) < mapped + 1024
        assert shared_kib(os.getpid()) < ours + 1024
    finally:
        link.close()
