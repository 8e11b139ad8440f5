"""The rules of a release: whether a runtime gets the keys that its ticket is for.

A pure function of the ticket, the appraisal, the ledger's tables and the time. The rules stand in
one table, in the order in which they are asked; the first that does not hold refuses.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cloister.attest.appraisal import Appraisal
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.attest.verified_evidence import Format
from cloister.broker.release_ledger import LicenseTerms
from cloister.errors import CloisterError, ReleaseError
from cloister.tickets.ticket import Ticket

RELEASES_AN_HOUR = 1000
"""Of one licence: a runtime that asks without end does not fill the vendor's disk."""
HOUR_S = 3600
MAX_CHIP_CHARS = 160

_CLAIMS = {
    Format.SEV_SNP: ("measurement", "chip_id"),
    Format.TDX: ("mrtd", "ppid"),
    Format.SGX: ("mrenclave", "ppid"),
    Format.NITRO: ("pcr0", "module_id"),
    Format.TPM: ("registers", "key"),
    Format.SIMULATED: ("measurement", "chip_id"),
}
"""Which claims name the code and the processor."""
_REGISTER = "pcr"


class RefusalKind(StrEnum):
    """Why a request is refused; refusals are counted by it."""

    EVIDENCE = "evidence"
    TICKET = "ticket"
    BROKER = "broker"
    TIME = "time"
    RUNTIME = "runtime"
    BUNDLE = "bundle"
    REVOKED = "revoked"
    CHIPS = "chips"
    METERS = "meters"
    RATE = "rate"
    COUNTER = "counter"


@dataclass(frozen=True)
class Machine:
    """Where a key goes, as the ledger names it.

    chip   empty: its evidence names none
    """

    format: str
    measurement: str
    chip: str

    @staticmethod
    def of(appraisal: Appraisal) -> "Machine":
        """The machine whose evidence was accepted.

        Raises   ReleaseError for evidence that does not say which code runs
        """
        evidence = appraisal.evidence
        code, chip = _CLAIMS.get(evidence.format, ("", ""))
        claims = {**evidence.claims, "registers": _registers(evidence.claims)}
        measurement, chip_id = claims.get(code), claims.get(chip)
        if not isinstance(measurement, bytes):
            raise ReleaseError(
                f"evidence of format {evidence.format.value} names no code for the ledger; keys "
                f"are released to {', '.join(kind.value for kind in _CLAIMS)}"
            )
        return Machine(evidence.format.value, measurement.hex(), _named(chip_id))


def _registers(claims: Mapping[str, object]) -> bytes | None:
    """SHA-256 over a TPM's registers with their names, of all that it has quoted."""
    quoted = {name: one for name, one in claims.items() if name.startswith(_REGISTER)}
    parts = [name.encode() + one for name, one in sorted(quoted.items()) if isinstance(one, bytes)]
    return hashlib.sha256(b"".join(parts)).digest() if parts else None


def _named(chip: object) -> str:
    # Hosts may mask the chip's id: then it is all zero.
    if isinstance(chip, bytes):
        return chip.hex()[:MAX_CHIP_CHARS] if any(chip) else ""
    return chip[:MAX_CHIP_CHARS] if isinstance(chip, str) else ""


@dataclass(frozen=True)
class Standing:
    """What the ledger says of a licence.

    has_bundle   whether the broker holds the key of the ticket's bundle
    chips        how many were given the key; has_chip: whether this one is among them
    meters       how many have a counter; has_meter: whether this one is among them
    releases     in the last hour
    """

    terms: LicenseTerms
    has_bundle: bool
    chips: int
    has_chip: bool
    meters: int
    has_meter: bool
    releases: int


@dataclass(frozen=True)
class ReleaseRequest:
    """All that a release is decided by.

    broker    SHA-256 of this broker's certificate
    """

    ticket: Ticket
    machine: Machine
    manifest: RuntimeManifest
    relayable: bool
    meter: bytes
    broker: bytes
    now: datetime
    standing: Standing


def require_broker(asked: ReleaseRequest) -> None:
    """The ticket is for this broker.

    Raises   ReleaseError
    """
    if asked.ticket.broker != asked.broker:
        named = "none" if asked.ticket.broker is None else asked.ticket.broker.hex()
        raise ReleaseError(
            f"ticket: broker: expected {asked.broker.hex()}, found {named}; ask the vendor for a "
            "ticket of this broker"
        )


