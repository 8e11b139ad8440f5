"""Several lanes give what one lane gives, release nothing more, and never share a pad."""

import os
import threading
import time

import numpy as np
import pytest

import nets
from cloister.base.rng import SystemRandom
from cloister.errors import (
    PadsExhausted,
    PlanError,
    RangeError,
    VerificationError,
    WorkerTimeout,
    WorkerUnavailable,
)
from cloister.trusted.lanes import Lane, Lanes, MicroBatch
from cloister.trusted.pads.maker import InlinePads
from cloister.trusted.pads.source import PadSet
from cloister.trusted.session import Session
from cloister.wire.process import python
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.worker.byzantine import Lie
from cloister.worker.serve import start_server
from trusted.links import DirectLink, DyingLink
from trusted.test_session import plan_of

CHAIN = nets.chain()
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def plan():
    return plan_of(CHAIN)


def one_lane(plan, feeds, batch=2):
    with Session(plan, workers=[DirectLink()], batch=batch, on_clip="ignore") as session:
        return session.run(feeds)


def same(result, expected):
    for name, value in expected.outputs.items():
        np.testing.assert_array_equal(result.outputs[name], value)


class Counting(InlinePads):
    """Remembers every pad id it gave out."""

    def __init__(self, plan, limit=10**6):
        super().__init__(plan, rng=SystemRandom())
        self.given = []
        self._left = limit
        self._guard = threading.Lock()

    def take(self, count) -> list[PadSet]:
        with self._guard:
            if count > self._left:
                raise PadsExhausted("no more")
            self._left -= count
        pads = super().take(count)
        self.given += [pad.pad_id for pad in pads]
        return pads


class Meeting(DirectLink):
    """Answers its first request only when the others have one too."""

    def __init__(self, name, barrier):
        super().__init__(name)
        self._barrier = barrier

    def receive(self, request_id, *, timeout_s):
        if self._barrier is not None:
            self._barrier.wait(TIMEOUT_S)
            self._barrier = None
        return super().receive(request_id, timeout_s=timeout_s)


class SlowLiar(DirectLink):
    """Lies once the others are on their way."""

    def __init__(self, name, after):
        super().__init__(name, lie=lambda _, answer: answer + np.uint32(1))
        self._after = after

    def receive(self, request_id, *, timeout_s):
        assert self._after.wait(TIMEOUT_S)
        return super().receive(request_id, timeout_s=timeout_s)


class Announcing(DirectLink):
    def __init__(self, name, event):
        super().__init__(name)
        self._event = event

    def submit(self, *arguments):
        super().submit(*arguments)
        self._event.set()


def test_workers_are_used_at_the_same_time(plan):
    barrier = threading.Barrier(3)
    links = [Meeting(str(i), barrier) for i in range(3)]
    feeds = nets.samples(CHAIN, 6)
    # A barrier that three lanes have to reach: one after the other would never pass it.
    with Session(plan, workers=links, batch=2) as session:
        result = session.run(feeds)
    same(result, one_lane(plan, feeds))
    assert result.report.workers == ("0", "1", "2")
    assert all(link.seen for link in links)


@pytest.mark.parametrize("net", nets.ALL)
def test_two_lanes_of_one_process_give_the_same_bits(net):
    model = nets.ALL[net]()
    plan = plan_of(model)
    feeds = nets.samples(model, 7)
    with Session(plan, lanes=2, batch=2) as session:
        for _ in range(2):
            same(session.run(feeds), one_lane(plan, feeds))


def test_random_sizes_lanes_and_batches(plan):
    rng = np.random.default_rng(7)
    expected = one_lane(plan, nets.samples(CHAIN, 24))
    images = nets.samples(CHAIN, 24)
    for lanes in (2, 3):
        pads = Counting(plan)
        links = connect_local_worker(lanes)
        options = {"lanes": lanes, "batch": 2, "pads": pads, "on_clip": "ignore"}
        with Session(plan, workers=links, **options) as session:
            for _ in range(8):
                first, count = int(rng.integers(0, 12)), int(rng.integers(1, 13))
                part = {k: v[first : first + count] for k, v in images.items()}
                told = []
                result = session.run(part, progress=lambda *at, told=told: told.append(at))
                for name, value in expected.outputs.items():
                    np.testing.assert_array_equal(
                        result.outputs[name], value[first : first + count]
                    )
                assert result.report.pads_used == result.report.inputs == count
                assert told[-1] == (count, count)
                assert [at[0] for at in told] == sorted(at[0] for at in told)
        assert len(set(pads.given)) == len(pads.given) > 0


def test_report_and_transcript_are_those_of_one_lane(plan):
    feeds = nets.samples(CHAIN, 5)
    expected = one_lane(plan, feeds)
    with Session(plan, lanes=2, batch=2) as session:
        result = session.run(feeds)

    def rows(one):
        return [
            (row.name, row.bytes_to_worker, row.bytes_from_worker, row.soundness_bits)
            for row in one.report.layers
        ]

    def crossed(one):
        return [(e.direction, e.target_id, e.shape) for e in one.transcript.entries]

    assert rows(result) == rows(expected)
    assert crossed(result) == crossed(expected)
    entries = result.transcript.entries
    assert len({(e.direction, e.request_id) for e in entries}) == len(entries)
    assert result.report.trusted_ms > 0
    assert result.report.offline_ms > 0


