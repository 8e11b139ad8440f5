"""What is fuzzed of attestation and all that rests on it: makers of cases by target."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fuzz.broker_cases import broker
from fuzz.bundle_cases import bundles
from fuzz.case import Maker
from fuzz.evidence_cases import evidence
from fuzz.handshake_cases import handshakes
from fuzz.ticket_cases import tickets

TARGETS: dict[str, Callable[[Path], AbstractContextManager[Maker]]] = {
    "evidence": evidence,
    "bundles": bundles,
    "tickets": tickets,
    "handshake": handshakes,
    "broker": broker,
}
