"""The claims of a session whose trusted side is another machine: what its operator learns.

Without an appraisal that is rooted in hardware, the operator of that machine counts as able to read
its memory: a policy that accepts simulated evidence, or weakens what it asks for, protects nothing
from him.
"""

from collections.abc import Iterator
from dataclasses import replace

from cloister.plan.claims import (
    FILES,
    MEMORY,
    MODULES,
    WEIGHTS,
    Claims,
    Extent,
    Role,
    Statement,
    Verb,
    state,
)

SESSION = "the session"
_HARDWARE = (
    "the processor's maker keeps its keys, its firmware has no hole that the appraisal did not "
    "ask about, and nobody with the machine in his hands taps its memory"
)
_CHANNEL = (
    "X25519 or ML-KEM-768 is not broken; AES-256-GCM and HKDF-SHA-512 are secure; the policy names "
    "code that does what it says"
)
_SEEN = (
    "who calls when, and the sizes of plan, inputs and results; the rest is encrypted for the "
    "appraised runtime"
)


def with_runtime(claims: Claims, *, platform: str, hardware_rooted: bool) -> Claims:
    """The claims of a plan, for a session that runs on an appraised machine.

    platform          the format of its evidence
    hardware_rooted   as the appraisal says
    """
    found: list[Statement] = []
    for statement in claims.statements:
        found += _changed(statement, platform, hardware_rooted=hardware_rooted)
    found += [
        state(Role.NETWORK, Verb.LEARNS, SESSION, Extent.BOUNDED, _SEEN, _CHANNEL),
        state(Role.NETWORK, Verb.CAN, SESSION, Extent.BOUNDED, "delay it, or cut it off"),
    ]
    return replace(
        claims,
        subject=f"{claims.subject}, run by an attested machine ({platform})",
        statements=tuple(found),
    )


def _changed(statement: Statement, platform: str, *, hardware_rooted: bool) -> Iterator[Statement]:
    """A statement about the operator of the trusted side, or another one as it is."""
    if statement.role is not Role.HOST:
        yield statement
    elif statement.about == MEMORY:
        yield from _memory(statement, platform, hardware_rooted=hardware_rooted)
    elif statement.about == WEIGHTS and hardware_rooted:
        text = "those that its workers are sent, and the size of all"
        yield state(Role.HOST, statement.verb, WEIGHTS, Extent.BOUNDED, text, _HARDWARE)
    elif statement.about.startswith(MODULES) and hardware_rooted:
        text = statement.text
        yield state(Role.HOST, statement.verb, statement.about, Extent.BOUNDED, text, _HARDWARE)
    elif statement.about != FILES:  # no pads are stored
        yield statement


def _memory(statement: Statement, platform: str, *, hardware_rooted: bool) -> Iterator[Statement]:
    about, learns = statement.about, statement.verb is Verb.LEARNS
    if hardware_rooted:
        text = _SEEN if learns else "delay a request, refuse it, or end the session"
        what = f"hidden by the machine's processor ({platform}, hardware_rooted: true)"
        yield state(
            Role.HOST, statement.verb, about, Extent.BOUNDED, f"{text}; {what}" if learns else text,
            _HARDWARE,
        )  # fmt: skip
        return
    text = "change every result"
    if learns:
        text = (
            f"every input, value, result, pad and key: its evidence ({platform}) is not rooted in "
            "hardware (hardware_rooted: false)"
        )
    trusted = "it is trusted: every other line rests on that"
    yield state(Role.HOST, statement.verb, about, Extent.EVERYTHING, text, trusted)