def test_messages_of_all_lanes_are_uniform_and_different(plan):
    """The same image in every lane: what goes out shows neither it nor that it is the same."""
    links = [DirectLink(str(i)) for i in range(3)]
    one = nets.samples(CHAIN, 1)
    feeds = {name: np.repeat(value, 9, axis=0) for name, value in one.items()}
    with Session(plan, workers=links, batch=1) as session:
        session.run(feeds)
    firsts = [message for link in links for target, message in link.seen if target == 0]
    assert len(firsts) == 9
    for i, message in enumerate(firsts):
        for other in firsts[:i]:
            assert np.count_nonzero(message == other) <= 1


class Killing(Counting):
    """Ends a worker when the sixth pad is asked for: lanes are in the middle of their work."""

    kill = staticmethod(lambda: None)

    def take(self, count):
        if len(self.given) >= 6:
            self.kill()
        return super().take(count)


@pytest.mark.parametrize("transport", ["shm", "rpc"])
def test_a_worker_killed_in_the_middle_is_made_up_for(plan, transport):
    feeds = nets.samples(CHAIN, 40)
    pads = Killing(plan)
    options = {"lanes": 4, "batch": 1, "pads": pads, "on_clip": "ignore"}
    if transport == "shm":
        links = [link for _ in range(2) for link in connect_local_worker(2)]
        pads.kill = links[0]._process.kill
        with Session(plan, workers=links, **options) as session:
            result = session.run(feeds)
        lost = (links[0].name,)
    else:
        servers = [start_server("127.0.0.1:0") for _ in range(2)]
        names = [server.address for server in servers]
        pads.kill = servers[0].close
        with Session(plan, workers=names, **options) as session:
            result = session.run(feeds)
        servers[1].close()
        lost = (names[0],)
    same(result, one_lane(plan, feeds, batch=1))
    assert result.report.workers_lost == lost
    assert len(set(pads.given)) == len(pads.given) >= 40


def test_a_dead_workers_inputs_go_to_an_idle_lane_under_fresh_pads(plan):
    dying, healthy = DyingLink("first", fatal=3), DirectLink("second")
    feeds = nets.samples(CHAIN, 4)
    pads = Counting(plan)
    with Session(plan, workers=[dying, healthy], batch=2, pads=pads) as session:
        result = session.run(feeds)
        same(session.run(feeds), result)
    same(result, one_lane(plan, feeds))
    assert len(pads.given) == len(set(pads.given)) == 10
    assert result.report.pads_used == 4 + 2 * ("first" in result.report.workers_lost)


def test_when_all_workers_die_that_is_the_error(plan):
    links = [DyingLink(str(i), fatal=i + 1) for i in range(3)]
    with Session(plan, workers=links, batch=1) as session:
        for match in ("died", "no worker is left"):
            with pytest.raises(WorkerUnavailable, match=match):
                session.run(nets.samples(CHAIN, 6))
    assert all(link.closed for link in links)


def test_a_liar_among_two_stops_everything_and_is_never_used_again(plan, caplog):
    caplog.set_level("INFO", logger="cloister.session")
    under_way = threading.Event()
    liar, honest = SlowLiar("liar", under_way), Announcing("honest", under_way)
    feeds = nets.samples(CHAIN, 8)
    told = []
    with Session(plan, workers=[liar, honest], batch=1) as session:
        executors = [lane.executor(session._plans.own) for lane in session._made]
        before = [executor.checks.vectors(0) for executor in executors]
        with pytest.raises(VerificationError, match="quarantined"):
            session.run(feeds, progress=lambda *at: told.append(at))
        assert liar.closed
        assert not honest.closed
        assert len(told) < 8
        said = len(liar.seen)
        result = session.run(feeds)
        same(result, one_lane(plan, feeds, batch=1))
        assert len(liar.seen) == said == 1
        assert result.report.workers_lost == ("liar",)
        assert "worker liar hung, died or lied" in caplog.text
        # Coefficients of every lane are redrawn, and the old ones erased.
        assert not any(vectors.b.any() for vectors in before)


def test_a_lying_process_is_cut_off_on_all_connections(plan):
    command = python("-m", "cloister.worker", "--lie", Lie.FLIP_ONE, "--lie-after", "5")
    links = connect_local_worker(2, command=command)
    with Session(plan, workers=links, lanes=2, batch=1) as session:
        with pytest.raises(VerificationError):
            session.run(nets.samples(CHAIN, 12))
        with pytest.raises(ProcessLookupError):
            os.kill(links[0].pid, 0)
        with pytest.raises(WorkerUnavailable, match="no worker is left"):
            session.run(nets.samples(CHAIN, 2))


