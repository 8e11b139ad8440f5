"""How old a platform's microcode and firmware are: Intel's TCB information and enclave identities.

Source   Intel SGX and TDX Provisioning Certification Service API v4, "Get TCB Info", "TCB status
         evaluation"; statuses are combined as Intel's Quote Verification Library does
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography import x509

from cloister.attest import der
from cloister.attest.check_tree import refused, require_equal
from cloister.attest.intel_quote import TDX15_BODY, Quote
from cloister.base.reading import parsing
from cloister.errors import AttestationError

COMPONENTS = 16
_SGX_EXTENSION = "1.2.840.113741.1.13.1"
_PPID, _TCB, _PCEID, _FMSPC = (f"{_SGX_EXTENSION}.{i}" for i in (1, 2, 3, 4))
_PPID_BYTES = 16


class TcbStatus(StrEnum):
    """Intel's word for a TCB level; one that is not here is refused."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING = "SWHardeningNeeded"
    CONFIGURATION = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH = "TDRelaunchAdvised"
    TD_RELAUNCH_CONFIGURATION = "TDRelaunchAdvisedConfigurationNeeded"
    REVOKED = "Revoked"


_NEEDS_CONFIGURATION = {
    TcbStatus.CONFIGURATION,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING,
    TcbStatus.OUT_OF_DATE_CONFIGURATION,
    TcbStatus.TD_RELAUNCH_CONFIGURATION,
}
_OLD = {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION}


@dataclass(frozen=True)
class TcbLevel:
    """A status, the date of its TCB, and the security advisories that apply to it."""

    status: TcbStatus
    date: str
    advisories: tuple[str, ...] = ()

    def with_part(self, part: "TcbLevel") -> "TcbLevel":
        """The platform's level, lowered by that of a part of it: a quoting enclave or a module."""
        status = self.status
        if TcbStatus.REVOKED in (status, part.status):
            status = TcbStatus.REVOKED
        elif part.status in _OLD:
            # Also of a platform of which only a relaunch was advised: a part of it is old now.
            needs = status in _NEEDS_CONFIGURATION
            status = TcbStatus.OUT_OF_DATE_CONFIGURATION if needs else TcbStatus.OUT_OF_DATE
        both = dict.fromkeys((*self.advisories, *part.advisories))
        return TcbLevel(status, min(self.date, part.date), tuple(both))


@dataclass(frozen=True)
class PlatformTcb:
    """What the PCK certificate says of the platform's processor.

    ppid   names the platform, and no other one
    """

    ppid: bytes
    components: tuple[int, ...]
    pcesvn: int
    pceid: bytes
    fmspc: bytes


def platform_tcb(pck: x509.Certificate) -> PlatformTcb:
    """The SGX extension of a PCK certificate.

    Raises   AttestationError
    """
    what = "PCK certificate"
    with parsing(f"{what}: is damaged", kind=AttestationError):
        found = next(
            (e.value for e in pck.extensions if e.oid.dotted_string == _SGX_EXTENSION), None
        )
    if not isinstance(found, x509.UnrecognizedExtension):
        raise AttestationError(f"{what}: lacks Intel's extension {_SGX_EXTENSION}")
    fields = _by_oid(der.only(found.value, der.SEQUENCE, what), what)
    tcb = _by_oid(_field(fields, _TCB, der.SEQUENCE), what)
    levels = [_small(_field(tcb, f"{_TCB}.{i}", der.INTEGER)) for i in range(1, COMPONENTS + 2)]
    ppid = _field(fields, _PPID, der.OCTETS)
    if len(ppid) != _PPID_BYTES:
        raise AttestationError(f"{what}: its PPID has {len(ppid)} bytes, of {_PPID_BYTES}")
    return PlatformTcb(
        ppid, tuple(levels[:COMPONENTS]), levels[COMPONENTS], _field(fields, _PCEID, der.OCTETS),
        _field(fields, _FMSPC, der.OCTETS),
    )  # fmt: skip


def _by_oid(contents: bytes, what: str) -> dict[str, tuple[int, bytes]]:
    """Pairs of an object identifier and a value, by identifier."""
    found: dict[str, tuple[int, bytes]] = {}
    for tag, pair in der.elements(contents, what):
        parts = list(der.elements(pair, what)) if tag == der.SEQUENCE else []
        if len(parts) != 2 or parts[0][0] != der.OID:
            raise AttestationError(f"{what}: Intel's extension is damaged")
        name = der.dotted(parts[0][1])
        if name in found:
            raise AttestationError(f"{what}: Intel's extension states {name} twice")
        found[name] = parts[1]
    return found


def _field(fields: Mapping[str, tuple[int, bytes]], name: str, tag: int) -> bytes:
    found = fields.get(name)
    if found is None or found[0] != tag:
        raise AttestationError(f"PCK certificate: Intel's extension lacks {name}")
    return found[1]


def _small(contents: bytes) -> int:
    value = int.from_bytes(contents, "big", signed=True)
    if not 0 <= value < 1 << 16:
        raise AttestationError("PCK certificate: a security version is out of range")
    return value


