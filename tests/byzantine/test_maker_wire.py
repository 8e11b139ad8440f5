"""Makers that lie, over every transport: lies about form are refused, others are told."""

import pytest

from cloister.errors import ProtocolError
from cloister.worker.byzantine import VALUE_LIES, Lie
from wire.loopback import KINDS, ask_block, block_of, linear, slow_terms

MAPS = {1: linear(), 4: linear(9)}
# Of a block no answer is old before the second.
FORM_LIES = sorted(set(Lie) - VALUE_LIES - {Lie.HANG, Lie.DIE, Lie.STALE_ID})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lie", FORM_LIES)
def test_answers_of_another_form_are_refused(lying_link, kind, lie):
    with lying_link(kind, lie) as link:
        for target, one in MAPS.items():
            link.load_linear(target, one)
        with pytest.raises(ProtocolError):
            ask_block(link, block_of(MAPS))
        with pytest.raises(ProtocolError):
            ask_block(link, block_of(MAPS, request_id=2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lie", sorted(VALUE_LIES))
def test_lies_about_values_pass_the_link_and_are_lies(lying_link, kind, lie):
    with lying_link(kind, lie) as link:
        for target, one in MAPS.items():
            link.load_linear(target, one)
        first, second = block_of(MAPS), block_of(MAPS, request_id=2, first_id=70)
        told = [(message, ask_block(link, message)) for message in (first, second)]
        assert any((terms != slow_terms(message, MAPS)).any() for message, terms in told)
