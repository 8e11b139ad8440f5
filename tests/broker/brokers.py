"""A vendor with a bundle and tickets, a broker of that vendor, and runtimes that are played."""

import contextlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bundle.bundles import KEY, SIGNER, VENDOR, module, sealed
from cloister.attest.clock import Clock
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.attest.simulated import SimulatedAttester, SimulatedMachine
from cloister.base import files
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.broker import broker_folder, broker_service
from cloister.broker.broker import Broker
from cloister.broker.broker_client import BrokerClient
from cloister.broker.ledger_entry import EntryKind
from cloister.broker.ledger_verification import read_ledger
from cloister.broker.release_ledger import LicenseTerms
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket

CODE, CHIP = "ab" * 32, "c1" * 32
METER = bytes(range(16))
MACHINE = SimulatedMachine(CODE, CHIP)
BEGIN = datetime(2026, 5, 1, tzinfo=UTC)
MACHINE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
POLICY = f'[insecure-simulated]\nmeasurements = ["{CODE}"]\n'


def manifest_for(ticket, **changed):
    """A runtime that was started for a ticket."""
    made = RuntimeManifest(
        "1.0", ("python", "-m", "cloister"), bundle=ticket.bundle_id.hex(),
        vendor=ticket.vendor.hex(), license=ticket.license,
    )  # fmt: skip
    return replace(made, **changed)


@dataclass
class SetTime:
    """A clock that a test sets."""

    now: datetime = BEGIN

    def __call__(self):
        return self.now

    def forward(self, **by):
        self.now += timedelta(**by)


@dataclass
class Vendor:
    """All that a vendor has in a folder."""

    folder: Path
    time: SetTime = field(default_factory=SetTime)
    certificate: bytes = b""

    @staticmethod
    def make(folder, *, terms=None, policy=POLICY, bundles=1):
        made = Vendor(folder)
        files.create(folder / "content.key", KEY, private=True)
        pem = VENDOR.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "vendor.pub").write_bytes(pem)
        (folder / "policy.toml").write_text(policy)
        (folder / "machine.pem").write_bytes(
            MACHINE_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        for i in range(bundles):
            sealed(made.bundle(i), module(i), rng=InsecureSeededRandom(i), version=i + 1)
        made.certificate = broker_folder.create(
            made.broker,
            vendor=folder / "vendor.pub",
            policy=folder / "policy.toml",
            bundles=[(made.bundle(i), folder / "content.key") for i in range(bundles)],
            collateral=(),
            terms=terms or LicenseTerms(),
            now=BEGIN,
            rng=SystemRandom(),
        )
        return made

    @property
    def broker(self):
        return self.folder / "broker"

    def bundle(self, number=0):
        return self.folder / f"{number}.bundle"

    def ticket(self, number=0, **changed):
        """A ticket that is good; with `changed`, one that may not be."""
        good = Ticket(
            license="clinic",
            bundle_id=SealedBundle.show(self.bundle(number)).bundle_id,
            vendor=VENDOR.public_bytes_raw(),
            first_serial=100,
            last_serial=199,
            quota=10,
            not_before=int(BEGIN.timestamp()),
            not_after=int((BEGIN + timedelta(days=30)).timestamp()),
            outputs=OutputMode.LABEL,
            top=None,
            broker=self.certificate,
            counter=CounterRule(CounterKind.LEASE, self.certificate),
        )
        return replace(good, **changed)

    def opened(self):
        return contextlib.closing(Broker(self.broker, clock=Clock(self.time)))

    @contextlib.contextmanager
    def serving(self, listen="127.0.0.1:0", **limits):
        with (
            self.opened() as broker,
            broker_service.serve(broker, listen=listen, rng=SystemRandom(), **limits) as service,
        ):
            yield service

    def attester(self, machine=MACHINE):
        return SimulatedAttester(self.folder / "machine.pem", machine)

    def client(self, url, ticket=None, *, machine=MACHINE, signer=SIGNER, **changed):
        ticket = ticket or self.ticket()
        given = {
            "vendor": VENDOR,
            "attester": self.attester(machine),
            "manifest": manifest_for(ticket).to_bytes(),
            "meter": METER,
            "rng": SystemRandom(),
            "retry_for_s": 0.0,
        } | changed
        return BrokerClient(url, ticket.signed_by(signer), **given)

    def ledger(self):
        return read_ledger(self.broker / "releases.sqlite")

    def releases(self):
        return [e for e in self.ledger().entries if e.kind is EntryKind.RELEASE]
