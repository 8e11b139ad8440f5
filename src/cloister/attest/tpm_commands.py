"""Commands to a TPM 2.0: the few that evidence and counters need, written byte by byte.

A TPM is a device of the kernel, or the socket of a program that plays one (swtpm).

Source   TCG, Trusted Platform Module Library, part 3: Commands (1.59); Linux, drivers/char/tpm
"""

import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Protocol

from cloister.attest import tpm_structures as tpm
from cloister.errors import TpmError

DEVICE = Path("dev/tpmrm0")
MAX_RESPONSE_BYTES = 4096
TIMEOUT_S = 30.0
"""A TPM of hardware may take seconds to make a key."""

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_PASSWORD = 0x40000009
_CREATE_PRIMARY, _QUOTE, _PCR_READ, _FLUSH = 0x131, 0x158, 0x17E, 0x165
_NV_DEFINE, _NV_UNDEFINE, _NV_INCREMENT = 0x12A, 0x122, 0x134
_NV_READ_PUBLIC, _NV_CERTIFY = 0x169, 0x184
_BUSY = (0x908, 0x90A, 0x920, 0x922)
"""Yielded, testing, NV_RATE (it limits how often NV is written) and retry: asked again later."""
_BUSY_S = 0.1
NO_INDEX = 0x8B
"""The code of a handle that is not there."""
NOT_WRITTEN = 0x14A
_HINTS = {
    0x100: "it was not started; start it with TPM2_Startup",
    0x148: "an index was not made for this use",
    NOT_WRITTEN: "the index was never written",
    0x14C: "the index is there already",
    0x14B: "it has no room for another index",
    0x8E: "the authorisation is wrong: its owner set a password",
    NO_INDEX: "there is no such index or key",
}
_TRIES = 50
_NV_COUNTER = 1 << 4
_NV_ATTRIBUTES = 1 << 2 | 1 << 18 | 1 << 25 | _NV_COUNTER  # AUTHWRITE, AUTHREAD, NO_DA
COUNTER_BYTES = 8

_ATTESTATION_KEY = (
    pack(">HHI", tpm.ECC, tpm.SHA256, tpm.FIXED_TPM | tpm.FIXED_PARENT | tpm.SENSITIVE_DATA_ORIGIN
         | tpm.USER_WITH_AUTH | tpm.RESTRICTED | tpm.SIGN)
    + pack(">H", 0)  # no policy
    + pack(">HHHHH", tpm.NULL, tpm.ECDSA, tpm.SHA256, 3, tpm.NULL)  # on P-256
    + pack(">HH", 0, 0)
)  # fmt: skip
"""A TPM derives the same key from the same template and the same seed, at every start."""


class TpmConnection(Protocol):
    """Sends one command and receives its answer."""

    def exchange(self, command: bytes) -> bytes:
        """The answer to a command.

        Raises   TpmError when the TPM does not answer
        """
        ...


