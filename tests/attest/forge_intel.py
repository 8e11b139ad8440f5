"""Quotes and collateral of an Intel made here: bodies, enclaves and modules that no vector has."""

import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest.forge import NOW, certificate, ec_key
from cloister.attest.collateral import Collateral, SignedDocument
from cloister.attest.intel import _QE_SIGNERS
from cloister.attest.intel_quote import INTEL_QE_VENDOR

SGX = "1.2.840.113741.1.13.1"
FMSPC = bytes.fromhex("00a067110000")
P256 = ec.SECP256R1


def tlv(tag, body):
    length = bytes([len(body)]) if len(body) < 128 else b"\x82" + struct.pack(">H", len(body))
    return bytes([tag]) + length + body


def oid(text):
    numbers = [int(one) for one in text.split(".")]
    found = bytes([40 * numbers[0] + numbers[1]])
    for number in numbers[2:]:
        octets = [number & 0x7F]
        while number := number >> 7:
            octets.insert(0, number & 0x7F | 0x80)
        found += bytes(octets)
    return tlv(6, found)


def pair(name, value):
    return tlv(0x30, oid(name) + value)


def raw_signature(key, data):
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point(key):
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def changed(data, changes):
    data = bytearray(data)
    for offset, value in changes:
        data[offset : offset + len(value)] = value
    return bytes(data)


@dataclass
class Intel:
    """A vendor of platforms; every piece of a quote can be changed before it is signed."""

    svn: int = 5
    pck_name: str = "Intel SGX PCK Certificate"
    extension: bool = True
    keys: dict = field(
        default_factory=lambda: {n: ec_key(f"intel {n}", P256) for n in ("root", "ca", "pck", "ak")}
    )

    def __post_init__(self):
        root, ca, pck = (self.keys[name] for name in ("root", "ca", "pck"))
        top, middle = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
        self.root = certificate(top, root, top, root, ca=True, days=9000)
        self.ca = certificate(middle, ca, top, root, ca=True)
        levels = [pair(f"{SGX}.2.{i}", tlv(2, bytes([self.svn]))) for i in range(1, 17)]
        levels += [pair(f"{SGX}.2.17", tlv(2, b"\x0b"))]
        held = tlv(
            0x30,
            pair(f"{SGX}.1", tlv(4, bytes(16))) + pair(f"{SGX}.2", tlv(0x30, b"".join(levels)))
            + pair(f"{SGX}.3", tlv(4, bytes(2))) + pair(f"{SGX}.4", tlv(4, FMSPC)),
        )  # fmt: skip
        extensions = [(SGX, held)] if self.extension else []
        self.pck = certificate(self.pck_name, pck, middle, ca, extensions=extensions)
        self.signer = certificate("Intel SGX TCB Signing", root, top, root)

    def chain(self):
        return b"".join(one.public_bytes(Encoding.PEM) for one in (self.pck, self.ca, self.root))

    def quote(
        self, *, tdx=True, version=5, body=(), qe=(), kind=6, behind=b"", behind_chain=b"",
        td15=True, end=b"",
    ):  # fmt: skip
        size = 384 if not tdx else 648 if td15 and version == 5 else 584
        data = bytearray(size)
        if tdx:
            data[0:3] = bytes([5, 1, 2])
            struct.pack_into("<Q", data, 120, 1 << 28)
        else:
            struct.pack_into("<Q", data, 48, 0x5)
        data = changed(data, body)
        head = struct.pack("<HHI", version, 2, 0x81 if tdx else 0) + bytes(4)
        head += INTEL_QE_VENDOR + bytes(20)
        if version == 5:
            head += struct.pack("<HI", 1 if not tdx else 3 if size == 648 else 2, size)
        signed = head + data
        key, auth = self.keys["ak"], bytes(range(32))
        report = bytearray(384)
        signer, product = _QE_SIGNERS[tdx]
        struct.pack_into("<Q", report, 48, 0x15)
        report[128:160] = signer
        struct.pack_into("<HH", report, 256, product, 6)
        report[320:352] = hashlib.sha256(point(key) + auth).digest()
        report = changed(report, qe)
        chain = self.chain() + behind_chain
        certified = report + raw_signature(self.keys["pck"], report)
        certified += struct.pack("<H", len(auth)) + auth + struct.pack("<HI", 5, len(chain)) + chain
        certified += behind
        block = raw_signature(key, signed) + point(key)
        if version > 3:
            block += struct.pack("<HI", kind, len(certified))
        block += certified + end
        return signed + struct.pack("<I", len(block)) + block

    def collateral(self, *, info=None, identity=None):
        given = {"tcb_info": info, "qe_identity": identity}
        texts = {kind: json.dumps(one).encode() for kind, one in given.items() if one}
        documents = {
            kind: (SignedDocument(text, raw_signature(self.keys["root"], text)),)
            for kind, text in texts.items()
        }
        return Collateral(certificates=(self.signer,), documents=documents)


def times():
    return {
        "issueDate": f"{NOW - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
        "nextUpdate": f"{NOW + timedelta(days=20):%Y-%m-%dT%H:%M:%SZ}",
    }


def tcb_level(status, *, sgx=1, tdx=(0, 0, 0), pcesvn=1, **more):
    tdx = [*tdx, *[0] * (16 - len(tdx))]
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": sgx}] * 16, "pcesvn": pcesvn,
            "tdxtcbcomponents": [{"svn": one} for one in tdx],
        },
        "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status, **more,
    }  # fmt: skip


def tcb_info(*levels, modules=(), tdx=True, **more):
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    return {
        "id": "TDX" if tdx else "SGX", "version": 3, **times(), "fmspc": FMSPC.hex(),
        "pceId": "0000", "tcbType": 0, "tdxModule": module, "tcbLevels": list(levels),
        "tdxModuleIdentities": [
            {"id": f"TDX_{version:02X}", **module, "tcbLevels": [
                {"tcb": {"isvsvn": svn}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status}
                for svn, status in found
            ]} for version, found in modules
        ], **more,
    }  # fmt: skip


def qe_identity(*, tdx=True, status="UpToDate", svn=1, **more):
    signer, product = _QE_SIGNERS[tdx]
    return {
        "id": "TD_QE" if tdx else "QE", "version": 2, **times(), "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF", "attributes": "15" + "00" * 15, "attributesMask": "FF" * 16,
        "mrsigner": signer.hex(), "isvprodid": product, "tcbLevels": [
            {"tcb": {"isvsvn": svn}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status}
        ], **more,
    }  # fmt: skip
