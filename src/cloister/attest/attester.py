"""What this machine can prove of itself: the interfaces of the kernel and of library systems.

Source   Linux, Documentation/ABI/testing/configfs-tsm-report; Gramine, "Attestation and secret
         provisioning", /dev/attestation
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloister.attest.nsm_attester import NSM, NsmAttester
from cloister.attest.report_data import require_report_data
from cloister.attest.tpm_attester import TpmAttester
from cloister.attest.tpm_commands import DEVICE
from cloister.attest.verified_evidence import Format
from cloister.base.rng import Csprng
from cloister.errors import AttestationError

MAX_BYTES = 1 << 20
TSM = Path("sys/kernel/config/tsm/report")
GRAMINE = Path("dev/attestation")
_PROVIDERS = {"sev_guest": Format.SEV_SNP, "tdx_guest": Format.TDX}


class Attester(Protocol):
    """Makes evidence of this machine."""

    @property
    def name(self) -> str:
        """The interface, for people."""
        ...

    @property
    def format(self) -> Format:
        """The format of its evidence."""
        ...

    def evidence(self, report_data: bytes) -> bytes:
        """Evidence that binds 64 bytes.

        Raises   AttestationError
        """
        ...


@dataclass(frozen=True)
class TsmAttester:
    """The kernel's reports of a confidential virtual machine (configfs-tsm)."""

    folder: Path
    format: Format
    rng: Csprng

    @property
    def name(self) -> str:
        """See Attester."""
        return f"{self.folder}"

    def evidence(self, report_data: bytes) -> bytes:
        """See Attester; the certificates that the host provides follow a report of SEV-SNP.

        Every write adds one to the entry's generation. If it is another one afterwards than after
        our own write, somebody else wrote to the entry, and the report may bind his bytes.
        """
        require_report_data(report_data)
        with _entry(self.folder / f"cloister-{self.rng.random_bytes(8).hex()}") as entry:
            before = _generation(entry)
            _write(entry / "inblob", report_data)
            found, more = _read(entry / "outblob"), _read(entry / "auxblob", optional=True)
            after = _generation(entry)
        if after != before + 1:
            raise AttestationError(
                f"{entry}: generation {after} where {before + 1} was expected: another process "
                "wrote to it; try again"
            )
        if not found:
            raise AttestationError(f"{entry}: gave no report; see the kernel's log")
        return found + more


@dataclass(frozen=True)
class GramineAttester:
    """The reports of an enclave under Gramine."""

    folder: Path
    format: Format = Format.SGX

    @property
    def name(self) -> str:
        """See Attester."""
        return f"{self.folder}"

    def evidence(self, report_data: bytes) -> bytes:
        """See Attester."""
        require_report_data(report_data)
        _write(self.folder / "user_report_data", report_data)
        found = _read(self.folder / "quote")
        if not found:
            raise AttestationError(f"{self.folder}: gave no quote; enable remote attestation")
        return found


def attesters(*, rng: Csprng, root: Path = Path("/"), tpm: Path | None = None) -> list[Attester]:
    """The attesters of this machine, those that say most first.

    root   for tests
    tpm    another TPM than the kernel's device, such as the socket of a program that plays one
    """
    found: list[Attester] = []
    folder = root / TSM
    if folder.is_dir() and (provider := _provider(folder, rng)) in _PROVIDERS:
        found.append(TsmAttester(folder, _PROVIDERS[provider], rng))
    if (root / GRAMINE / "user_report_data").exists():
        found.append(GramineAttester(root / GRAMINE))
    if (root / NSM).exists():
        found.append(NsmAttester(root / NSM))
    if tpm is not None or (root / DEVICE).exists():
        found.append(TpmAttester(root / DEVICE if tpm is None else tpm))
    return found


def _provider(folder: Path, rng: Csprng) -> str:
    """Who reports; an entry has to be made to read it."""
    try:
        with _entry(folder / f"cloister-{rng.random_bytes(8).hex()}") as entry:
            return _read(entry / "provider", optional=True).decode(errors="replace").strip()
    except AttestationError:
        return ""


@contextlib.contextmanager
def _entry(path: Path) -> Iterator[Path]:
    try:
        path.mkdir()
    except OSError as error:
        raise AttestationError(f"{path}: {error.strerror}; run as root") from None
    try:
        yield path
    finally:
        # The kernel removes the files of an entry with it.
        with contextlib.suppress(OSError):
            path.rmdir()


def _generation(entry: Path) -> int:
    text = _read(entry / "generation").decode(errors="replace").strip()
    if not text.isdecimal():
        raise AttestationError(f"{entry}: generation {text!r} is no number")
    return int(text)


def _write(path: Path, data: bytes) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # One write: the kernel takes each as a whole.
            written = os.write(file, data)
        finally:
            os.close(file)
    except OSError as error:
        raise AttestationError(f"{path}: {error.strerror}") from None
    if written != len(data):
        raise AttestationError(f"{path}: took {written} of {len(data)} bytes")


def _read(path: Path, *, optional: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(MAX_BYTES + 1)
    except OSError as error:
        if optional:
            return b""
        raise AttestationError(f"{path}: {error.strerror}") from None
    if len(found) > MAX_BYTES:
        raise AttestationError(f"{path}: gives more than {MAX_BYTES} bytes")
    return found
