"""A policy: what evidence has to say before a machine is trusted. A TOML file, strict by default.

A policy has a section for each format that it accepts. A field that is not set asks for nothing,
except those with a default; what weakens protection has `insecure` in its name. Every section has
to name the code that may run, or say that any may.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from cloister.attest.intel_tcb import TcbStatus
from cloister.attest.verified_evidence import Format
from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError

MAX_BYTES = 1 << 20
LEVELS = ("fmc", "bootloader", "tee", "snp", "microcode")
FULL = "full"
FIRST_32 = "insecure-first-32-bytes"
"""Platforms that keep half of the report data: the rest is not compared."""


class Compare(StrEnum):
    """How a policy's field is compared with the evidence's claim."""

    ONE_OF = "one of"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    EQUAL = "equal to"
    LEVELS = "levels at least"
    SUBSET = "all of them among"
    BITS = "with the bits"
    PERMITS = "only if permitted"
    """The claim has to be false unless the field is true."""


@dataclass(frozen=True)
class Rule:
    """A field of a section.

    claims    of the evidence that it is compared with: each of them
    bytes     the values are bytes, in hexadecimal
    length    of each value in bytes; 0: any
    choices   the values that a claim can have; none given: any
    code      it names the code that may run
    """

    name: str
    compare: Compare
    claims: tuple[str, ...]
    help: str
    default: object = None
    bytes: bool = False
    length: int = 0
    choices: tuple[str, ...] = ()
    code: bool = False


def _digests(name: str, claim: str, text: str = "", *, length: int = 0, code: bool = False) -> Rule:
    """A field of byte strings; its help ends with their length."""
    told = ", ".join(part for part in (text, f"{length} bytes" if length else "") if part)
    return Rule(name, Compare.ONE_OF, (claim,), told, bytes=True, length=length, code=code)


def _flag(name: str, claim: str, text: str) -> Rule:
    return Rule(name, Compare.PERMITS, (claim,), text, default=False)


_PPIDS = _digests("ppids", "ppid", "accepted platforms, or any without it", length=16)
_TCB_STATUS = Rule(
    "tcb_statuses", Compare.ONE_OF, ("tcb_status",), "Intel's verdicts on the firmware",
    default=[TcbStatus.UP_TO_DATE.value],
    # Whoever has the keys of a revoked level signs what he likes: no policy accepts it.
    choices=tuple(status.value for status in TcbStatus if status is not TcbStatus.REVOKED),
)  # fmt: skip
_ADVISORIES = Rule(
    "advisories", Compare.SUBSET, ("advisories",),
    "Intel's security advisories that are accepted, such as INTEL-SA-00615", default=[],
)  # fmt: skip

_REGISTERS = {
    0: "firmware", 1: "firmware's settings", 2: "firmware of cards", 3: "its settings",
    4: "boot loader", 5: "its settings and partitions", 6: "of the maker", 7: "secure boot's keys",
    8: "commands of the boot loader", 9: "files that it read", 10: "files (IMA)",
    11: "kernel image (systemd)", 12: "its command line", 13: "its extensions", 14: "shim's keys",
    15: "root file system", **dict.fromkeys(range(17, 23), "late launch"),
}  # fmt: skip
"""Registers of a TPM and what is measured into each; every program can reset 16 and 23."""
_STARTED = (4, 8, 9, 11, 17, 18)
"""Of these, what names the code that was started."""

RULES: Mapping[Format, Sequence[Rule]] = {
    Format.SEV_SNP: (
        _digests("measurements", "measurement", "launch digests", length=48, code=True),
        _digests("host_data", "host_data", "digests of the manifest given at launch", length=32),
        _digests("chip_ids", "chip_id", "accepted chips, or any without it", length=64),
        _digests("id_key_digests", "id_key_digest", "keys that signed the guest's identity block",
                 length=48),
        _digests("author_key_digests", "author_key_digest", "keys that signed those keys",
                 length=48),
        _digests("family_ids", "family_id", length=16),
        _digests("image_ids", "image_id", length=16),
        Rule("products", Compare.ONE_OF, ("product",), "Milan, Genoa, Turin",
             choices=("Milan", "Genoa", "Turin")),
        Rule("signing_keys", Compare.ONE_OF, ("signing_key",),
             "VCEK: of a chip; VLEK: of a cloud provider", default=["VCEK"],
             choices=("VCEK", "VLEK")),
        Rule("max_vmpl", Compare.AT_MOST, ("vmpl",), "privilege level, 0 is the highest",
             default=0),
        Rule("min_guest_svn", Compare.AT_LEAST, ("guest_svn",), "of the guest's identity block",
             default=0),
        Rule("min_tcb", Compare.LEVELS, ("reported_tcb", "committed_tcb", "launch_tcb"),
             "firmware levels: bootloader, tee, snp, microcode (Turin: fmc)"),
        Rule("csp_ids", Compare.ONE_OF, ("csp_id",), "cloud providers, by their VLEK's name"),
        Rule("mitigations", Compare.BITS, ("launch_mitigations", "current_mitigations"),
             "bits that both vectors of report version 5 have to have"),
        Rule("allow_smt", Compare.PERMITS, ("smt_allowed",), "two threads on a core", default=True),
        Rule("allow_cxl", Compare.PERMITS, ("cxl_allowed",), "memory and devices on CXL",
             default=True),
        *(Rule(name, Compare.EQUAL, (name,), text) for name, text in (
            ("single_socket", "the guest's policy keeps it on one"),
            ("aes_256_xts", "its memory is encrypted so, not with 128 bits"),
            ("rapl_disabled", "the host cannot measure the processor's power"),
            ("ciphertext_hiding", "the host cannot read the encrypted memory"),
            ("page_swap_disabled", "the host cannot move or swap its pages"),
            ("alias_check_complete", "memory modules lie about no address"),
        )),
        _flag("insecure_allow_debug", "debug", "the host may read the guest's memory"),
        _flag("insecure_allow_migration", "migratable", "a migration agent may take it elsewhere"),
        _flag("insecure_allow_paravisor", "paravisor",
              "Azure's blob: the launch digest is its paravisor's, and of nothing that runs on it"),
    ),
    Format.TDX: (
        _digests("mrtd", "mrtd", "initial contents of the virtual machine", length=48, code=True),
        *(_digests(f"rtmr{i}", f"rtmr{i}", "run-time register", length=48) for i in range(4)),
        _digests("mrconfigid", "mrconfigid", "digest of the manifest given at launch", length=48),
        _digests("mrowner", "mrowner", length=48),
        _digests("mrownerconfig", "mrownerconfig", length=48),
        _digests("mrseam", "mrseam", "Intel's TDX modules", length=48),
        _digests("mrservicetd", "mrservicetd", "bound service virtual machines", length=48),
        _digests("xfam", "xfam", "processor features", length=8),
        _digests("td_attributes", "td_attributes", length=8),
        _flag("insecure_allow_septve", "septve_enabled",
              "the host can raise exceptions inside by unmapping pages"),
        _PPIDS,
        _TCB_STATUS,
        _ADVISORIES,
        _flag("insecure_allow_debug", "debug", "the host may read the machine's memory"),
        _flag("insecure_allow_migration", "migratable", "it may be moved elsewhere"),
        _flag("insecure_allow_perfmon", "perfmon", "performance counters of the host see inside"),
    ),
    Format.SGX: (
        _digests("mrenclave", "mrenclave", "the enclave's contents", length=32, code=True),
        _digests("mrsigner", "mrsigner", "the key that signed the enclave", length=32, code=True),
        Rule("isvprodids", Compare.ONE_OF, ("isvprodid",), "products of that signer"),
        Rule("min_isvsvn", Compare.AT_LEAST, ("isvsvn",), "security version", default=0),
        _digests("config_ids", "config_id", "digests of the manifest given at launch", length=64),
        Rule("min_config_svn", Compare.AT_LEAST, ("config_svn",), "of that manifest", default=0),
        _digests("isvextprodids", "isvextprodid", "products of that signer, named at length",
                 length=16),
        _digests("isvfamilyids", "isvfamilyid", length=16),
        _digests("attributes", "attributes", length=16),
        Rule("initialised", Compare.EQUAL, ("initialised",), "always true of a running enclave",
             default=True),
        _PPIDS,
        _TCB_STATUS,
        _ADVISORIES,
        _flag("insecure_allow_debug", "debug", "the host may read the enclave's memory"),
    ),
    Format.NITRO: (
        *(_digests(f"pcr{i}", f"pcr{i}", text, length=48, code=i == 0) for i, text in (
            (0, "the enclave image"), (1, "kernel and boot files"),
            (2, "the application"), (3, "IAM role of the instance"), (4, "the instance"),
            (8, "key that signed the image"),
        )),
        _flag("insecure_allow_debug", "debug", "the host may read the enclave's console"),
    ),
    Format.NVIDIA_GPU: (
        Rule("manifests", Compare.SUBSET, ("manifests",),
             "SHA-256 of reference manifests that may be given; each is compared", code=True),
        Rule("min_manifests", Compare.AT_LEAST, ("manifest_count",), "of driver and VBIOS",
             default=1),
        Rule("driver_versions", Compare.SUBSET, ("driver_versions",), "such as 535.86.09"),
        Rule("serials", Compare.SUBSET, ("serials",), "GPUs that are accepted; none given: any"),
        _flag("insecure_allow_relayable", "relayable",
              "the report binds no host: whoever has a GPU somewhere can present it"),
    ),
    Format.TPM: (
        *(_digests(f"pcr{i}", f"pcr{i}", text, length=32, code=i in _STARTED)
          for i, text in _REGISTERS.items()),
        _digests("keys", "key", "SHA-256 of the public parts of keys that may sign", length=32),
        Rule("hierarchies", Compare.ONE_OF, ("hierarchy",), "of the TPM, to which the key belongs",
             choices=("owner", "endorsement", "platform", "other")),
        _digests("firmware_versions", "firmware_version", "of the TPM", length=8),
        Rule("max_reset_count", Compare.AT_MOST, ("reset_count",),
             "starts of the machine since the TPM was new"),
        Rule("max_restart_count", Compare.AT_MOST, ("restart_count",),
             "times it woke since it started"),
        Rule("clock_safe", Compare.EQUAL, ("clock_safe",), "no time was stated twice"),
    ),
    Format.SIMULATED: (
        _digests("measurements", "measurement", "digests of the code that is played", code=True),
        _digests("keys", "key", "public keys that may sign", length=32),
        _digests("host_data", "host_data", "digests of the manifest given at launch", length=32),
        _digests("chip_ids", "chip_id", "machines that are accepted; none given: any"),
        Rule("min_svn", Compare.AT_LEAST, ("svn",), "security version", default=0),
        _flag("insecure_allow_debug", "debug", "the host may read the machine's memory"),
    ),
}  # fmt: skip
"""The fields of every section, in the order in which they are compared."""

ANY_CODE = "insecure_allow_any_code"
UNKNOWN_REVOCATION = "insecure_allow_unknown_revocation"
UNKNOWN_TCB = "insecure_allow_unknown_tcb"
ANY_KEY = "insecure_allow_any_key"
REPORT_DATA = "report_data"
COMMON: Mapping[str, object] = {ANY_CODE: False, UNKNOWN_REVOCATION: False, REPORT_DATA: FULL}
"""Fields of every section, with their defaults."""
NO_LISTS = (Format.NITRO, Format.NVIDIA_GPU, Format.TPM, Format.SIMULATED)
"""Their vendors publish no list of revoked certificates that could be given."""
RUNTIME = "runtime"
"""The section about the manifest of the program that answers, whatever its platform."""
MANIFEST_DIGEST_BYTES = 32


@dataclass(frozen=True)
class RuntimeRules:
    """What is asked of a runtime's manifest.

    manifests         SHA-256 digests of those that are accepted; None: any, it is shown
    bound_at_launch   the platform has to have been given the manifest's digest at launch
    """

    manifests: tuple[bytes, ...] | None = None
    bound_at_launch: bool = False

    @classmethod
    def of(cls, found: object, what: str) -> "RuntimeRules":
        """The rules of a parsed section.

        Raises   InputError
        """
        if not isinstance(found, dict):
            raise InputError(f"{what}: must be a section")
        if unknown := set(found) - {"manifests", "bound_at_launch"}:
            names = "manifests, bound_at_launch"
            raise InputError(f"{what}: field {min(unknown)!r} is not known; choose {names}")
        bound = _common("bound_at_launch", found.get("bound_at_launch", False), what)
        if "manifests" not in found:
            return cls(None, bool(bound))
        listed = _value(_MANIFESTS, found["manifests"], what)
        if not isinstance(listed, list):
            raise InputError(f"{what}: manifests: must be a list")
        return cls(tuple(listed), bool(bound))


_MANIFESTS = _digests("manifests", "manifest", length=MANIFEST_DIGEST_BYTES)


@dataclass(frozen=True)
class Policy:
    """What is asked of evidence, by format and field; values are as the claims have them."""

    sections: Mapping[Format, Mapping[str, object]]
    runtime: RuntimeRules = RuntimeRules()

    @property
    def digest(self) -> bytes:
        """SHA-256 of its canonical form: every field of every section, defaults too."""
        sections = {kind.value: dict(section) for kind, section in self.sections.items()}
        whole = {**sections, RUNTIME: asdict(self.runtime)}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), default=bytes.hex)
        return hashlib.sha256(b"cloister policy\0" + text.encode()).digest()

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read a policy file.

        Raises   InputError naming section and field
        """
        with parsing(f"policy {path}: cannot be read"), open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"policy {path}: is larger than {MAX_BYTES} bytes")
        with parsing(f"policy {path}: is no TOML"):
            found = tomllib.loads(data.decode())
        return cls.of(found, what=f"policy {path}")

    @classmethod
    def of(cls, found: Mapping[str, object], *, what: str = "policy") -> "Policy":
        """A policy from parsed TOML.

        Raises   InputError
        """
        sections: dict[Format, dict[str, object]] = {}
        runtime = RuntimeRules()
        for name, section in found.items():
            if name == RUNTIME:
                runtime = RuntimeRules.of(section, f"{what}: [{RUNTIME}]")
                continue
            if name not in tuple(Format):
                raise InputError(f"{what}: section {name!r}: choose {', '.join(RULES)}, {RUNTIME}")
            if Format(name) not in RULES or not isinstance(section, dict):
                raise InputError(f"{what}: section {name!r} cannot be used")
            sections[Format(name)] = _section(Format(name), section, f"{what}: [{name}]")
        if not sections:
            raise InputError(f"{what}: accepts no format; give a section, such as [sev-snp]")
        return cls(sections, runtime)


