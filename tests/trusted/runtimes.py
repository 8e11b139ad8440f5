"""A trusted machine that is played on this one, and what its callers ask of it."""

from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cloister.attest.policy import Policy
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.attest.simulated import SimulatedAttester, SimulatedMachine
from cloister.base.identity import create_certificate
from cloister.base.rng import SystemRandom
from cloister.trusted.hosted_session import HostSettings
from cloister.trusted.runtime_service import RuntimeService

MEASUREMENT = "ab" * 48
MANIFEST = RuntimeManifest("1.0", ("python", "serve"))


class Played:
    """The key of a simulated machine, in a file, and policies that accept it."""

    def __init__(self, folder, *, manifest=MANIFEST, **machine):
        self.folder, self.manifest = folder, manifest
        folder.mkdir(exist_ok=True)
        key = Ed25519PrivateKey.generate()
        self.key = folder / "machine.pem"
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        self.machine = SimulatedMachine(MEASUREMENT, **machine)

    @property
    def attester(self):
        return SimulatedAttester(self.key, self.machine)

    def policy(self, **changes):
        section = {"measurements": [MEASUREMENT], "keys": [self.public], **changes}
        runtime = section.pop("runtime", None)
        found = {"insecure-simulated": section}
        return Policy.of(found if runtime is None else {**found, "runtime": runtime})

    def save_policy(self, name, measurement="00" * 32):
        """A policy file that accepts the machine as the command plays it."""
        path = self.folder / name
        path.write_text(
            f'[insecure-simulated]\nmeasurements = ["{measurement}"]\nkeys = ["{self.public}"]\n'
        )
        return path

    @contextmanager
    def serving(self, *, attester=None, listen="127.0.0.1:0", **more):
        if not (self.folder / "certificate.pem").exists():
            create_certificate(self.folder, "trusted")
        more.setdefault("settings", HostSettings())
        service = RuntimeService(
            listen, folder=self.folder, attester=attester or self.attester,
            manifest=self.manifest, rng=SystemRandom(), **more,
        )  # fmt: skip
        try:
            yield service
        finally:
            service.close()