@dataclass(frozen=True)
class TpmDevice:
    """A device of the kernel, whose resource manager removes this process's keys afterwards."""

    file: int
    path: Path

    def exchange(self, command: bytes) -> bytes:
        """See TpmConnection."""
        try:
            os.write(self.file, command)
            return os.read(self.file, MAX_RESPONSE_BYTES)
        except OSError as error:
            raise TpmError(f"{self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class TpmSocket:
    """A program that plays a TPM."""

    connection: socket.socket
    path: Path

    def exchange(self, command: bytes) -> bytes:
        """See TpmConnection."""
        try:
            self.connection.sendall(command)
            head = self._receive(10)
            size = int.from_bytes(head[2:6], "big")
            if not 10 <= size <= MAX_RESPONSE_BYTES:
                raise TpmError(f"{self.path}: states an answer of {size} bytes")
            return head + self._receive(size - 10)
        except OSError as error:
            raise TpmError(f"{self.path}: {error.strerror or error}") from None

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.connection.recv(size - len(found))
            if not part:
                raise TpmError(f"{self.path}: ended in the middle of an answer")
            found += part
        return found


@contextmanager
def open_tpm(path: Path) -> Iterator["Tpm"]:
    """The TPM at a path: a device, or a socket.

    Raises   TpmError
    """
    with ExitStack() as closing:
        try:
            connection: TpmConnection
            if stat.S_ISSOCK(path.stat().st_mode):
                opened = closing.enter_context(socket.socket(socket.AF_UNIX))
                opened.settimeout(TIMEOUT_S)
                opened.connect(str(path))
                connection = TpmSocket(opened, path)
            else:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                closing.callback(os.close, file)
                connection = TpmDevice(file, path)
        except OSError as error:
            why = error.strerror or error
            raise TpmError(f"{path}: {why}; give a TPM, and run as root") from None
        yield Tpm(connection)


@dataclass(frozen=True)
class Signed:
    """A statement of a TPM and its signature."""

    statement: bytes
    signature: bytes


@dataclass(frozen=True)
class TpmKeyHandle:
    """A key inside a TPM, for as long as the connection lasts."""

    handle: int
    public: bytes
    parent: bytes


class Tpm:
    """Commands to one TPM; hierarchies and indices have empty passwords.

    Raises   TpmError from every method, with the TPM's code
    """

    def __init__(self, connection: TpmConnection) -> None:
        self._connection = connection

    @contextmanager
    def attestation_key(self) -> Iterator[TpmKeyHandle]:
        """The endorsement hierarchy's key of our template.

        Of keys in other hierarchies a TPM hides its firmware's version and its counters.
        """
        body = pack(">HHH", 4, 0, 0) + _sized(_ATTESTATION_KEY) + _sized(b"") + pack(">I", 0)
        handles, fields = self._run(
            _CREATE_PRIMARY, [tpm.ENDORSEMENT], body, sessions=1, handles_out=1
        )
        try:
            yield TpmKeyHandle(handles[0], fields.sized(), pack(">I", tpm.ENDORSEMENT))
        finally:
            self._run(_FLUSH, [], pack(">I", handles[0]))

    def quote(self, key: TpmKeyHandle, qualifying: bytes, registers: Sequence[int]) -> Signed:
        """A signed statement of registers' values."""
        body = _sized(qualifying) + pack(">H", tpm.NULL) + tpm.selection_of(registers)
        _, fields = self._run(_QUOTE, [key.handle], body, sessions=1)
        return Signed(fields.sized(), fields.rest())

    def registers(self, wanted: Sequence[int]) -> dict[int, bytes]:
        """The values of registers, which a TPM gives out a few at a time."""
        found: dict[int, bytes] = {}
        while left := [index for index in wanted if index not in found]:
            _, fields = self._run(_PCR_READ, [], tpm.selection_of(left))
            fields.number(4)  # how often any register has changed
            given, count = tpm.selected_registers(fields), fields.number(4)
            if not given or count != len(given) or not set(given) <= set(left):
                raise TpmError(f"TPM: gives registers {given} where {left} were asked for")
            found |= {index: fields.sized() for index in given}
            fields.end()
        return found

    def define_counter(self, index: int) -> None:
        """Make a counter, and give it its first value."""
        public = pack(">IHIHH", index, tpm.SHA256, _NV_ATTRIBUTES, 0, COUNTER_BYTES)
        self._run(_NV_DEFINE, [tpm.OWNER], _sized(b"") + _sized(public), sessions=1)
        self.increment(index)

    def undefine(self, index: int) -> None:
        """Remove an index."""
        self._run(_NV_UNDEFINE, [tpm.OWNER, index], b"", sessions=1)

    def increment(self, index: int) -> None:
        """Add one to a counter; the TPM keeps it before it answers."""
        self._run(_NV_INCREMENT, [index, index], b"", sessions=1)

    def index_name(self, index: int) -> bytes:
        """An index's name: the digest of what it is for, and of whether it was written."""
        _, fields = self._run(_NV_READ_PUBLIC, [index], b"")
        fields.sized()
        name = fields.sized()
        fields.end()
        return name

    def certify(self, key: TpmKeyHandle, index: int, qualifying: bytes, size: int) -> Signed:
        """A signed statement of an index's contents."""
        body = _sized(qualifying) + pack(">HHH", tpm.NULL, size, 0)
        _, fields = self._run(_NV_CERTIFY, [key.handle, index, index], body, sessions=2)
        return Signed(fields.sized(), fields.rest())

    def _run(
        self, code: int, handles: Sequence[int], body: bytes, *, sessions: int = 0,
        handles_out: int = 0,
    ) -> tuple[list[int], tpm.TpmFields]:  # fmt: skip
        """Run a command; the handles that it returns, and its parameters."""
        proof = pack(">IHBH", _PASSWORD, 0, 0, 0) * sessions
        if sessions:
            proof = pack(">I", len(proof)) + proof
        parts = b"".join(pack(">I", handle) for handle in handles) + proof + body
        tag = _SESSIONS if sessions else _NO_SESSIONS
        command = pack(">HII", tag, 10 + len(parts), code) + parts
        answer = self._asked(command, code)
        fields = tpm.TpmFields(answer, "TPM's answer")
        found = [fields.number(4) for _ in range(handles_out)]
        if not sessions:
            return found, fields
        return found, tpm.TpmFields(fields.raw(fields.number(4)), "TPM's answer")

    def _asked(self, command: bytes, code: int) -> bytes:
        """The answer to a command, which a busy TPM is sent again."""
        for _ in range(_TRIES):
            answer = self._connection.exchange(command)
            if len(answer) < 10 or int.from_bytes(answer[2:6], "big") != len(answer):
                raise TpmError(f"TPM: command {code:#x}: its answer has another length than stated")
            status = int.from_bytes(answer[6:10], "big")
            if not status:
                return answer[10:]
            if status not in _BUSY:
                raise _failed(code, status)
            time.sleep(_BUSY_S)
        raise TpmError(f"TPM: command {code:#x}: it stays busy; try again later", code=status)


def _failed(command: int, status: int) -> TpmError:
    # Codes of the first format have the number of the parameter, session or handle in them.
    code = status & 0xBF if status & 0x80 else status
    hint = _HINTS.get(code, "see TPM_RC in part 2 of the specification")
    return TpmError(f"TPM: command {command:#x} failed with code {status:#x}: {hint}", code=code)


def _sized(data: bytes) -> bytes:
    return pack(">H", len(data)) + data
