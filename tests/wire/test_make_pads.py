"""Blocks of pads over every link, and what a link does with answers of another form."""

import numpy as np
import pytest

from cloister.errors import PlanError, WorkerUnavailable
from trusted.links import DirectLink
from wire.loopback import (
    KINDS,
    ask,
    ask_block,
    blinded,
    block_of,
    honest,
    linear,
    slow,
    slow_terms,
)

MAPS = {1: linear(), 4: linear(9)}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_come_over_every_link_between_other_requests(kind):
    with honest(kind) as link:
        for target, one in MAPS.items():
            link.load_linear(target, one)
        for number, rows in enumerate((1, 3), start=1):
            message = block_of(MAPS, request_id=2 * number, rows=rows)
            np.testing.assert_array_equal(ask_block(link, message), slow_terms(message, MAPS))
            x = blinded()
            assert (ask(link, 2 * number + 1, x) == slow(linear(), x)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_several_blocks_may_be_outstanding(kind):
    with honest(kind) as link:
        for target, one in MAPS.items():
            link.load_linear(target, one)
        messages = [block_of(MAPS, request_id=i, first_id=100 * i) for i in (1, 2, 3)]
        for message in messages:
            link.make_pads(message)
        for message in reversed(messages):
            (reply,) = link.receive(message.request_id, timeout_s=30)
            np.testing.assert_array_equal(reply.expose_unchecked(), slow_terms(message, MAPS))
        for message in messages:
            link.release(message.request_id)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_leaves_the_link_usable(kind):
    with honest(kind) as link:
        link.load_linear(1, MAPS[1])
        link.make_pads(block_of(MAPS, request_id=1))
        with pytest.raises(WorkerUnavailable, match="target 4 is no linear map"):
            link.receive(1, timeout_s=30)
        link.release(1)
        link.load_linear(4, MAPS[4])
        message = block_of(MAPS, request_id=2)
        np.testing.assert_array_equal(ask_block(link, message), slow_terms(message, MAPS))


def test_a_link_that_knows_no_pads_says_so():
    with pytest.raises(PlanError, match="makes no pads"):
        DirectLink().make_pads(block_of(MAPS))


def test_what_no_network_carries_counts_as_encrypted():
    for kind, encrypted in (("in-process", True), ("shm", True), ("rpc", False)):
        with honest(kind) as link:
            assert link.encrypted is encrypted
    assert not DirectLink().encrypted
