"""The ways in which a worker's reply goes on: there is none past a check that the plan wants."""

from pathlib import Path

import numpy as np
import pytest

import cloister.trusted
from cloister.errors import PlanError, VerificationError
from cloister.plan.protection import BLINDED, BLINDED_VERIFIED, ENCLAVE, OPEN, VERIFIED
from cloister.trusted.checks import Accepted, accept, accept_unchecked
from cloister.wire.messages import Unchecked

SUMS = np.array([5, 7], np.uint64)


def reading(reply):
    """Twice the reply, and what it sums to."""
    return 2 * reply, reply.sum(axis=1).astype(np.uint64)


def test_accept_returns_what_was_read():
    accepted = accept(Unchecked(np.array([[2, 3], [7, 0]])), reading, SUMS, node="conv")
    assert isinstance(accepted, Accepted)
    np.testing.assert_array_equal(accepted.values, [[4, 6], [14, 0]])


@pytest.mark.parametrize(
    "reply", [[[2, 3], [7, 1]], [[7, 0], [5, 0]], [[5, 0]], [[5, 0], [7, 0], [0, 0]]]
)
def test_accept_raises_for_every_other_sum(reply):
    with pytest.raises(VerificationError, match="node 'conv'"):
        accept(Unchecked(np.array(reply)), reading, SUMS, node="conv")


@pytest.mark.parametrize("protection", [VERIFIED, BLINDED_VERIFIED, ENCLAVE])
def test_a_checked_node_is_not_accepted_unchecked(protection):
    reply = Unchecked(np.zeros(3))
    with pytest.raises(PlanError, match=r"node 'conv' is .*: no answer is accepted unchecked"):
        accept_unchecked(reply, protection=protection, node="conv")


@pytest.mark.parametrize("protection", [OPEN, BLINDED])
def test_an_unchecked_node_is_accepted_as_it_came(protection):
    reply = np.arange(3)
    assert accept_unchecked(Unchecked(reply), protection=protection, node="c").values is reply


def test_an_unchecked_reply_has_no_values():
    with pytest.raises(AttributeError):
        Unchecked(1).values  # noqa: B018


def test_no_other_module_of_the_trusted_side_reads_unchecked_replies():
    folder = Path(cloister.trusted.__file__).parent
    reading = [path.name for path in folder.rglob("*.py") if "expose_unchecked" in path.read_text()]
    assert reading == ["checks.py"]
