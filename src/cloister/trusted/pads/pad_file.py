"""One pad in one sealed file, on storage that is not trusted.

    magic (8) | store id (16) | plan digest (32) | pad id (8, big endian)
    then for every node: nonce (12) | AES-256-GCM of A r as little-endian words | tag (16)

Every seal covers the head, the node's index and its shape, so a file or a part of one that was
copied, renamed, swapped, cut or edited does not open. Shapes come from the key file, never from
this file, so its size is known before a byte of it is read.
"""

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.base import files
from cloister.base.aead import NONCE_BYTES, TAG_BYTES, seal
from cloister.base.rng import SystemRandom
from cloister.errors import PadStoreError
from cloister.trusted.pads.pad_ledger import DIGEST_BYTES, ID_BYTES, MemoryLayout

MAGIC = b"CLSRPAD1"
PAD_ID_BYTES = 8
WORD = np.dtype("<u4")
SUFFIX = ".pad"
DAMAGED_SUFFIX = ".damaged"
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Troubles of this process, which say nothing about the file."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PadFiles:
    """Reads and writes the sealed files of one store. Secret: key."""

    folder: Path
    key: bytes
    store_id: bytes
    plan_digest: bytes

    def __repr__(self) -> str:
        return f"PadFiles({str(self.folder)!r})"

    def path(self, pad_id: int) -> Path:
        """Where a pad lies."""
        return self.folder / f"{pad_id}{SUFFIX}"

    def write(self, pad_id: int, layout: MemoryLayout, arrays: Mapping[int, np.ndarray]) -> None:
        """Seal a pad and make it durable: the file is there completely, or not at all.

        Raises   PadStoreError when it cannot be written; nothing is left behind
        """
        head = self._head(pad_id)
        sealed = (
            seal(
                self.key,
                arrays[index].astype(WORD, copy=False).tobytes(),
                aad=_aad(head, index, shape),
                rng=SystemRandom(),
            )
            for index, shape in layout
        )
        try:
            with files.replacing(self.path(pad_id), private=True) as file:
                _write_all(file.fileno(), head)
                for record in sealed:
                    _write_all(file.fileno(), record)
        except OSError as error:
            reason = error.strerror
            if error.errno in _FULL:
                reason = "the disk is full; free space or choose another folder"
            raise PadStoreError(f"pad store {self.folder}: {reason}") from None

    def read_into(
        self, pad_id: int, layout: MemoryLayout, arrays: Mapping[int, np.ndarray]
    ) -> None:
        """Unseal a pad into arrays of its layout.

        Raises   PadStoreError naming the file when it is missing or not what was written; then it
                 is moved out of the way
        """
        path, head = self.path(pad_id), self._head(pad_id)
        try:
            with _open_regular(path) as file:
                self._read_open(file, head, layout, arrays)
        except OSError as error:
            if error.errno not in _PASSING:
                self._set_aside(path)
            raise PadStoreError(f"pad {path}: {error.strerror}") from None
        except InvalidTag:
            self._set_aside(path)
            raise PadStoreError(f"pad {path}: was changed since it was written") from None

    def _read_open(
        self, file: int, head: bytes, layout: MemoryLayout, arrays: Mapping[int, np.ndarray]
    ) -> None:
        if os.fstat(file).st_size != file_bytes(layout):
            raise OSError(errno.EINVAL, "has the wrong size; it was cut or replaced")
        found = bytearray(len(head))
        _fill(file, memoryview(found))
        if not found.startswith(MAGIC):
            raise OSError(errno.EINVAL, "is not a pad file of this version")
        if found != head:
            raise OSError(errno.EINVAL, "belongs to another store or pad; it was copied or renamed")
        # One buffer for all records: fresh memory costs more than decryption.
        scratch = memoryview(bytearray(max(_record_bytes(shape) for _, shape in layout)))
        for index, shape in layout:
            record = scratch[: _record_bytes(shape)]
            _fill(file, record)
            self._unseal(record, arrays[index], aad=_aad(head, index, shape))

    def _unseal(self, record: memoryview, array: np.ndarray, *, aad: bytes) -> None:
        # Straight into the caller's array, which it can erase; bytes objects cannot be erased.
        words = array if array.dtype == WORD else np.empty(array.shape, WORD)
        AESGCM(self.key).decrypt_into(
            record[:NONCE_BYTES], record[NONCE_BYTES:], aad, words.data.cast("B")
        )
        if words is not array:
            array[...] = words

    def owner(self, pad_id: int) -> bytes | None:
        """The id of the store that a file says it belongs to, if it says so."""
        found = bytearray(len(self._head(0)))
        try:
            with _open_regular(self.path(pad_id)) as file:
                _fill(file, memoryview(found))
        except OSError:
            return None
        if not found.startswith(MAGIC):
            return None
        return bytes(found[len(MAGIC) : len(MAGIC) + ID_BYTES])

    def ids(self) -> list[int]:
        """The pad ids that have a file."""
        with os.scandir(self.folder) as entries:
            stems = [e.name.removesuffix(SUFFIX) for e in entries if e.name.endswith(SUFFIX)]
        return sorted(int(s) for s in stems if s.isascii() and s.isdigit() and str(int(s)) == s)

    def remove(self, pad_id: int) -> None:
        """Delete a pad's file if it can be; only space depends on it, never security."""
        with contextlib.suppress(OSError):
            self.path(pad_id).unlink()

    def remove_leftovers(self) -> None:
        """Delete what makers that died in the middle have left."""
        files.remove_leftovers(self.folder)

    def _set_aside(self, path: Path) -> None:
        # Kept for inspection; its id counts as lost. Something planted may be in the way of the
        # name.
        for target in (path, path.with_name(f"{path.stem}-{os.urandom(8).hex()}")):
            with contextlib.suppress(OSError):
                path.rename(target.with_suffix(DAMAGED_SUFFIX))
                return

    def _head(self, pad_id: int) -> bytes:
        return MAGIC + self.store_id + self.plan_digest + pad_id.to_bytes(PAD_ID_BYTES, "big")


def file_bytes(layout: MemoryLayout) -> int:
    """Size of a pad's file."""
    head = len(MAGIC) + ID_BYTES + DIGEST_BYTES + PAD_ID_BYTES
    return head + sum(_record_bytes(shape) for _, shape in layout)


def _record_bytes(shape: tuple[int, ...]) -> int:
    return NONCE_BYTES + WORD.itemsize * math.prod(shape) + TAG_BYTES


def _aad(head: bytes, index: int, shape: tuple[int, ...]) -> bytes:
    # The number of axes is fixed by the length, so two layouts never give the same bytes.
    return head + b"".join(number.to_bytes(8, "big") for number in (index, *shape))


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    # Never through a link, and never a pipe or device that would block or answer twice.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        yield file
    finally:
        os.close(file)


def _fill(file: int, buffer: memoryview) -> None:
    while buffer:
        count = os.readv(file, [buffer])
        if count == 0:
            raise OSError(errno.EIO, "is shorter than it should be")
        buffer = buffer[count:]


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
