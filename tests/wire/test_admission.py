import asyncio
import logging

import pytest

from cloister.wire.https.admission import (
    LOG_LINES_PER_MINUTE,
    BusyError,
    Crowd,
    QuietLog,
    ServerLimits,
    Shares,
    descriptors,
    peer_of,
)

FEW = ServerLimits(connections=4, per_caller=2, strangers=3, per_peer=2)


class Guest:
    def __init__(self, name):
        self.name, self.idle, self.dropped = name, True, False

    def drop(self):
        self.dropped = True


def arrive(crowd, *names, address="10.0.0.1"):
    guests = [Guest(name) for name in names]
    for guest in guests:
        crowd.arrived(guest, address)
    return guests


def test_the_oldest_stranger_of_a_peer_leaves_for_a_new_one():
    crowd = Crowd(FEW)
    a, b, c = arrive(crowd, "a", "b", "c")
    assert [a.dropped, b.dropped, c.dropped] == [True, False, False]
    (other,) = arrive(crowd, "d", address="10.0.0.2")
    assert not b.dropped
    # All places of strangers are taken: the oldest of all leaves.
    arrive(crowd, "e", address="10.0.0.3")
    assert b.dropped
    assert not other.dropped
    assert len(crowd) == FEW.strangers


def test_strangers_take_no_place_of_a_caller():
    crowd = Crowd(FEW)
    (known,) = arrive(crowd, "known")
    crowd.known(known, "server")
    arrive(crowd, *"abcdefgh")
    assert not known.dropped
    crowd.known(known, "server")
    assert len(crowd) == 1 + FEW.per_peer


def test_a_caller_takes_no_place_of_another():
    crowd = Crowd(FEW)
    (other,) = arrive(crowd, "other")
    crowd.known(other, "other")
    own = []
    for name in "abc":
        own += arrive(crowd, name)
        crowd.known(own[-1], "greedy")
    assert [guest.dropped for guest in own] == [True, False, False]
    for guest in own:
        guest.idle = False
    (late,) = arrive(crowd, "late")
    with pytest.raises(BusyError):
        crowd.known(late, "greedy")
    assert not other.dropped


def test_who_is_behind_an_address():
    assert peer_of("10.0.0.1") == peer_of("::ffff:10.0.0.1") != peer_of("10.0.0.2")
    assert peer_of("2001:db8::1") == peer_of("2001:db8::ffff:1") != peer_of("2001:db8:0:1::1")
    assert peer_of("fe80::1%eth0") == peer_of("fe80::2")


@pytest.mark.parametrize("files", [1, 100, 256, 1024, 1 << 20])
def test_connections_leave_descriptors_for_the_rest_of_the_process(files):
    limits = ServerLimits().within(files)
    assert limits.connections + limits.strangers <= max(16, files - 64)
    assert 1 <= limits.per_caller <= limits.connections
    assert 1 <= limits.per_peer <= limits.strangers
    assert limits.wait_s == ServerLimits().wait_s
    assert descriptors() > 0


def test_no_owner_gets_more_than_its_share():
    async def run():
        shares, order = Shares(10, 5, wait_s=20), []

        async def ask(owner, amount, until):
            async with shares.taken(owner, amount):
                order.append((owner, amount))
                await until.wait()

        first, second = asyncio.Event(), asyncio.Event()
        greedy = asyncio.create_task(ask("greedy", 99, first))
        await asyncio.sleep(0)
        more = asyncio.create_task(ask("greedy", 1, second))
        other = asyncio.create_task(ask("other", 5, second))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == [("greedy", 99), ("other", 5)]
        first.set()
        await greedy
        second.set()
        await asyncio.gather(more, other)
        assert order[-1] == ("greedy", 1)
        # All is given back.
        async with shares.taken("a", 5), shares.taken("b", 5):
            pass

    asyncio.run(run())


def test_a_share_that_does_not_come_is_refused():
    async def run():
        shares = Shares(2, 1, wait_s=0.01)
        async with shares.taken("a", 1):
            with pytest.raises(BusyError):
                async with shares.taken("a", 1):
                    raise AssertionError("two shares for one owner")
        async with shares.taken("a", 1):
            pass

    asyncio.run(run())


def test_strangers_cannot_fill_the_log(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cloister.wire.https.admission.time.monotonic", lambda: now[0])
    log = QuietLog()
    with caplog.at_level(logging.WARNING, "cloister.https"):
        for number in range(1000):
            log.line(f"fault {number}")
        assert len(caplog.records) == LOG_LINES_PER_MINUTE
        now[0] = 61.0
        log.line("a minute later")
    assert "980 lines were left out" in caplog.records[-2].getMessage()
    assert caplog.records[-1].getMessage() == "a minute later"
