"""The claims of a session whose outputs a ticket buys: what the vendor is told of its use."""

from collections.abc import Iterator
from dataclasses import replace

from cloister.plan.claims import INPUTS, Claims, Extent, Role, Statement, Verb, state

USE = "the use of the ticket"
_TOLD = (
    "how many outputs are bought and when, and the evidence, the code and the address of the "
    "machine that runs: its key broker is told, and receipts say, but no input and no result"
)
_REFUSED = "refuse the key, revoke the licence, or let its counter stand still"


def with_ticket(claims: Claims) -> Claims:
    """The claims of a session, for one whose outputs a ticket buys."""
    return replace(claims, statements=tuple(_with_vendor(claims)))


def _with_vendor(claims: Claims) -> Iterator[Statement]:
    for statement in claims.statements:
        learns = (statement.role, statement.verb) == (Role.VENDOR, Verb.LEARNS)
        if learns and statement.about == INPUTS:
            yield replace(statement, text="nothing; no message to it has any of them")
            yield state(Role.VENDOR, Verb.LEARNS, USE, Extent.BOUNDED, _TOLD)
            yield state(Role.VENDOR, Verb.CAN, USE, Extent.BOUNDED, _REFUSED)
        else:
            yield statement
