"""The file of a master key that counts what it has released (`cloister.published.released`).

Key and count are one file, so that neither is there without the other. It is replaced as a whole
and brought to the disk before a key leaves: whatever is killed when, the count on the disk is not
below what others hold. One count at a time goes on from the file: one process holds it, under all
of its names, a fork of that process does not, and of two masters made from the same bytes only
the one that counts first can count again. Whoever puts back an old copy makes the key forget:
keep it from others' snapshots.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import stat
import threading
from pathlib import Path

from cloister.base import files
from cloister.errors import EncryptionError, InputError


class KeyFile:
    """One master key's file, open in this process; `keep` is what `setup` and `from_bytes` take.

        with KeyFile(path, new=True) as file:
            keys = ddh.setup(4, x_bound=9, y_bound=9, rng=rng, keep=file.keep)
        with KeyFile(path) as file:
            master = ddh.MasterKey.from_bytes(file.read(), keep=file.keep)

    Raises   InputError when it is missing, readable by others, a hard link or no plain file, or
             held by another process
    """

    def __init__(self, path: Path | str, *, new: bool = False) -> None:
        """new: the file must not exist, and is made by the first `keep`."""
        # The place itself, whatever links lead there: the name of the lock follows from it.
        self._path = _resolved(Path(path))
        self._new = new
        self._digest: bytes | None = None
        """SHA-256 of what this object last read or wrote."""
        self._lock, self._process = threading.Lock(), os.getpid()
        self._held: int | None = self._hold()
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._check()
            files.remove_leftovers(self._path.parent, name=self._path.name)
            stack.pop_all()

    def close(self) -> None:
        """Let go of the file; nothing is kept in it any more."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def __enter__(self) -> "KeyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> bytes:
        """The master key's bytes, once: two masters of one file would count apart.

        Secret   result
        Raises   InputError, EncryptionError when this object has read or written them already, and
                 in a fork
        """
        self._refuse_fork()
        with self._lock:
            if self._held is None or self._digest is not None:
                raise EncryptionError(f"{self._path}: its master key is in use or was let go of")
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)
                with os.fdopen(descriptor, "rb") as file:
                    self._refuse_shared(os.fstat(file.fileno()))
                    data = file.read()
            except OSError as error:
                raise InputError(f"{self._path}: {error.strerror or error}") from None
            self._digest = hashlib.sha256(data).digest()
            return data

    def keep(self, data: bytes, /, *, replaces: bytes | None) -> None:
        """Replace the file; after any crash the old or the new bytes are there, whole.

        replaces   what this object last read or kept; None for the first bytes of a new file
        Raises   EncryptionError when that cannot be done, or when the file holds anything but
                 `replaces`, and in a fork: nothing may be released then
        """
        self._refuse_fork()
        with self._lock:
            if self._held is None:
                raise EncryptionError(f"{self._path}: was let go of; open it again to make keys")
            if not self._holds(replaces):
                raise EncryptionError(
                    f"{self._path}: holds another master key or another count than the one to be "
                    "replaced; use the one master key that was read from it or kept in it last"
                )
            try:
                files.replace(self._path, data, private=True)
            except OSError as error:
                raise EncryptionError(
                    f"{self._path}: cannot be written ({error.strerror or error}); no key is made; "
                    "make room and ask again"
                ) from None
            self._digest = hashlib.sha256(data).digest()

    def _holds(self, data: bytes | None) -> bool:
        if data is None or self._digest is None:
            return data is None and self._digest is None and self._new
        return hmac.compare_digest(hashlib.sha256(data).digest(), self._digest)

    def _hold(self) -> int:
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            descriptor = files.open_in_place(lock, "any", private=True)
        except OSError as error:
            raise InputError(f"{lock}: cannot be written ({error.strerror or error})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise InputError(f"{self._path}: is held by another process; stop it first") from None
        return descriptor

    def _refuse_fork(self) -> None:
        # A fork shares the lock on the file, but neither `_digest` nor anybody's count.
        if os.getpid() != self._process:
            raise EncryptionError(
                f"{self._path}: is held by the process that opened it, not by its forks; make "
                "keys there"
            )

    def _check(self) -> None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            if not self._new:
                raise InputError(
                    f"{self._path}: there is no such master key; make it with new=True"
                ) from None
            return
        if self._new:
            raise InputError(f"{self._path}: exists already; choose another file")
        self._refuse_shared(found)

    def _refuse_shared(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{self._path}: is no plain file; a master key is one")
        if found.st_nlink > 1:
            raise InputError(
                f"{self._path}: has {found.st_nlink} names (hard links), which would count apart; "
                "keep one of them"
            )
        files.check_private(self._path, found)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{path}: leads nowhere ({error})") from None