def require_time(asked: ReleaseRequest) -> None:
    """The ticket is valid now.

    Raises   TicketError
    """
    asked.ticket.require_time(asked.now)


def require_bound(asked: ReleaseRequest) -> None:
    """The evidence binds the machine that answers.

    Raises   ReleaseError
    """
    if asked.relayable:
        raise ReleaseError(
            f"evidence of format {asked.machine.format} can be relayed: it binds no machine, and "
            "no key is released to it"
        )


def require_runtime(asked: ReleaseRequest) -> None:
    """The runtime was started for the ticket's bundle and licence.

    Raises   ReleaseError
    """
    ticket, manifest = asked.ticket, asked.manifest
    for name, expected, found in (
        ("bundle", ticket.bundle_id.hex(), manifest.bundle),
        ("vendor", ticket.vendor.hex(), manifest.vendor),
        ("license", ticket.license, manifest.license),
    ):
        if found != expected:
            raise ReleaseError(
                f"manifest: {name}: expected {expected}, found {found or 'none'}; start the "
                "runtime for this ticket and its bundle"
            )


def require_bundle(asked: ReleaseRequest) -> None:
    """The broker has the bundle.

    Raises   ReleaseError
    """
    if not asked.standing.has_bundle:
        raise ReleaseError(
            f"ticket: bundle {asked.ticket.bundle_id.hex()}: this broker has no key of it; the "
            "vendor adds it by `cloister broker add`"
        )


def require_not_revoked(asked: ReleaseRequest) -> None:
    """The vendor did not revoke the licence.

    Raises   ReleaseError
    """
    if asked.standing.terms.revoked:
        raise ReleaseError(f"licence {asked.ticket.license}: the vendor has revoked it")


def require_chip(asked: ReleaseRequest) -> None:
    """The licence may run on one processor more, or on this one already.

    Raises   ReleaseError
    """
    standing, chip = asked.standing, asked.machine.chip
    most = standing.terms.chips
    if most is None:
        return
    if not chip:
        raise ReleaseError(
            f"licence {asked.ticket.license}: is for {most} chips, and evidence of format "
            f"{asked.machine.format} names no chip here; the vendor can allow any number"
        )
    if not standing.has_chip and standing.chips >= most:
        raise ReleaseError(
            f"licence {asked.ticket.license}: chip {chip[:16]}: expected one of the {most} that "
            "have the key already; ask the vendor for more"
        )


def require_meter(asked: ReleaseRequest) -> None:
    """The ticket may have one meter more, or has this one already.

    Raises   ReleaseError
    """
    standing, most = asked.standing, asked.standing.terms.meters
    if not standing.has_meter and standing.meters >= most:
        raise ReleaseError(
            f"licence {asked.ticket.license}: meter {asked.meter.hex()}: expected one of the "
            f"{most} that its ticket has already; go on with their folder, or ask the vendor"
        )


def require_rate(asked: ReleaseRequest) -> None:
    """The licence did not ask too often.

    Raises   ReleaseError
    """
    if asked.standing.releases >= RELEASES_AN_HOUR:
        raise ReleaseError(
            f"licence {asked.ticket.license}: expected at most {RELEASES_AN_HOUR} releases an "
            f"hour, found {asked.standing.releases}; keep a session open, and try again later"
        )


RULES: Sequence[tuple[RefusalKind, Callable[[ReleaseRequest], None]]] = (
    (RefusalKind.EVIDENCE, require_bound),
    (RefusalKind.RUNTIME, require_runtime),
    (RefusalKind.BROKER, require_broker),
    (RefusalKind.TIME, require_time),
    (RefusalKind.REVOKED, require_not_revoked),
    (RefusalKind.BUNDLE, require_bundle),
    (RefusalKind.CHIPS, require_chip),
    (RefusalKind.METERS, require_meter),
    (RefusalKind.RATE, require_rate),
)


def refusal(asked: ReleaseRequest) -> tuple[RefusalKind, CloisterError] | None:
    """The first rule that does not hold, and its reason; None: the keys may be released."""
    for kind, rule in RULES:
        try:
            rule(asked)
        except CloisterError as error:
            return kind, error
    return None
