"""What belongs to evidence but does not come with it: certificates, lists of revoked ones, vendors'
documents. A folder of files, each recognised by its content.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from cloister.attest.certificates import RevocationList, load_certificates
from cloister.base.reading import open_regular, parsing
from cloister.errors import AttestationError, InputError

MAX_FILE_BYTES = 4 << 20
MAX_FILES = 256
_INTEL_DOCUMENTS = {"tcbInfo": "tcb_info", "enclaveIdentity": "qe_identity"}


@dataclass(frozen=True)
class SignedDocument:
    """A vendor's JSON document, its exact bytes, and the signature over them."""

    data: bytes
    signature: bytes


@dataclass(frozen=True)
class Collateral:
    """Everything that was given beside the evidence; nothing of it is trusted before it is checked.

    documents   Intel's, by kind: "tcb_info", "qe_identity"
    manifests   XML reference manifests of NVIDIA
    event_logs  of a confidential virtual machine (CCEL), or lists of events in JSON
    unused      names of files that were not recognised
    """

    certificates: tuple[x509.Certificate, ...] = ()
    revocation_lists: tuple[RevocationList, ...] = ()
    documents: Mapping[str, tuple[SignedDocument, ...]] = field(default_factory=dict)
    manifests: tuple[bytes, ...] = ()
    event_logs: tuple[bytes, ...] = ()
    unused: tuple[str, ...] = ()

    @classmethod
    def load(cls, paths: Iterable[Path]) -> "Collateral":
        """The files, and those in the folders.

        Raises   InputError for what cannot be read, AttestationError for what is damaged
        """
        parts = [_read(path) for path in _files(paths)]
        documents: dict[str, tuple[SignedDocument, ...]] = {}
        for part in parts:
            for kind, found in part.documents.items():
                documents[kind] = documents.get(kind, ()) + tuple(found)
        return cls(
            tuple(one for part in parts for one in part.certificates),
            tuple(one for part in parts for one in part.revocation_lists),
            documents,
            tuple(one for part in parts for one in part.manifests),
            tuple(one for part in parts for one in part.event_logs),
            tuple(name for part in parts for name in part.unused),
        )


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"collateral {path}: no such file or folder")
        found += sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    if len(found) > MAX_FILES:
        raise InputError(f"collateral: {len(found)} files; give at most {MAX_FILES}")
    yield from found


def _read(path: Path) -> Collateral:
    with parsing(f"collateral {path}: cannot be read"), open_regular(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"collateral {path}: is larger than {MAX_FILE_BYTES} bytes")
    with parsing(f"collateral {path}: is damaged", kind=AttestationError):
        return _recognised(data, path.name)


def _recognised(data: bytes, name: str) -> Collateral:
    head = data.lstrip()[:64]
    if b"-----BEGIN CERTIFICATE-----" in data and not head.startswith((b"{", b"[")):
        return Collateral(certificates=tuple(load_certificates(data, name)))
    if b"-----BEGIN X509 CRL-----" in head:
        return Collateral(revocation_lists=(RevocationList.load(data, name),))
    if head.startswith(b"<"):
        return Collateral(manifests=(data,))
    if head.startswith((b"{", b"[")):
        return _json(data, name)
    if data[:1] == b"\x30":
        return _der(data, name)
    if data[24:40] == b"Spec ID Event03\0" or data[32:48] == b"Spec ID Event03\0":
        return Collateral(event_logs=(data,))
    return Collateral(unused=(name,))


def _der(data: bytes, name: str) -> Collateral:
    """A certificate or a list of revoked ones."""
    try:
        return Collateral(certificates=tuple(load_certificates(data, name)))
    except AttestationError:
        return Collateral(revocation_lists=(RevocationList.load(data, name),))


def _json(data: bytes, name: str) -> Collateral:
    """Intel's documents as its service returns them, or all of a quote's collateral in one file."""
    with parsing(f"collateral {name}: is no JSON", kind=AttestationError):
        text = data.decode()
        found = json.loads(text)
    if isinstance(found, dict) and "tcb_info_issuer_chain" in found:
        return _bundle(found, name)
    if isinstance(found, dict) and isinstance(found.get("signature"), str):
        for key, kind in _INTEL_DOCUMENTS.items():
            if key in found:
                with parsing(f"collateral {name}: {key}", kind=AttestationError):
                    signed = _raw(text, key)
                document = SignedDocument(signed, _hexadecimal(found["signature"], name))
                return Collateral(documents={kind: (document,)})
    if isinstance(found, dict) and isinstance(found.get("event_log"), str):
        return Collateral(event_logs=(found["event_log"].encode(),))
    if isinstance(found, list) and found and isinstance(found[0], dict) and "imr" in found[0]:
        return Collateral(event_logs=(data,))
    return Collateral(unused=(name,))


def _raw(text: str, key: str) -> bytes:
    """The value of a key as it stands in the document: the signature is over these very bytes."""
    at = text.index(f'"{key}"') + len(key) + 2
    while text[at] in " \t\r\n:":
        at += 1
    _, end = json.JSONDecoder().raw_decode(text, at)
    return text[at:end].encode()


def _bundle(found: dict[str, object], name: str) -> Collateral:
    """The collateral of a quote in one JSON object."""

    def text(key: str) -> str:
        value = found.get(key)
        if not isinstance(value, str):
            raise AttestationError(f"collateral {name}: {key} is missing")
        return value

    certificates = [
        one
        for key in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
        for one in load_certificates(text(key).encode(), f"{name}: {key}")
    ]
    lists = [
        RevocationList.load(_hexadecimal(text(key), f"{name}: {key}"), f"{name}: {key}")
        for key in ("root_ca_crl", "pck_crl")
    ]
    documents = {
        kind: (SignedDocument(text(kind).encode(), _hexadecimal(text(f"{kind}_signature"), name)),)
        for kind in _INTEL_DOCUMENTS.values()
    }
    return Collateral(tuple(certificates), tuple(lists), documents)


def _hexadecimal(text: str, name: str) -> bytes:
    with parsing(f"collateral {name}: is not hexadecimal", kind=AttestationError):
        return bytes.fromhex(text)
