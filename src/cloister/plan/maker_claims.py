"""The claims of a session whose pads are made by makers: what each of the two roles learns."""

from collections.abc import Iterator
from dataclasses import replace

from cloister.plan.claims import SENT, USE, Claims, Extent, Role, Statement, Verb, state
from cloister.plan.protection import BLINDED_VERIFIED
from cloister.ring.freivalds import SOUNDNESS_BITS

INPUTS, RESULTS, PADS = "inputs", "results", "pads"

_APART = "no maker of these pads is of its party"
_NO_READER = "no worker of the session, and no reader of a worker's messages, is of its party"
_COEFFICIENTS = "check coefficients stay secret"
_ONE_PARTY = "every value that these pads blind: a maker of the pads and a worker are of one party"


def with_makers(claims: Claims, *, one_party: bool, encrypted: bool) -> Claims:
    """The claims of a checked plan, for a session in which makers make its pads.

    one_party   whether a maker and a worker are known to be of one party
    encrypted   whether no listener can read what the makers are sent
    """
    statements = [_of_worker(statement, one_party=one_party) for statement in claims.statements]
    end = max(i for i, s in enumerate(statements) if s.role is Role.WORKER) + 1
    added = list(_of_maker(one_party=one_party))
    if not encrypted:
        text = (
            "the seed of every pad, and with a worker's messages every value they blind: the "
            "makers are reached without encryption"
        )
        statements.append(state(Role.NETWORK, Verb.LEARNS, PADS, Extent.EVERYTHING, text))
    return replace(
        claims,
        subject=f"{claims.subject}, pads by makers",
        statements=(*statements[:end], *added, *_together(statements[end:])),
    )


def _together(statements: list[Statement]) -> Iterator[Statement]:
    """Statements of one role beside each other, in the order in which the roles come."""
    for role in dict.fromkeys(statement.role for statement in statements):
        yield from (statement for statement in statements if statement.role is role)


def _of_worker(statement: Statement, *, one_party: bool) -> Statement:
    """What the worker learns of blinded nodes rests on the makers too."""
    blinded = statement.about.startswith(f"{BLINDED_VERIFIED.name} ")
    if statement.role is not Role.WORKER or statement.verb is not Verb.LEARNS or not blinded:
        return statement
    if one_party:
        return state(Role.WORKER, Verb.LEARNS, statement.about, Extent.EVERYTHING, _ONE_PARTY)
    return state(
        Role.WORKER, Verb.LEARNS, statement.about, statement.extent, statement.text,
        "; ".join(filter(None, (statement.assumes, _APART))),
    )  # fmt: skip


def _of_maker(*, one_party: bool) -> Iterator[Statement]:
    if one_party:
        yield state(Role.MAKER, Verb.LEARNS, INPUTS, Extent.EVERYTHING, _ONE_PARTY)
    else:
        text = "nothing: it is sent weights and seeds, and no message of the session"
        yield state(Role.MAKER, Verb.LEARNS, INPUTS, Extent.NOTHING, text, _NO_READER)
    text = "every pad that it makes; with the messages of a worker, every value they blind"
    yield state(Role.MAKER, Verb.LEARNS, PADS, Extent.EVERYTHING, text)
    seen = ", ".join((SENT["Hello"], SENT["LoadLinear"], SENT["MakePads"]))
    yield state(Role.MAKER, Verb.LEARNS, USE, Extent.BOUNDED, seen)
    text = f"change a value unnoticed with probability at most 2^-{SOUNDNESS_BITS:.1f} per layer"
    yield state(Role.MAKER, Verb.CAN, RESULTS, Extent.BOUNDED, text, _COEFFICIENTS)
    text = (
        "have requests refused, and an honest worker dropped with it: of a wrong answer it cannot "
        "be told whose fault it is"
    )
    yield state(Role.MAKER, Verb.CAN, "requests", Extent.BOUNDED, text)