def fields_of(kind: Format) -> dict[str, object]:
    """All fields of a section with their defaults; None where nothing is asked."""
    fields: dict[str, object] = {rule.name: rule.default for rule in RULES[kind]}
    fields |= COMMON
    if kind in NO_LISTS:
        fields[UNKNOWN_REVOCATION] = True
    if kind in (Format.TDX, Format.SGX):
        fields[UNKNOWN_TCB] = False
    if kind is Format.TPM:
        fields[ANY_KEY] = False
    return fields


def _section(kind: Format, found: Mapping[str, object], what: str) -> dict[str, object]:
    section = fields_of(kind)
    rules = {rule.name: rule for rule in RULES[kind]}
    for name, value in found.items():
        if name not in section:
            close = get_close_matches(name, section, n=1)
            asked = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(section)}"
            raise InputError(f"{what}: field {name!r} is not known; {asked}")
        rule = rules.get(name)
        section[name] = _common(name, value, what) if rule is None else _value(rule, value, what)
    if not section[ANY_CODE] and not any(section[rule.name] for rule in RULES[kind] if rule.code):
        names = " or ".join(rule.name for rule in RULES[kind] if rule.code)
        raise InputError(
            f"{what}: names no code; set {names}, or delete the section (for tests: "
            f"{ANY_CODE} = true)"
        )
    if section.get(ANY_KEY) is False and not section["keys"]:
        raise InputError(
            f"{what}: names no key, and every program can play a TPM; set keys (for tests: "
            f"{ANY_KEY} = true)"
        )
    if section.get("min_manifests") == 0 and not section[ANY_CODE]:
        # Without any manifest the list of those that may be given names no code.
        raise InputError(f"{what}: min_manifests: 0 needs {ANY_CODE} = true")
    return section