@dataclass(frozen=True)
class IntelDocument:
    """A signed document of Intel whose signature and time were checked."""

    fields: Mapping[str, Any]
    not_after: datetime


def read_document(data: bytes, what: str, *, now: datetime) -> IntelDocument:
    """A document's fields, if it is of this time.

    Raises   AttestationError
    """
    with parsing(f"{what}: is damaged", kind=AttestationError):
        fields = json.loads(data)
        issued, ends = (_time(fields[key]) for key in ("issueDate", "nextUpdate"))
    if not issued <= now <= ends:
        raise refused(
            f"{what}: time", expected=f"{issued.isoformat()} to {ends.isoformat()}",
            found=now.isoformat(timespec="seconds"), remedy="fetch new collateral",
        )  # fmt: skip
    return IntelDocument(fields, ends)


def names_platform(data: bytes, quote: Quote, platform: PlatformTcb) -> bool:
    """Whether a document says that it is of a platform; nothing of it is verified yet.

    Raises   AttestationError
    """
    with parsing("document of Intel's: is damaged", kind=AttestationError):
        fields = json.loads(data)
        if "fmspc" not in fields:
            return bool(fields["id"] == ("TD_QE" if quote.is_tdx else "QE"))
        kind = fields.get("id", "SGX")
        of_tee = kind == ("TDX" if quote.is_tdx else "SGX")
        return of_tee and bytes.fromhex(fields["fmspc"]) == platform.fmspc


def _time(text: str) -> datetime:
    if not text.endswith("Z"):
        raise ValueError(f"{text} is no time in UTC")
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00")


def evaluate(
    quote: Quote,
    platform: PlatformTcb,
    tcb_info: IntelDocument | None,
    qe_identity: IntelDocument | None,
) -> TcbLevel | None:
    """The TCB level of the platform that a quote is of; None where a document is missing.

    Raises   AttestationError for collateral of another platform, and where no level fits
    """
    level = part = None
    if tcb_info is not None:
        with parsing("TCB information: is damaged", kind=AttestationError):
            level = _platform_level(quote, platform, tcb_info.fields)
    if qe_identity is not None:
        with parsing("identity of the quoting enclave: is damaged", kind=AttestationError):
            part = _qe_level(quote, qe_identity.fields)
    return None if level is None or part is None else level.with_part(part)


def _platform_level(quote: Quote, platform: PlatformTcb, info: Mapping[str, Any]) -> TcbLevel:
    kind, versions = ("TDX", (3,)) if quote.is_tdx else ("SGX", (2, 3))
    if info.get("id", "SGX") != kind or info["version"] not in versions:
        raise refused(
            "TCB information: kind and version", expected=[f"{kind} {one}" for one in versions],
            found=f"{info.get('id', 'SGX')} {info['version']}", remedy="fetch that of this TEE",
        )  # fmt: skip
    require_equal(
        "TCB information: type", info.get("tcbType", 0), 0, remedy="this version does not know it"
    )
    for name, own in (("fmspc", platform.fmspc), ("pceId", platform.pceid)):
        require_equal(
            f"TCB information: {name}", bytes.fromhex(info[name]), own,
            remedy="it is of another platform; fetch this one's",
        )  # fmt: skip
    fitting = [level for level in info["tcbLevels"] if _fits(platform, level["tcb"])]
    if not quote.is_tdx:
        return _level(_first(fitting))
    tee = quote.body.raw(0, COMPONENTS)
    level = _level(_first([one for one in fitting if _fits_tdx(tee, one["tcb"])]))
    module = _module_level(quote, info)
    if module is not None:
        level = level.with_part(module)
    if len(quote.body.data) == TDX15_BODY and module is not None and module.status in _OLD:
        return _relaunched(quote, level, _level(_first(fitting)), info)
    return level


