"""Intel SGX and TDX quotes: their structure, versions 3, 4 and 5.

Source   Intel SGX ECDSA Quote Library Reference, appendix A (version 3); Intel TDX DCAP Quoting
         Library API, appendix A (versions 4 and 5)
"""

from dataclasses import dataclass

from cloister.attest.check_tree import refused, require_equal
from cloister.attest.fields import Fields

HEADER_BYTES = 48
SGX_TYPE, TDX_TYPE = 0x00, 0x81
ECDSA_P256 = 2
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
SGX_BODY, TDX_BODY, TDX15_BODY = 384, 584, 648
_V5_BODIES = {1: (SGX_TYPE, SGX_BODY), 2: (TDX_TYPE, TDX_BODY), 3: (TDX_TYPE, TDX15_BODY)}
_PCK_CHAIN, _QE_REPORT = 5, 6
_SGX_GAPS = ((20, 32), (96, 128), (160, 192), (262, 304))


@dataclass(frozen=True)
class Quote:
    """A quote taken apart; nothing of it is verified.

    signed        header and body, over which `signature` is
    key           the attestation key: x and y of a point on P-256
    qe_report     the report of the quoting enclave, which names the key
    auth_data     what the quoting enclave hashed beside the key
    pck_chain     PEM
    trailing      bytes behind the quote
    """

    version: int
    tee: int
    body: Fields
    signed: bytes
    signature: bytes
    key: bytes
    qe_report: Fields
    qe_signature: bytes
    auth_data: bytes
    pck_chain: bytes
    trailing: int

    @property
    def is_tdx(self) -> bool:
        """Whether a virtual machine speaks, not an enclave."""
        return self.tee == TDX_TYPE

    @property
    def what(self) -> str:
        """The quote in errors."""
        return "TDX quote" if self.is_tdx else "SGX quote"


def looks_like(data: bytes) -> bool:
    """Whether bytes begin like a quote of any version."""
    if len(data) < HEADER_BYTES:
        return False
    head = Fields(data, "quote")
    tee = head.number(4, 4)
    known = head.number(2, 2) in (ECDSA_P256, 3) and head.raw(12, 16) == INTEL_QE_VENDOR
    return known and 3 <= head.number(0, 2) < 32 and (tee in (SGX_TYPE, TDX_TYPE))


def parse(data: bytes) -> Quote:
    """Take a quote apart.

    Raises   AttestationError
    """
    head = Fields(data, "Intel quote")
    version, tee = head.number(0, 2), head.number(4, 4)
    if version not in (3, 4, 5):
        raise refused(
            "Intel quote: version", expected="3, 4 or 5", found=version,
            remedy="this version of Cloister does not know it",
        )  # fmt: skip
    require_equal(
        "Intel quote: type of the attestation key", head.number(2, 2), ECDSA_P256,
        remedy="only ECDSA P-256 is supported",
    )  # fmt: skip
    require_equal(
        "Intel quote: vendor of the quoting enclave", head.raw(12, 16), INTEL_QE_VENDOR,
        remedy="only Intel's is known",
    )  # fmt: skip
    at = HEADER_BYTES
    if version == 3:
        # In version 3 these four bytes are reserved.
        require_equal("Intel quote: reserved bytes", tee, SGX_TYPE, remedy="they must be zero")
        size = SGX_BODY
    elif version == 4:
        if tee not in (SGX_TYPE, TDX_TYPE):
            raise refused(
                "Intel quote: kind of TEE", expected="SGX or TDX", found=f"{tee:#x}",
                remedy="this version does not know it",
            )  # fmt: skip
        size = SGX_BODY if tee == SGX_TYPE else TDX_BODY
    else:
        kind, size = head.number(at, 2), head.number(at + 2, 4)
        if _V5_BODIES.get(kind) != (tee, size):
            raise refused(
                "Intel quote: type, size and TEE of the body", expected=sorted(_V5_BODIES.items()),
                found=(kind, size, tee), remedy="this version does not know it",
            )  # fmt: skip
        at += 6
    if tee == SGX_TYPE:
        _require_gaps(Fields(head.raw(at, size), "SGX quote"))
    end = at + size
    body = Fields(head.raw(at, size), "TDX quote" if tee == TDX_TYPE else "SGX quote")
    length = head.number(end, 4)
    block = Fields(head.raw(end + 4, length), "quote's signature data")
    trailing = len(data) - end - 4 - length
    certified = _certified(block, version)
    return Quote(
        version, tee, body, head.raw(0, end), block.raw(0, 64), block.raw(64, 64), *certified,
        trailing,
    )  # fmt: skip


def _certified(block: Fields, version: int) -> tuple[Fields, bytes, bytes, bytes]:
    """Report of the quoting enclave, its signature, its data, and the PCK chain."""
    inner, at = block, 128
    if version > 3:
        _require_kind(block.number(128, 2), _QE_REPORT)
        size = block.number(130, 4)
        _require_end(block, 134 + size)
        inner, at = Fields(block.raw(134, size), "quote's certification data"), 0
    report = Fields(inner.raw(at, SGX_BODY), "report of the quoting enclave")
    signature = inner.raw(at + SGX_BODY, 64)
    at += SGX_BODY + 64
    auth = inner.raw(at + 2, inner.number(at, 2))
    at += 2 + len(auth)
    _require_kind(inner.number(at, 2), _PCK_CHAIN)
    chain = inner.raw(at + 6, inner.number(at + 2, 4))
    _require_end(inner, at + 6 + len(chain))
    _require_gaps(report)
    return report, signature, auth, chain


def _require_gaps(report: Fields) -> None:
    """Refuse a report of an enclave that says something in bytes that have no meaning yet."""
    for begin, end in _SGX_GAPS:
        report.require_zeros(begin, end)


def _require_end(fields: Fields, end: int) -> None:
    """Refuse bytes behind a part that its own length covers."""
    require_equal(
        "Intel quote: bytes of certification data", len(fields.data), end,
        remedy="it was changed; nobody signs these bytes",
    )  # fmt: skip


def _require_kind(found: int, expected: int) -> None:
    require_equal(
        "Intel quote: kind of certification data", found, expected,
        remedy="have the quoting library put the PCK certificate chain into the quote",
    )  # fmt: skip
