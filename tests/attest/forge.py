"""Evidence made here, under roots made here: what real vectors do not show, and attackers would."""

import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attest.collateral import Collateral

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
AMD = "1.3.6.1.4.1.3704.1."


@cache
def rsa_key(name):
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(name, curve=ec.SECP384R1):
    return ec.generate_private_key(curve())


def certificate(
    subject, key, issuer, issuer_key, *, ca=False, path_length=None, start=NOW, days=30,
    extensions=(), usage=None, critical=(), pss=True,
):  # fmt: skip
    """A certificate signed by `issuer_key`; names are common names."""

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(days=1))
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    for oid, value in extensions:
        held = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(held, critical=oid in critical)
    if isinstance(issuer_key, rsa.RSAPrivateKey):
        return builder.sign(issuer_key, hashes.SHA384(), rsa_padding=PSS if pss else None)
    return builder.sign(issuer_key, hashes.SHA384())


@dataclass
class Amd:
    """A vendor of chips: its root, its authority and the certificate of one chip."""

    product: str = "Genoa"
    leaf: str = "SEV-VCEK"
    chip: bytes = bytes(range(64))
    levels: dict = field(
        default_factory=lambda: {"bootloader": 9, "tee": 0, "snp": 23, "microcode": 213, "fmc": 1}
    )
    leaf_options: dict = field(default_factory=dict)
    root_key: str = "ark"
    leaf_key: str = "vcek"
    named: str = ""
    wrapped: bool = False

    def __post_init__(self):
        ark, ask = f"ARK-{self.product}", f"SEV-{self.product}"
        root_key = rsa_key(self.root_key)
        self.root = certificate(ark, root_key, ark, root_key, ca=True, days=9000)
        self.ask = certificate(ask, rsa_key("ask"), ark, root_key, ca=True, path_length=0)
        oids = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
        extensions = [(AMD + oids[name], integer(level)) for name, level in self.levels.items()]
        vcek = self.leaf == "SEV-VCEK"
        extensions.append((AMD + "2", text(self.named or self.product + "-B1" * vcek)))
        if not vcek:
            extensions.append((AMD + "5", text("CN=cc-us-east-2.amazonaws.com")))
        if vcek:
            hwid = self.chip[:8] if self.product == "Turin" else self.chip
            octets = bytes([4, len(hwid)]) if self.wrapped else b""
            extensions.append((AMD + "4", octets + hwid))
        self.vcek = certificate(
            self.leaf, ec_key(self.leaf_key), ask, rsa_key("ask"), extensions=extensions,
            **self.leaf_options,
        )  # fmt: skip

    @property
    def collateral(self):
        return Collateral(certificates=(self.vcek, self.ask))

    def tcb(self, **changed):
        levels = {**self.levels, **changed}
        if self.product == "Turin":
            octets = [levels[n] for n in ("fmc", "bootloader", "tee", "snp")] + [0, 0, 0]
        else:
            octets = [levels["bootloader"], levels["tee"], 0, 0, 0, 0, levels["snp"]]
        return bytes([*octets, levels["microcode"]])

    def report(self, *, version=5, changes=(), key=None, tcb=None):
        """A signed report; `changes` are pairs of an offset and bytes."""
        family, model = {"Milan": (0x19, 1), "Genoa": (0x19, 0x11), "Turin": (0x1A, 2)}[
            self.product
        ]
        report = bytearray(1184)
        struct.pack_into("<IIQ", report, 0, version, 1, 1 << 17 | 1 << 16)
        struct.pack_into("<I", report, 0x34, 1)
        struct.pack_into("<I", report, 0x48, (1 if self.leaf == "SEV-VLEK" else 0) << 2)
        for offset in (0x38, 0x180, 0x1E0, 0x1F0):
            report[offset : offset + 8] = tcb or self.tcb()
        if version >= 3:
            report[0x188:0x18B] = bytes([family, model, 0])
        chip = self.chip[:8].ljust(64, b"\0") if self.product == "Turin" else self.chip
        report[0x1A0:0x1E0] = chip
        report[0x90:0xC0] = hashlib.sha384(b"code").digest()
        for offset, value in changes:
            report[offset : offset + len(value)] = value
        signature = (key or ec_key("vcek")).sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        for i, number in enumerate(decode_dss_signature(signature)):
            at = 0x2A0 + 72 * i
            report[at : at + 48] = number.to_bytes(48, "little")
        return bytes(report)


def text(value):
    """A DER IA5String."""
    return bytes([0x16, len(value)]) + value.encode()


def integer(value):
    """A DER INTEGER of a byte."""
    return bytes([2, 1, value]) if value < 128 else bytes([2, 2, 0, value])


def azure(report, runtime):
    """Azure's blob around a report."""
    head = b"HCLA" + struct.pack("<III", 2, 0, 0) + bytes(16)
    return head + report + struct.pack("<IIIII", 0, 1, 2, 1, len(runtime)) + runtime


def azure_runtime(text=None, **fields):
    text = json.dumps(fields).encode() if text is None else text
    return text, hashlib.sha256(text).digest().ljust(64, b"\0")


def table(*entries):
    """An extended report's table of certificates: pairs of a GUID in bytes and DER."""
    at, head, body = 24 * (len(entries) + 1), b"", b""
    for guid, der in entries:
        head += guid + struct.pack("<II", at + len(body), len(der))
        body += der
    return head + bytes(24) + body
