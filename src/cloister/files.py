"""Secret files that survive a crash whole, and that nobody else has prepared."""

import os
from pathlib import Path


def create(path: Path) -> int:
    """A new file for its owner alone, open to read and write, in the place of any that is there.

    Whoever made a file before us would own it, or read it, or have it point elsewhere.

    Raises   OSError
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that after any crash either the old or the new content is there, whole.

    Raises   OSError
    """
    temporary = path.with_name(path.name + ".new")
    with os.fdopen(create(temporary), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