def _common(name: str, value: object, what: str) -> object:
    if name == REPORT_DATA:
        if value not in (FULL, FIRST_32):
            raise InputError(f"{what}: {name}: choose {FULL!r} or {FIRST_32!r}")
    elif not isinstance(value, bool):
        raise InputError(f"{what}: {name}: must be true or false")
    return value


def _value(rule: Rule, value: object, what: str) -> object:
    where = f"{what}: {rule.name}"
    match rule.compare:
        case Compare.PERMITS | Compare.EQUAL:
            fits = isinstance(value, bool)
        case Compare.AT_LEAST | Compare.AT_MOST | Compare.BITS:
            fits = type(value) is int and value >= 0
        case Compare.LEVELS:
            if not isinstance(value, dict) or not value or set(value) - set(LEVELS):
                raise InputError(f"{where}: must be a table of {', '.join(LEVELS)}")
            fits = all(type(level) is int and 0 <= level < 256 for level in value.values())
        case Compare.ONE_OF | Compare.SUBSET:
            if not isinstance(value, list) or (not value and rule.compare is Compare.ONE_OF):
                raise InputError(f"{where}: must be a list that is not empty")
            return [_item(rule, one, where) for one in value]
    if not fits:
        raise InputError(f"{where}: {value!r} is not what it takes ({rule.compare.value})")
    return value


