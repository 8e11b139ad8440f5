"""Plain samples in an unnamed temporary file: read in any order while memory stays flat.

Files are read once, so that the samples that were checked are those that are encrypted.
"""

import math
import tempfile
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from cloister.errors import InputError


class Spool:
    """A temporary file without a name, which becomes an array."""

    def __init__(self, what: str) -> None:
        """Open the file; `what` begins the errors."""
        self._what = what
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, piece: bytes | memoryview) -> None:
        """Append bytes.

        Raises   InputError
        """
        try:
            self._file.write(piece)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{self._what}: its copy in the folder of temporary files cannot be written "
                f"({error.strerror}); name another folder in TMPDIR"
            ) from None

    def array(
        self, dtype: DTypeLike, shape: tuple[int, ...], *, order: Literal["C", "F"] = "C"
    ) -> np.ndarray:
        """The bytes as an array, which outlives this object.

        Raises   InputError if these are more or fewer bytes
        """
        dtype = np.dtype(dtype)
        if self._file.tell() != dtype.itemsize * math.prod(shape):
            raise InputError(f"{self._what} is not as long as its header says; save it again")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self._file, dtype, "r", shape=shape, order=order)