def test_a_hanging_process_is_replaced_in_all_lanes(plan):
    command = python("-m", "cloister.worker", "--lie", Lie.HANG, "--lie-after", "5")
    hanging, healthy = connect_local_worker(2, command=command), connect_local_worker(1)
    feeds = nets.samples(CHAIN, 12)
    with Session(plan, workers=[*hanging, *healthy], lanes=3, batch=1, timeout_s=1.0) as session:
        result = session.run(feeds)
    same(result, one_lane(plan, feeds, batch=1))
    assert result.report.workers_lost == (hanging[0].name,)


def test_a_timeout_without_a_replacement_is_raised(plan):
    command = python("-m", "cloister.worker", "--lie", Lie.HANG)
    links = connect_local_worker(2, command=command)
    with (
        Session(plan, workers=links, lanes=2, batch=1, timeout_s=0.3) as session,
        pytest.raises(WorkerTimeout),
    ):
        session.run(nets.samples(CHAIN, 4))


def test_pads_that_run_out_end_the_call_and_nothing_is_released(plan):
    pads = Counting(plan, limit=5)
    links = [DirectLink("a"), DirectLink("b")]
    with Session(plan, workers=links, batch=1, pads=pads) as session:
        with pytest.raises(PadsExhausted):
            session.run(nets.samples(CHAIN, 8))
        assert not any(link.closed for link in links)
        with pytest.raises(PadsExhausted):
            session.run(nets.samples(CHAIN, 2))
    assert len(pads.given) == 5


class StopError(Exception):
    """A caller that has had enough."""


def test_a_caller_who_stops_is_obeyed_though_a_worker_hangs(plan):
    command = python("-m", "cloister.worker", "--lie", Lie.HANG)
    (hanging,), healthy = connect_local_worker(1, command=command), DirectLink("healthy")

    def stop(*_):
        raise StopError

    started = time.monotonic()
    with Session(plan, workers=[hanging, healthy], batch=1, timeout_s=600.0) as session:
        with pytest.raises(StopError):
            session.run(nets.samples(CHAIN, 4), progress=stop)
        # A minute is long for everything but the timeout.
        assert time.monotonic() - started < 60
        same(session.run(nets.samples(CHAIN, 3)), one_lane(plan, nets.samples(CHAIN, 3)))


def test_pads_are_never_given_twice_to_threads(plan):
    pads = Counting(plan)
    found = []

    def work():
        for count in (1, 3, 2, 5):
            taken = pads.take(count)
            found.extend(pad.pad_id for pad in taken)
            pads.recycle(taken)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(44))


def test_spent_pads_are_erased_at_the_end(plan):
    session = Session(plan, workers=[DirectLink()])
    session.run(nets.samples(CHAIN, 2))
    memory = list(session._plans.own.pads._spare)
    assert any(array.any() for array in memory)
    session.close()
    assert memory
    assert not any(array.any() for array in memory)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lanes": 0}, "at least 1"),
        ({"lanes": 2, "threads": 2}, "threads=1"),
        ({"lanes": 2}, "connections"),
    ],
)
def test_lanes_that_cannot_be_are_refused(plan, options, match):
    with pytest.raises(PlanError, match=match):
        Session(plan, workers=[DirectLink()], **options)


def test_threads_and_several_workers_mean_one_lane(plan):
    links = [DirectLink("a"), DirectLink("b")]
    feeds = nets.samples(CHAIN, 4)
    with Session(plan, workers=links, threads=2, batch=2) as session:
        same(session.run(feeds), one_lane(plan, feeds))
    assert not links[1].seen


class Idle(Lane):
    """A lane that does nothing, or fails."""

    def __init__(self, error=None):
        super().__init__(object, timeout_s=TIMEOUT_S, record_payloads=False, clock=time.thread_time)
        self._error = error

    def compute(self, job):
        if self._error is not None:
            raise self._error
        return {}


def test_an_interrupted_call_must_have_ended_before_the_next():
    lanes = Lanes([Idle()], [])
    release = threading.Event()
    lanes._threads = [threading.Thread(target=release.wait, daemon=True)]
    lanes.require_idle()
    lanes._threads[0].start()
    with pytest.raises(WorkerUnavailable, match="interrupted call"):
        lanes.require_idle()
    release.set()
    lanes._threads[0].join()
    lanes.require_idle()


@pytest.mark.parametrize(("error", "redraws"), [(KeyboardInterrupt, True), (RangeError, False)])
def test_an_interrupt_counts_as_a_possible_lie(error, redraws):
    lanes = Lanes([Idle(error())], [])
    with pytest.raises(error):
        lanes.run([MicroBatch({}, 1, None)], lambda job: None)
    assert lanes.lied is redraws


def test_an_interrupt_between_a_lie_and_its_record_redraws(monkeypatch):
    lanes = Lanes([Idle(VerificationError("a lie"))], [])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lanes, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lanes.run([MicroBatch({}, 1, None)], lambda job: None)
    assert lanes.lied