def _first(levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The highest level that fits: Intel lists them from the highest to the lowest."""
    if not levels:
        raise AttestationError(
            "TCB information: no level fits this platform, whose microcode or firmware is older "
            "than any that Intel lists; update it"
        )
    return levels[0]


def _fits(platform: PlatformTcb, tcb: Mapping[str, Any]) -> bool:
    """Whether processor and provisioning enclave are of a level, or above it."""
    needed = _components(tcb, "sgxtcbcomponents", "sgxtcbcomp")
    fits = all(own >= low for own, low in zip(platform.components, needed, strict=True))
    return bool(fits and platform.pcesvn >= tcb["pcesvn"])


def _fits_tdx(tee: bytes, tcb: Mapping[str, Any]) -> bool:
    """Whether the TDX module and its loader are of a level, or above it."""
    low = _components(tcb, "tdxtcbcomponents", "")
    # From TDX 1.5 on the module's own version has an identity of its own (`_module_level`).
    first = 2 if tee[1] else 0
    return all(tee[i] >= low[i] for i in range(first, COMPONENTS))


def _relaunched(quote: Quote, level: TcbLevel, sgx: TcbLevel, info: Mapping[str, Any]) -> TcbLevel:
    """The level of a machine that began under an old module, which was replaced since.

    It has the new module's protection from its next start on, so Intel advises to start it again.
    """
    now = quote.body.raw(584, COMPONENTS)
    if level.status not in _OLD or sgx.status in (*_OLD, TcbStatus.REVOKED):
        return level
    newest = _components(info["tcbLevels"][0]["tcb"], "tdxtcbcomponents", "")
    least = newest[0] if not now[1] else _identity(now[1], info)["tcbLevels"][0]["tcb"]["isvsvn"]
    if now[0] < least or now[2] < newest[2]:
        return level
    needs = {level.status, sgx.status} & _NEEDS_CONFIGURATION
    status = TcbStatus.TD_RELAUNCH_CONFIGURATION if needs else TcbStatus.TD_RELAUNCH
    return replace(level, status=status)


def _components(tcb: Mapping[str, Any], listed: str, numbered: str) -> list[int]:
    """Sixteen security versions, as version 3 lists them or version 2 numbers them."""
    if listed in tcb:
        found = [one["svn"] for one in tcb[listed]]
    else:
        found = [tcb[f"{numbered}{i:02}svn"] for i in range(1, COMPONENTS + 1)]
    if len(found) != COMPONENTS or not all(type(one) is int for one in found):
        raise ValueError("a TCB level has not sixteen components")
    return found


def _level(level: Mapping[str, Any]) -> TcbLevel:
    try:
        status = TcbStatus(level["tcbStatus"])
    except ValueError:
        raise refused(
            "TCB status", expected=list(TcbStatus), found=level["tcbStatus"],
            remedy="this version does not know it",
        ) from None  # fmt: skip
    return TcbLevel(status, level.get("tcbDate", ""), tuple(level.get("advisoryIDs", ())))


def _module_level(quote: Quote, info: Mapping[str, Any]) -> TcbLevel | None:
    """The level of the TDX module, which signs for the virtual machine; before TDX 1.5, none."""
    svn, version = quote.body.number(0, 1), quote.body.number(1, 1)
    module = _identity(version, info) if version else info["tdxModule"]
    require_equal(
        "TDX module: signer", quote.body.raw(64, 48), bytes.fromhex(module["mrsigner"]),
        remedy="it is not Intel's",
    )  # fmt: skip
    mask = bytes.fromhex(module["attributesMask"])
    require_equal(
        "TDX module: attributes", _masked(quote.body.raw(112, 8), mask),
        _masked(bytes.fromhex(module["attributes"]), mask), remedy="they are not those of Intel's",
    )  # fmt: skip
    return _by_svn(module["tcbLevels"], svn, "TDX module") if version else None


def _identity(version: int, info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Intel's identity of the TDX modules of a version."""
    name = f"TDX_{version:02X}"
    listed = {one["id"].upper(): one for one in info.get("tdxModuleIdentities", ())}
    if name not in listed:
        raise refused(
            "TDX module", expected=sorted(listed), found=name,
            remedy="Intel does not list it; fetch new collateral",
        )  # fmt: skip
    found: Mapping[str, Any] = listed[name]
    return found


def _qe_level(quote: Quote, identity: Mapping[str, Any]) -> TcbLevel:
    """The level of the quoting enclave, which has to be Intel's."""
    report, what = quote.qe_report, "quoting enclave"
    require_equal(
        f"identity of the {what}: kind", identity["id"], "TD_QE" if quote.is_tdx else "QE",
        remedy="fetch that of this TEE",
    )  # fmt: skip
    require_equal(f"{what}: version of its identity", identity["version"], 2, remedy="not known")
    masked = (("miscselect", 16, 4), ("attributes", 48, 16))
    for name, offset, size in masked:
        mask = bytes.fromhex(identity[f"{name}Mask"])
        wanted, found = bytes.fromhex(identity[name]), report.raw(offset, size)
        if name == "miscselect":
            # Intel writes this number with its highest byte first.
            mask, wanted = mask[::-1], wanted[::-1]
        require_equal(
            f"{what}: {name}", _masked(found, mask), _masked(wanted, mask), remedy="not Intel's"
        )
    require_equal(
        f"{what}: signer", report.raw(128, 32), bytes.fromhex(identity["mrsigner"]),
        remedy="it is not Intel's",
    )  # fmt: skip
    require_equal(
        f"{what}: product", report.number(256, 2), identity["isvprodid"], remedy="not Intel's"
    )
    return _by_svn(identity["tcbLevels"], report.number(258, 2), what)


def _by_svn(levels: Sequence[Mapping[str, Any]], svn: int, what: str) -> TcbLevel:
    for level in levels:
        if svn >= level["tcb"]["isvsvn"]:
            return _level(level)
    raise AttestationError(f"{what}: security version {svn} is older than any that Intel lists")


def _masked(value: bytes, mask: bytes) -> bytes:
    if len(value) != len(mask):
        raise ValueError("a mask has another size")
    return bytes(a & b for a, b in zip(value, mask, strict=True))
