"""One block of pad sets in one file, on storage that is not trusted.

    head    magic (8) | store id (16) | plan digest (32) | block (8) | rows (4) | words (8) |
            sealed (1) | HMAC-SHA256 of these (32) | zeros up to 4096 bytes
    record  of each row, followed by zeros up to a multiple of 4096 bytes:
            masked   the terms `A r + k` as little-endian words, without a tag
            sealed   nonce (12) | AES-256-GCM of the terms `A r` (words) | tag (16)

The head's HMAC is under a key of this block alone, so a file of another store, plan or block does
not open, whatever its name. A seal covers the head and the number of the row. Masked terms have no
tag: a plan that checks every answer refuses what wrong ones give (docs/protocols/padstore.md).
Bytes of a record that belong to no node are 0, or the file is refused. The key file says what a row
holds and whether a store is sealed; this file does not.
"""

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jaxtyping import UInt8, UInt32

from cloister.base import files
from cloister.base.aead import NONCE_BYTES, TAG_BYTES, seal
from cloister.base.hkdf import derive
from cloister.base.rng import SystemRandom
from cloister.errors import PadStoreError
from cloister.ring.pad_block import BLOCK_ROWS_MAX
from cloister.trusted.pads.pad_layout import PadLayout

MAGIC = b"CLSRPAD2"
SUFFIX = ".pad"
DAMAGED_SUFFIX = ".damaged"
ALIGNED_BYTES = 4096
"""Records are read past the page cache, which asks for whole blocks of the disk."""
_WORD_BYTES = 4
_HEAD = struct.Struct(">8s16s32sQIQB")
_OWNER = struct.Struct(">8s16s32sQ")
"""The beginning of a head, which says whose file it is."""
_HEAD_TAGS = b"cloister pad block head v1"
_SEALS = b"cloister pad block seals v1"
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Troubles of this process, which say nothing about the file."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class BlockFiles:
    """Reads and writes the files of one store.

    layout   of a row
    sealed   whether rows are sealed here; else they are masked already

    Secret   key
    """

    folder: Path
    key: bytes
    store_id: bytes
    plan_digest: bytes
    layout: PadLayout
    sealed: bool

    def __repr__(self) -> str:
        return f"BlockFiles({str(self.folder)!r})"

    @property
    def record_bytes(self) -> int:
        """Of a row on the disk."""
        return -(-self._row_bytes // ALIGNED_BYTES) * ALIGNED_BYTES

    @property
    def _row_bytes(self) -> int:
        overhead = NONCE_BYTES + TAG_BYTES if self.sealed else 0
        return _WORD_BYTES * self.layout.words + overhead

    @cached_property
    def _unused(self) -> np.ndarray:
        """The words of a masked record that belong to no node."""
        used = np.zeros(self.record_bytes // _WORD_BYTES, np.uint32)
        for terms in self.layout.views(used[: self.layout.words]).values():
            terms[...] = 1
        return np.flatnonzero(used == 0)

    def path(self, block: int) -> Path:
        """Where a block lies."""
        return self.folder / f"{block}{SUFFIX}"

    def write(self, block: int, terms: UInt32[np.ndarray, "rows words"]) -> None:
        """Make a block durable: the file is there completely, or not at all.

        Raises   PadStoreError when it cannot be written; nothing is left behind
        """
        head = self._head(block, len(terms))
        try:
            with files.replacing(self.path(block), private=True) as file:
                _write_all(file.fileno(), head.ljust(ALIGNED_BYTES, b"\0"))
                for number, row in enumerate(terms):
                    record = self._seal(head, block, number, row) if self.sealed else row.data
                    _write_all(file.fileno(), record)
                    _write_all(file.fileno(), bytes(self.record_bytes - record.nbytes))
                _leave_page_cache(file.fileno())
        except OSError as error:
            reason = error.strerror
            if error.errno in _FULL:
                reason = "the disk is full; free space or choose another folder"
            raise PadStoreError(f"pad store {self.folder}: {reason}") from None

    def open(self, block: int) -> "BlockReader":
        """The block's file, whose head has been checked.

        Raises   PadStoreError naming the file when it is missing or not what was written; then it
                 is moved out of the way
        """
        with self._damage(block), contextlib.ExitStack() as stack:
            file = _open_regular(self.path(block))
            stack.callback(os.close, file)
            head, rows = self._read_head(file, block)
            if os.fstat(file).st_size != ALIGNED_BYTES + rows * self.record_bytes:
                raise OSError(errno.EINVAL, "has the wrong size; it was cut or replaced")
            # As long as it is open, no other process takes it for a leftover.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # Large reads past the page cache cost no copy; where they are not possible, others do.
            with contextlib.suppress(OSError):
                fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
            reader = BlockReader(self, block, rows, head, file)
            stack.pop_all()
        return reader

    def owner(self, block: int) -> bytes | None:
        """The id of the store that a file says it belongs to, if it says so."""
        found = bytearray(_OWNER.size)
        try:
            with _opened(self.path(block)) as file:
                _fill(file, memoryview(found), 0)
        except OSError:
            return None
        magic, store_id, _, _ = _OWNER.unpack(found)
        return bytes(store_id) if magic == MAGIC else None

    def rows(self, block: int) -> int:
        """How many rows a file holds by its size, which nothing vouches for; 0 if it is none."""
        try:
            found = os.lstat(self.path(block))
        except OSError:
            return 0
        rows = (found.st_size - ALIGNED_BYTES) // self.record_bytes
        return min(max(rows, 0), BLOCK_ROWS_MAX) if stat.S_ISREG(found.st_mode) else 0

    def blocks(self) -> list[int]:
        """The blocks that have a file."""
        with os.scandir(self.folder) as entries:
            stems = [e.name.removesuffix(SUFFIX) for e in entries if e.name.endswith(SUFFIX)]
        return sorted(int(s) for s in stems if s.isascii() and s.isdigit() and str(int(s)) == s)

    def remove(self, block: int) -> None:
        """Delete a block's file if it can be; only space depends on it, never security."""
        with contextlib.suppress(OSError):
            self.path(block).unlink()

    def remove_unless_open(self, block: int) -> None:
        """Delete a block's file, unless a process reads it."""
        with contextlib.suppress(OSError), _opened(self.path(block)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path(block).unlink()

    def remove_leftovers(self) -> None:
        """Delete what makers that died in the middle have left."""
        files.remove_leftovers(self.folder)

    @contextlib.contextmanager
    def _damage(self, block: int) -> Iterator[None]:
        """Set a file aside that cannot be read or is not what was written, and name it."""
        path = self.path(block)
        try:
            yield
        except OSError as error:
            if error.errno not in _PASSING:
                _set_aside(path)
            raise PadStoreError(f"pads {path}: {error.strerror}") from None
        except InvalidTag:
            _set_aside(path)
            raise PadStoreError(f"pads {path}: was changed since it was written") from None

    def _head(self, block: int, rows: int) -> bytes:
        fields = _HEAD.pack(
            MAGIC, self.store_id, self.plan_digest, block, rows, self.layout.words, self.sealed
        )
        return fields + hmac.digest(self._key(_HEAD_TAGS, block), fields, hashlib.sha256)

    def _read_head(self, file: int, block: int) -> tuple[bytes, int]:
        """The head, and how many rows it says."""
        found = bytearray(ALIGNED_BYTES)
        _fill(file, memoryview(found), 0)
        if not found.startswith(MAGIC):
            raise OSError(errno.EINVAL, "is not a file of this version")
        if found[: _OWNER.size] != _OWNER.pack(MAGIC, self.store_id, self.plan_digest, block):
            raise OSError(
                errno.EINVAL, "belongs to another store or block; it was copied or renamed"
            )
        rows = _HEAD.unpack_from(found)[4]
        head = self._head(block, rows)
        if not hmac.compare_digest(found, head.ljust(ALIGNED_BYTES, b"\0")):
            raise InvalidTag
        return head, rows

    def _seal(self, head: bytes, block: int, row: int, terms: np.ndarray) -> memoryview:
        key = self._key(_SEALS, block)
        sealed = seal(key, terms.tobytes(), aad=_aad(head, row), rng=SystemRandom())
        return memoryview(sealed)

    def _key(self, purpose: bytes, block: int) -> bytes:
        return derive(self.key, info=purpose + self.plan_digest + block.to_bytes(8, "big"))


class BlockReader:
    """An opened block; `rows` is how many it has."""

    def __init__(self, of: BlockFiles, block: int, rows: int, head: bytes, file: int) -> None:
        self.rows = rows
        self._of = of
        self._block = block
        self._head = head
        self._file = file

    def read(self, row: int, records: UInt8[np.ndarray, "rows nbytes"]) -> None:
        """Read whole records, from that of `row` on; the memory begins at a page.

        Raises   PadStoreError; then the file is moved out of the way
        """
        of = self._of
        with of._damage(self._block):
            _fill(self._file, records.reshape(-1).data, ALIGNED_BYTES + row * of.record_bytes)
            for record in records:
                unused = record[of._row_bytes :] if of.sealed else record.view("<u4")[of._unused]
                if unused.any():
                    raise InvalidTag

    def unseal(
        self, row: int, record: UInt8[np.ndarray, " nbytes"], out: UInt32[np.ndarray, " words"]
    ) -> None:
        """The terms of a sealed record.

        Raises   PadStoreError when it is not what was written; then nothing is left in `out`, and
                 the file is moved out of the way
        """
        sealed = record.data[: NONCE_BYTES + out.nbytes + TAG_BYTES]
        aead = AESGCM(self._of._key(_SEALS, self._block))
        try:
            with self._of._damage(self._block):
                # Straight into memory that can be erased; bytes objects cannot be.
                aead.decrypt_into(
                    sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _aad(self._head, row),
                    out.data.cast("B"),
                )  # fmt: skip
        except BaseException:
            out.fill(0)
            raise

    def close(self) -> None:
        """Close the file; other processes may delete it now."""
        os.close(self._file)


def _aad(head: bytes, row: int) -> bytes:
    return head + row.to_bytes(4, "big")


def _set_aside(path: Path) -> None:
    # Kept for inspection; its rows count as missing. Something planted may be in the way of the
    # name.
    for target in (path, path.with_name(f"{path.stem}-{os.urandom(8).hex()}")):
        with contextlib.suppress(OSError):
            path.rename(target.with_suffix(DAMAGED_SUFFIX))
            return


def _open_regular(path: Path) -> int:
    # Never through a link, and never a pipe or device that would block or answer twice.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is not a regular file")
    return file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = _open_regular(path)
    try:
        yield file
    finally:
        os.close(file)


def _fill(file: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        try:
            count = os.preadv(file, [buffer], offset)
        except OSError as error:
            direct = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
            if error.errno != errno.EINVAL or not direct:
                raise
            # The file system takes no such read after all.
            fcntl.fcntl(file, fcntl.F_SETFL, 0)
            continue
        if count == 0:
            raise OSError(errno.EIO, "is shorter than it should be")
        buffer, offset = buffer[count:], offset + count


def _leave_page_cache(file: int) -> None:
    """Write a file out, and keep no copy in memory: reads go past it, and deletion is faster."""
    os.fsync(file)
    with contextlib.suppress(OSError):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(file, view) :]
