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
    MESSAGES,
    MODULES,
    QUERIES,
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
    "who calls when, and the sizes of plan, inputs and results; the rest of what caller and "
    "machine say is encrypted for the appraised runtime"
)
_OPERATES = "what a worker {verb}: it chooses the workers, and carries their messages"


_ASKED = "ask as often as the ticket has outputs, about inputs of its choice"
_ANSWERED = "what the outputs that the ticket releases tell of the hidden weights"
_COUNTED = f"{_HARDWARE}; the ticket's counter never goes down"


def with_runtime(
    claims: Claims, *, platform: str, hardware_rooted: bool, metered: bool = False
) -> Claims:
    """The claims of a plan, for a session that runs on an appraised machine.

    platform          the format of its evidence
    hardware_rooted   as the appraisal says
    metered           a ticket buys the outputs
    """
    found: list[Statement] = []
    modules = any(one.about.startswith(MODULES) for one in claims.statements)
    for statement in claims.statements:
        if (statement.role, statement.about) == (Role.HOST, MEMORY):
            found.append(_memory(statement.verb, platform, modules, rooted=hardware_rooted))
            if hardware_rooted:
                found += _of_workers(claims, statement.verb)
        else:
            found += _changed(statement, hardware_rooted=hardware_rooted, metered=metered)
    found += [
        state(Role.NETWORK, Verb.LEARNS, SESSION, Extent.BOUNDED, _SEEN, _CHANNEL),
        state(Role.NETWORK, Verb.CAN, SESSION, Extent.BOUNDED, "delay it, or cut it off"),
    ]
    return replace(
        claims,
        subject=f"{claims.subject}, run by an attested machine ({platform})",
        statements=tuple(found),
    )


def _changed(statement: Statement, *, hardware_rooted: bool, metered: bool) -> Iterator[Statement]:
    """A statement about the operator of the trusted side, or another one as it is."""
    if statement.role is not Role.HOST:
        yield statement
    elif statement.about == WEIGHTS and hardware_rooted:
        text = "those that its workers are sent, and the size of all"
        yield state(Role.HOST, statement.verb, WEIGHTS, Extent.BOUNDED, text, _HARDWARE)
    elif statement.about.startswith(QUERIES) and hardware_rooted and metered:
        text = _ASKED if statement.verb is Verb.CAN else _ANSWERED
        yield state(Role.HOST, statement.verb, statement.about, Extent.BOUNDED, text, _COUNTED)
    elif statement.about.startswith(MODULES) and hardware_rooted:
        text = statement.text
        yield state(Role.HOST, statement.verb, statement.about, Extent.BOUNDED, text, _HARDWARE)
    elif statement.about != FILES:  # no pads are stored
        yield statement


def _of_workers(claims: Claims, verb: Verb) -> Iterator[Statement]:
    """What the operator of the machine learns or can by its workers, if the plan has any."""
    for statement in claims.of(Role.NETWORK, verb):
        if statement.about == MESSAGES:
            text = _OPERATES.format(verb=verb.value)
            yield replace(statement, role=Role.HOST, text=text)


def _memory(verb: Verb, platform: str, modules: bool, *, rooted: bool) -> Statement:
    learns = verb is Verb.LEARNS
    if rooted:
        text = "delay a request, refuse it, or end the session"
        if learns:
            text = f"{_SEEN}; its processor hides the memory ({platform}, hardware_rooted: true)"
        return state(Role.HOST, verb, MEMORY, Extent.BOUNDED, text, _HARDWARE)
    text = "change every result"
    if learns:
        text = (
            f"every input, value, result, pad and key{' and the weights in modules' * modules}: "
            f"its evidence ({platform}) is not rooted in hardware (hardware_rooted: false)"
        )
    trusted = "it is trusted: every other line rests on that"
    return state(Role.HOST, verb, MEMORY, Extent.EVERYTHING, text, trusted)
