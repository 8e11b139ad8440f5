"""Plans that clients send, in memory that nobody can change any more and that processes share.

Each file is anonymous memory of the kernel (memfd). Once it is complete, it is sealed: no process
can write to it, not even the one that made it. Sessions of several clients map one copy of equal
bytes. A client has to send all of a plan to use it: a digest alone gives it nothing of another's.
"""

import fcntl
import hashlib
import mmap
import os
import threading

from cloister.errors import InputError

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class MemoryAllowance:
    """Bytes that all files of a service may take together. Thread-safe."""

    def __init__(self, total_bytes: int) -> None:
        self._left, self._lock = total_bytes, threading.Lock()

    def take(self, nbytes: int) -> None:
        """Reserve memory.

        Raises   InputError when it is spent
        """
        with self._lock:
            if nbytes > self._left:
                raise InputError(
                    f"plan: {nbytes} B more are needed than the trusted machine has left for "
                    "plans; close other sessions, or ask its operator for more (--plans-gib)"
                )
            self._left -= nbytes

    def give_back(self, nbytes: int) -> None:
        """Return reserved memory."""
        with self._lock:
            self._left += nbytes


class SealedMemory:
    """A file in memory; it can be read once it is sealed.

    nbytes   how many bytes it will have
    """

    def __init__(self, nbytes: int, allowance: MemoryAllowance) -> None:
        self.nbytes = nbytes
        self.digest = b""
        self._allowance, self._written = allowance, 0
        self._hash = hashlib.sha256()
        self.descriptor = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    @property
    def complete(self) -> bool:
        """Whether all bytes are there."""
        return bool(self.digest)

    def append(self, piece: memoryview) -> None:
        """The next bytes; the last ones seal it. Only bytes that came count: who announces more
        and sends nothing takes nothing from others.

        Raises   InputError for more than was announced, and when all memory is spent
        """
        if self.complete or self._written + piece.nbytes > self.nbytes:
            raise InputError(f"plan: more than the {self.nbytes} B that were announced")
        self._allowance.take(piece.nbytes)
        self._written += piece.nbytes
        rest = piece
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]
        self._hash.update(piece)
        if self._written == self.nbytes:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self.digest = self._hash.digest()

    def close(self) -> None:
        """Give the memory back; processes that map it keep it until they end."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._allowance.give_back(self._written)


class SharedFiles:
    """One copy of equal files, as long as somebody uses it. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[SealedMemory, int]] = {}
        self._lock = threading.Lock()

    def shared(self, file: SealedMemory) -> SealedMemory:
        """The copy that is used by all; a file with the same bytes is closed."""
        with self._lock:
            known, users = self._known.get(file.digest, (file, 0))
            self._known[file.digest] = (known, users + 1)
            if known is not file:
                file.close()
            return known

    def release(self, file: SealedMemory) -> None:
        """One user less; the last one closes it."""
        with self._lock:
            known, users = self._known.pop(file.digest)
            if users > 1:
                self._known[file.digest] = (known, users - 1)
            else:
                known.close()


def mapped(descriptor: int) -> memoryview:
    """The bytes of a sealed file, without a copy.

    Raises   InputError when it is not sealed
    """
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise InputError("plan: its memory is not sealed")
    return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
