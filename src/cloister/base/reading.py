"""Input from other parties: only files are opened, parsers fail in one way, truth values are 0 or
1.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cloister.errors import CloisterError, InputError


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read.

    A pipe would block the reader, a device may do anything, and both have no size to check.

    Raises   OSError, also for a folder, pipe, socket or device
    """
    _require_regular(os.stat(path))
    # What the path names may have changed since: the second look is at what was opened.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _require_regular(os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def require_truths(array: np.ndarray, what: str, *, kind: type[CloisterError] = InputError) -> None:
    """Refuse truth values that are stored as another number than 0 or 1.

    Compiled code reckons with the stored number: of one that is 255, ONNX Runtime's Compress makes
    255 rows of memory that was never written.

    Raises   `kind`
    """
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise kind(f"{what} holds truth values that are neither 0 nor 1; give it as booleans")


@contextmanager
def parsing(
    what: str, *, kind: type[CloisterError] = InputError, quoted: bool = True
) -> Iterator[None]:
    """A context for code that parses a file or message: its exceptions become an error of `kind`.

    The parsers of Python and of its libraries raise whatever a damaged file makes them stumble
    over, from KeyError to RecursionError; a list of these is never complete.

    what     begins the message: the file, and what it is not
    quoted   whether the message has the exception's own text, which may quote the file
    Raises   `kind`; the library's own errors pass through
    """
    try:
        yield
    except CloisterError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            raise kind(f"{error.filename}: no such file") from None
        reason = _reason(error) if quoted else type(error).__name__
        raise kind(f"{what} ({reason})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
