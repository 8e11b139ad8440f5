"""What the event loop may do itself: nothing that takes long, and nothing unrecorded."""

import threading

import numpy as np
import pytest

from authority.test_authority import mixed
from authority.test_service import served  # noqa: F401  (a fixture)
from cloister.authority import service, states
from cloister.authority.authority import Authority
from cloister.authority.ledger import NotAtOnceError
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.authority.service import QUICK_ELEMENTS
from cloister.authority.tokens import Caller
from cloister.errors import BudgetError, FunctionError
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.https.bodies import Body


def test_what_is_known_is_issued_at_once_and_the_same(kit):
    authority, ids = kit.authority, kit.ids
    ask = {"receiver": "server", "at_once": True}
    with pytest.raises(NotAtOnceError):
        authority.issue(Forward("set", ids, mixed(2)), **ask)
    assert authority.summary("set").counts["requests"] == 0
    first = authority.ask(Forward("set", ids[:5], mixed(2)), receiver="server")
    # The step from nothing to this function is known now, for any sample.
    rest = authority.issue(Forward("set", ids[5:], mixed(2)), **ask).wait()
    assert authority.spent("set").rank.tolist() == [2] * 10
    np.testing.assert_array_equal(
        np.concatenate([first, rest]),
        authority.ask(Forward("set", ids, mixed(2)), receiver="trusted"),
    )
    # A second function on top of it is not.
    with pytest.raises(NotAtOnceError):
        authority.issue(Forward("set", ids, mixed(2, seed=9)), **ask)
    assert authority.spent("set").rank.tolist() == [2] * 10


def test_a_refusal_is_worked_out_once(kit, monkeypatch):
    authority, worked = kit.authority, []
    extend = states._extend

    def counted(*arguments):
        worked.append(arguments)
        return extend(*arguments)

    monkeypatch.setattr(states, "_extend", counted)
    for _ in range(3):
        with pytest.raises(BudgetError, match="would bring the rank"):
            authority.ask(Forward("set", kit.ids, mixed(9)), receiver="server")
    assert len(worked) == 1
    with pytest.raises(BudgetError, match="would bring the rank"):
        authority.issue(Forward("set", kit.ids, mixed(9)), receiver="server", at_once=True)
    assert authority.summary("set").counts["refusals"] == 4
    assert authority.spent("set").rank.sum() == 0


def test_others_are_answered_while_the_ledger_is_busy(kit, served):  # noqa: F811
    authority, ids = kit.authority, kit.ids
    wanted = authority.ask(Forward("set", ids, mixed(2)), receiver="server")
    waiting, other = served("server"), served("server")
    other.describe("set")
    found = []
    asks = [
        lambda: waiting.ask(Forward("set", ids, mixed(2)), receiver="server"),
        lambda: waiting.ask(Labels("set", ids), receiver="server"),
    ]
    for ask in asks:
        with authority._ledger._accounts["set"].lock:
            asking = threading.Thread(target=lambda ask=ask: found.append(ask()))
            asking.start()
            asking.join(0.3)
            assert asking.is_alive()
            assert other.describe("set").samples == len(ids)
        asking.join(20)
        assert not asking.is_alive()
    np.testing.assert_array_equal(found[0], wanted)


@pytest.mark.parametrize("operation", ["forward", "labels"])
def test_only_small_requests_are_attempted(kit, operation):
    _, _, make = service.OPERATIONS[operation]
    caller = Caller("server", "x")
    geometry = Geometry((4, 4), 2, (1, 1), 2, (4, 4))

    def job(samples):
        ids = np.zeros(samples, np.int64)
        fields = {"dataset": "set", "receiver": "server", "geometry": geometry.to_fields()}
        return make(kit.authority, caller, Body(fields, (ids, np.ones((2, 4, 4, 2), np.int16))))

    assert job(1).attempt is not None
    assert job(QUICK_ELEMENTS).attempt is None


@pytest.mark.parametrize("receiver", ["server", "trusted"])
def test_a_request_without_samples_is_refused(kit, receiver):
    none = np.empty(0, np.int64)
    geometry = Geometry((4, 4), 2, (1, 1), 1, (4, 4))
    for ask in (
        lambda: kit.authority.ask(Forward("set", none, mixed(2)), receiver=receiver),
        lambda: kit.authority.ask(Labels("set", none), receiver=receiver),
        lambda: kit.authority.ask(
            Gradient("set", none, geometry, np.empty((0, 1, 1, 1), np.int16)), receiver=receiver
        ),
    ):
        with pytest.raises(FunctionError, match="names no sample"):
            ask()


def test_a_gradient_with_an_enormous_answer_is_refused(kit):
    # One output position, and a kernel that is nearly all padding: few products, many weights.
    geometry = Geometry((4, 4), 2, (1, 1), 1 << 18, (16, 16), pad=(6, 6))
    delta = np.zeros((1, 1, 1, 1 << 18), np.int16)
    with pytest.raises(FunctionError, match="too large"):
        kit.authority.ask(Gradient("set", kit.ids[:1], geometry, delta), receiver="trusted")


def test_a_fault_before_the_record_is_no_record(kit, monkeypatch):
    """A key whose charge did not come to the journal is charged when it is asked for again."""
    authority, ids, linear = kit.authority, kit.ids, mixed(2)
    for name in ("unwritten", "known"):
        with monkeypatch.context() as patch:

            def fails(*_, **__):
                raise MemoryError

            patch.setattr(states.States, name, fails)
            with pytest.raises(MemoryError):
                authority.ask(Forward("set", ids, linear), receiver="server")
        assert authority.spent("set").rank.sum() == 0
    with monkeypatch.context() as patch:
        patch.setattr(authority.database, "enqueue", fails)
        with pytest.raises(MemoryError):
            authority.ask(Forward("set", ids, linear), receiver="server")
    assert authority.spent("set").rank.sum() == 0
    authority.close()
    with Authority(kit.folder) as reopened:
        assert reopened.spent("set").rank.sum() == 0
        reopened.ask(Forward("set", ids, linear), receiver="server")
    kit.authority = Authority(kit.folder)
    assert kit.authority.spent("set").rank.tolist() == [2] * len(ids)


def test_linear_maps_of_this_size_take_part(kit):
    """The shape the tests above use is one that the authority issues."""
    linear = LinearMap(Geometry((4, 4), 2, (1, 1), 2, (4, 4)), np.ones((2, 4, 4, 2), np.int16))
    assert kit.authority.issue(
        Forward("set", kit.ids, linear), receiver="trusted", at_once=True
    ).wait().shape == (10, 1, 1, 2)
