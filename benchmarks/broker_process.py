"""A key broker in a process of its own, for a bundle of the digits model and played machines."""

import multiprocessing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.attest.clock import SYSTEM_CLOCK
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.attest.simulated import SimulatedAttester, SimulatedMachine
from cloister.base.rng import SystemRandom
from cloister.broker import broker_folder, broker_service
from cloister.broker.broker import Broker
from cloister.broker.broker_client import BrokerClient
from cloister.broker.release_ledger import LicenseTerms
from cloister.bundle import bundle_keys
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.codegen.compile_module import compile_module
from cloister.errors import BrokerUnavailable
from cloister.examples.digits_demo import model_file
from cloister.graph.hidden import hide
from cloister.graph.onnx.load import load
from cloister.plan import policies
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket

CODE = "ab" * 32
METERS = 1000
QUOTA = 1 << 20
DAY_S = 86400


@dataclass
class Vendor:
    """A vendor's folder: keys, a bundle, a policy, and the broker's own folder."""

    folder: Path

    @property
    def broker(self) -> Path:
        return self.folder / "broker"

    def make(self) -> None:
        """Make the files."""
        rng = SystemRandom()
        bundle_keys.create_keys(self.folder, rng=rng)
        bundle = self.folder / "digits.bundle"
        self._seal(bundle)
        policy = self.folder / "policy.toml"
        policy.write_text(f'[insecure-simulated]\nmeasurements = ["{CODE}"]\n')
        machine = Ed25519PrivateKey.generate()
        pem = machine.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / "machine.pem").write_bytes(pem)
        broker_folder.create(
            self.broker,
            vendor=self.folder / bundle_keys.VENDOR_PUBLIC,
            policy=policy,
            bundles=[(bundle, self.folder / bundle_keys.CONTENT_KEY)],
            collateral=(),
            terms=LicenseTerms(meters=METERS),
            now=SYSTEM_CLOCK.now(),
            rng=rng,
        )

    def _seal(self, path: Path) -> None:
        with model_file() as model:
            split = hide(load(str(model)), last=1)
        module = compile_module(split.hidden, salt=bytes(32), builds=("onnx",))
        plan = policies.make("enclave+ennclave", split.named(module.manifest.digest))
        SealedBundle.seal(
            path,
            plan,
            module,
            content_key=bundle_keys.load_content_key(self.folder / bundle_keys.CONTENT_KEY),
            signer=bundle_keys.load_signer(self.folder / bundle_keys.VENDOR_KEY),
            version=1,
            rng=SystemRandom(),
        )

    def client(self, url: str, *, license_id: str, meter: bytes) -> BrokerClient:
        """A runtime of a licence."""
        signer = bundle_keys.load_signer(self.folder / bundle_keys.VENDOR_KEY)
        certificate = broker_folder.certificate_digest(self.broker / "certificate.pem")
        now = int(datetime.now(UTC).timestamp())
        ticket = Ticket(
            license=license_id,
            bundle_id=SealedBundle.show(self.folder / "digits.bundle").bundle_id,
            vendor=signer.public_key().public_bytes_raw(),
            first_serial=0,
            last_serial=QUOTA,
            quota=QUOTA,
            not_before=now - DAY_S,
            not_after=now + DAY_S,
            outputs=OutputMode.LABEL,
            top=None,
            broker=certificate,
            counter=CounterRule(CounterKind.LEASE, certificate),
        )
        manifest = RuntimeManifest(
            "benchmark", (), bundle=ticket.bundle_id.hex(), vendor=ticket.vendor.hex(),
            license=license_id,
        )  # fmt: skip
        return BrokerClient(
            url,
            ticket.signed_by(signer),
            vendor=signer.public_key(),
            attester=SimulatedAttester(self.folder / "machine.pem", SimulatedMachine(CODE)),
            manifest=manifest.to_bytes(),
            meter=meter,
            rng=SystemRandom(),
            retry_for_s=0.0,
        )


class BrokerProcess:
    """Serves a folder until it is killed.

    Raises   BrokerUnavailable when it does not start
    """

    def __init__(self, folder: Path, *, listen: str = "127.0.0.1:0") -> None:
        server = multiprocessing.get_context("forkserver")
        # So a new process has its modules at once, and no thread of this one.
        server.set_forkserver_preload([__name__])
        self._pipe, theirs = server.Pipe()
        arguments = (folder, listen, theirs)
        self._process = server.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        if not self._pipe.poll(60):
            raise BrokerUnavailable("the broker did not start")
        self.url = self._pipe.recv()

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.join()


def _serve(folder: Path, listen: str, pipe: object) -> None:
    broker = Broker(folder, clock=SYSTEM_CLOCK)
    service = broker_service.serve(broker, listen=listen, rng=SystemRandom())
    pipe.send(service.url)
    pipe.recv()
