"""Evidence of a program that plays a machine: for tests and demonstrations, on any computer.

It proves that the holder of a key made it, and nothing about the machine: its format has
`insecure` in its name, no policy accepts it unless a section of that name says so, and no result
that rests on it is hardware-rooted.
"""

import json
import tomllib
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from cloister.attest.check_tree import Check
from cloister.attest.report_data import REPORT_DATA_BYTES, require_report_data
from cloister.attest.verified_evidence import Format, Revocation, Rooted, VerifiedEvidence
from cloister.base.reading import open_regular, parsing
from cloister.base.typed_json import from_json
from cloister.errors import AttestationError, InputError

KIND = "cloister-insecure-simulated-1"
MAX_KEY_BYTES = 65536
WHAT = "simulated evidence"


@dataclass(frozen=True)
class SimulatedMachine:
    """What a played machine says of itself."""

    measurement: str
    chip_id: str = "00" * 32
    host_data: str = "00" * 32
    debug: bool = False
    svn: int = 1

    def evidence(self, report_data: bytes, *, key: Ed25519PrivateKey) -> bytes:
        """Signed evidence that binds 64 bytes.

        Raises   AttestationError for more or fewer
        """
        require_report_data(report_data)
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        body = {**asdict(self), "report_data": report_data.hex(), "key": public.hex()}
        return json.dumps(
            {"kind": KIND, "body": body, "signature": key.sign(_signed(body)).hex()}
        ).encode()


@dataclass(frozen=True)
class SimulatedAttester:
    """Plays a machine whose key is a file (attester.py: Attester).

    machine   None: what the file says in front of the key, in TOML: measurement = "11..",
              debug = true and the other fields of `SimulatedMachine`; zeros without it

    Raises   InputError when the file holds no Ed25519 key, or describes no machine
    """

    path: Path
    machine: SimulatedMachine | None = None

    @property
    def name(self) -> str:
        """See Attester."""
        return f"insecure: simulated with {self.path}"

    @property
    def format(self) -> Format:
        """See Attester."""
        return Format.SIMULATED

    def evidence(self, report_data: bytes) -> bytes:
        """See Attester."""
        with parsing(f"{self.path}: is no Ed25519 key in PEM"), open_regular(self.path) as file:
            data = file.read(MAX_KEY_BYTES)
            key = load_pem_private_key(data, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{self.path}: is no Ed25519 key; make one with `openssl genpkey`")
        return (self.machine or _described(data, self.path)).evidence(report_data, key=key)


def _described(data: bytes, path: Path) -> SimulatedMachine:
    """The machine that stands in front of the key."""
    with parsing(f"{path}: describes no machine in TOML"):
        found = tomllib.loads(data.partition(b"-----BEGIN")[0].decode())
    machine = asdict(SimulatedMachine("00" * 32)) | found
    return from_json(SimulatedMachine, machine, where=f"{path}: machine")


@dataclass(frozen=True)
class _Body:
    measurement: str
    chip_id: str
    host_data: str
    debug: bool
    svn: int
    report_data: str
    key: str


@dataclass(frozen=True)
class _Envelope:
    kind: str
    body: _Body
    signature: str


def looks_like(data: bytes) -> bool:
    """Whether bytes are simulated evidence."""
    return data.lstrip().startswith(b"{") and KIND.encode() in data[:200]


def verify(data: bytes, *, now: datetime, check: Check) -> VerifiedEvidence:
    """Verify the signature by the key that the evidence itself names; policies pin the key.

    Raises   AttestationError
    """
    check.expect("form", "signature")
    with check.step("form"), parsing(f"{WHAT}: is damaged", kind=AttestationError):
        try:
            envelope = from_json(_Envelope, json.loads(data), where=WHAT)
        except InputError as error:
            raise AttestationError(str(error)) from None
        body = envelope.body
        report_data, key = bytes.fromhex(body.report_data), bytes.fromhex(body.key)
        if envelope.kind != KIND or len(report_data) != REPORT_DATA_BYTES:
            raise AttestationError(f"{WHAT}: is of another kind, or binds other than 64 bytes")
    with check.step("signature"), parsing(f"{WHAT}: key", kind=AttestationError):
        try:
            public = Ed25519PublicKey.from_public_bytes(key)
            public.verify(bytes.fromhex(envelope.signature), _signed(asdict(body)))
        except InvalidSignature:
            raise AttestationError(f"{WHAT}: signature is wrong; it was changed") from None
    claims = {
        "measurement": bytes.fromhex(body.measurement),
        "chip_id": bytes.fromhex(body.chip_id),
        "host_data": bytes.fromhex(body.host_data),
        "key": key,
        "debug": body.debug,
        "svn": body.svn,
    }
    return VerifiedEvidence(
        Format.SIMULATED, report_data, claims, Rooted.SOFTWARE, False, Revocation.UNKNOWN,
        datetime.max.replace(tzinfo=now.tzinfo), check,
    )  # fmt: skip


def _signed(body: dict[str, object]) -> bytes:
    return b"cloister insecure simulated v1\0" + json.dumps(body, sort_keys=True).encode()
