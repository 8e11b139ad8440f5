"""A ticket has the vendor told of its use, and bounds the answers of an attested machine."""

import pytest

from cloister.plan.claims import INPUTS, Extent, Role, Verb
from cloister.plan.runtime_claims import with_runtime
from cloister.plan.ticket_claims import USE, with_ticket
from plan.test_module_plan import module_plan


def of(found, role, verb, about):
    (one,) = [s for s in found.of(role, verb) if s.about.startswith(about)]
    return one


def test_the_vendor_learns_how_the_ticket_is_used():
    before = module_plan().claims()
    found = with_ticket(before)
    assert "no message goes to it" in of(before, Role.VENDOR, Verb.LEARNS, INPUTS).text
    inputs = of(found, Role.VENDOR, Verb.LEARNS, INPUTS)
    assert inputs.extent is Extent.NOTHING
    assert "no message goes to it" not in inputs.text
    assert "how many outputs are bought" in of(found, Role.VENDOR, Verb.LEARNS, USE).text
    assert of(found, Role.VENDOR, Verb.CAN, USE).extent is Extent.BOUNDED
    other = [s for s in found.statements if s.about not in (USE, INPUTS)]
    assert other == [s for s in before.statements if s.about != INPUTS]


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("metered", [False, True])
def test_a_ticket_bounds_what_is_asked_where_hardware_hides_the_meter(rooted, metered):
    found = with_runtime(
        module_plan().claims(), platform="tdx", hardware_rooted=rooted, metered=metered
    )
    asks = of(found, Role.HOST, Verb.CAN, "answers of modules")
    assert asks.extent is (Extent.BOUNDED if rooted and metered else Extent.EVERYTHING)
    assert ("as often as the ticket" in asks.text) is (rooted and metered)
