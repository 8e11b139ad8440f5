"""The file of a master key that counts what it has released (`cloister.fe.released`).

Key and count are one file, so that neither is there without the other. It is replaced as a whole
and brought to the disk before a key leaves: whatever is killed when, the count on the disk is not
below what others hold. One process holds it at a time. Whoever puts back an old copy makes the
key forget: keep it from others' snapshots.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from cloister.errors import EncryptionError, InputError


class KeyFile:
    """One master key's file, open in this process; `keep` is what `setup` and `from_bytes` take.

        with KeyFile(path, new=True) as file:
            keys = ddh.setup(4, x_bound=9, y_bound=9, rng=rng, keep=file.keep)
        with KeyFile(path) as file:
            master = ddh.MasterKey.from_bytes(file.read(), keep=file.keep)

    Raises   InputError when it is missing, readable by others, or held by another process
    """

    def __init__(self, path: Path | str, *, new: bool = False) -> None:
        """new: the file must not exist, and is made by the first `keep`."""
        self._path = Path(path)
        self._in_use = False
        self._held: int | None = self._hold()
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._check(new=new)
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
        Raises   InputError, EncryptionError when this object has read or written them already
        """
        if self._held is None or self._in_use:
            raise EncryptionError(f"{self._path}: its master key is in use or was let go of")
        self._in_use = True
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror or error}") from None

    def keep(self, data: bytes) -> None:
        """Replace the file; after any crash the old or the new bytes are there, whole.

        Raises   EncryptionError when that cannot be done: nothing may be released then
        """
        if self._held is None:
            raise EncryptionError(f"{self._path}: was let go of; open it again to make keys")
        self._in_use = True
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise EncryptionError(
                f"{self._path}: cannot be written ({error.strerror or error}); no key is made; "
                "make room and ask again"
            ) from None

    def _hold(self) -> int:
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise InputError(f"{lock}: cannot be written ({error.strerror or error})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise InputError(f"{self._path}: is held by another process; stop it first") from None
        return descriptor

    def _check(self, *, new: bool) -> None:
        if not self._path.exists():
            if not new:
                raise InputError(
                    f"{self._path}: there is no such master key; make it with new=True"
                )
        elif new:
            raise InputError(f"{self._path}: exists already; choose another file")
        elif stat.S_IMODE(self._path.stat().st_mode) & 0o077:
            raise InputError(f"{self._path}: others can read it; run chmod 600 on it")