def _item(rule: Rule, one: object, where: str) -> object:
    if rule.bytes:
        with parsing(f"{where}: must be hexadecimal"):
            if not isinstance(one, str):
                raise InputError(f"{where}: must be hexadecimal")
            value = bytes.fromhex(one)
        if rule.length not in (0, len(value)):
            raise InputError(
                f"{where}: a value has {2 * rule.length} hexadecimal digits, not {2 * len(value)}"
            )
        return value
    if isinstance(one, bool) or not isinstance(one, str | int):
        raise InputError(f"{where}: {one!r} is neither a text nor a number")
    if rule.choices and one not in rule.choices:
        raise InputError(f"{where}: {one!r}: choose {', '.join(rule.choices)}")
    return one


def template() -> str:
    """A commented policy with every section; nothing is accepted before code is named."""
    lines = [
        "# What evidence has to say. Delete the sections of platforms that you do not accept.",
        "# Fields behind a # are not asked for; those without have the strict default.",
        "# Values in hexadecimal. Names with `insecure` weaken protection.",
    ]
    for kind in RULES:
        if kind is Format.SIMULATED:
            continue
        lines += ["", f"[{kind.value}]"]
        defaults = fields_of(kind)
        for rule in RULES[kind]:
            mark = "" if rule.default is not None else "# "
            lines.append(f"{mark}{rule.name} = {_toml(rule)}  # {rule.help}")
        rest = [name for name in defaults if name not in {rule.name for rule in RULES[kind]}]
        lines += [f"{name} = {_plain(defaults[name])}" for name in rest]
    lines += [
        "",
        f"[{RUNTIME}]  # the manifest of the program that answers, on every platform",
        "# manifests = []  # SHA-256 of those that are accepted; none given: any, it is shown",
        "bound_at_launch = false  # true: the platform has to have been given its digest at launch",
    ]
    return "\n".join(lines) + "\n"


def _toml(rule: Rule) -> str:
    if rule.default is not None:
        return _plain(rule.default)
    match rule.compare:
        case Compare.LEVELS:
            return "{ bootloader = 0, tee = 0, snp = 0, microcode = 0 }"
        case Compare.AT_LEAST | Compare.AT_MOST | Compare.BITS:
            return "0"
        case Compare.EQUAL | Compare.PERMITS:
            return "true"
    return "[]"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(f'"{one}"' for one in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
