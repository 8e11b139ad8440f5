"""The one way to write a file: whole or not at all, never through a link, private where it must be.

Other users may be able to write to the folder. A file is therefore written under a random name that
did not exist, and takes its own name when all of it is on the disk. A file or link that lies under
that name is replaced and never opened. `open_in_place` opens a file that has to be changed where it
lies. A process that is killed leaves its unfinished file behind, which `remove_leftovers` deletes.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from cloister.errors import InputError

OTHERS = 0o077
"""The permissions of all users but the owner."""
_LEFTOVER = re.compile(r"(.*)\.[0-9a-f]{16}\.new", re.DOTALL)
_NAME_CHARACTERS = 40
"""Of a file's name in that of its unfinished one, which may have 255 bytes."""
_IN_PLACE = {"old": 0, "any": os.O_CREAT, "new": os.O_CREAT | os.O_EXCL}
_ONLY_FILES = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Never through a link, and never blocked by a pipe."""


@contextlib.contextmanager
def replacing(path: Path, *, private: bool) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` when the block ends; if it raises, none does.

    private   for its owner alone (0600); else as the umask says, and not wider than the old one

    Raises   OSError
    """
    with _unfinished(path, private=private) as (file, temporary):
        if not private:
            _narrow(file, path)
        yield file
        _sync(file)
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def creating(path: Path, *, private: bool) -> Iterator[BinaryIO]:
    """As `replacing`, for a file that must not be there yet.

    Raises   FileExistsError, of several processes in all but one; OSError
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with _unfinished(path, private=private) as (file, temporary):
        yield file
        _sync(file)
        os.link(temporary, path)
    sync_folder(path.parent)


def replace(path: Path, content: bytes, *, private: bool) -> None:
    """See `replacing`."""
    with replacing(path, private=private) as file:
        file.write(content)


def create(path: Path, content: bytes, *, private: bool) -> None:
    """See `creating`."""
    with creating(path, private=private) as file:
        file.write(content)


def open_in_place(path: Path, which: Literal["old", "any", "new"], *, private: bool) -> int:
    """A descriptor of a file that is read and changed where it lies.

    which     `old` has to be there, `new` must not be
    private   this user's, under one name, and from now on for this user alone (0600)

    Raises   OSError, also for a link or anything but such a file
    """
    try:
        descriptor = os.open(
            path, os.O_RDWR | _IN_PLACE[which] | _ONLY_FILES, 0o600 if private else 0o666
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refusal(path, "is a link; name the file itself") from None
        raise
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _refusal(path, "is not a regular file")
        if private and found.st_uid != os.geteuid():
            raise _refusal(path, "belongs to another user; move it away")
        if private and found.st_nlink > 1:
            raise _refusal(path, "has other names (hard links); keep one of them")
        if private:
            os.fchmod(descriptor, 0o600)
        stack.pop_all()
    return descriptor


def check_private(path: Path, found: os.stat_result) -> None:
    """Refuse a secret that other users can read or change; a pipe or terminal holds none.

    Raises   InputError
    """
    if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & OTHERS:
        raise InputError(f"{path}: other users can read it; run chmod 600 on it")


def read_private(path: Path, *, most: int) -> bytes:
    """The content of a secret file, at most `most` bytes of it.

    Raises   InputError when other users can read it, OSError
    """
    with path.open("rb") as file:
        check_private(path, os.fstat(file.fileno()))
        return file.read(most)


def remove_leftovers(folder: Path, *, name: str | None = None) -> None:
    """Delete unfinished files of processes that died: of the file `name`, or all of them."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
    for one in names:
        matched = _LEFTOVER.fullmatch(one)
        if matched is None or (name is not None and matched[1] != name[:_NAME_CHARACTERS]):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / one, os.O_RDONLY | _ONLY_FILES)
            try:
                # A process that still writes it holds the lock.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / one)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _unfinished(path: Path, *, private: bool) -> Iterator[tuple[BinaryIO, str]]:
    descriptor, temporary = _locked(path, 0o600 if private else 0o666)
    with os.fdopen(descriptor, "w+b") as file:
        try:
            yield file, temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _locked(path: Path, mode: int) -> tuple[int, str]:
    while True:
        random = os.urandom(8).hex()
        name = str(path.parent / f"{path.name[:_NAME_CHARACTERS]}.{random}.new")
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _ONLY_FILES, mode)
        except OSError as error:
            error.filename = str(path)  # the caller knows no temporary name
            raise
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between creation and lock another process may have taken it for a leftover and deleted it.
        if os.fstat(descriptor).st_nlink == 1:
            return descriptor, name
        os.close(descriptor)


def _narrow(file: BinaryIO, path: Path) -> None:
    """Give a file no permission that the one it replaces withholds."""
    with contextlib.suppress(FileNotFoundError):
        old = path.lstat().st_mode
        if stat.S_ISREG(old):
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & old)


def _refusal(path: Path, why: str) -> OSError:
    return OSError(errno.EPERM, why, str(path))


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk.

    Raises   OSError
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
