"""NumPy's files of arrays, .npy and .npz: never unpickled, spooled to a temporary file."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from cloister.base.reading import open_regular, parsing
from cloister.data.spool import Spool
from cloister.errors import InputError

READ_BYTES = 1 << 22
NPY, NPZ = ".npy", ".npz"


def read_array(path: Path, name: str | None = None) -> np.ndarray:
    """The array of a .npy file, or that of a name in an .npz file.

    Raises   InputError naming file and array
    """
    described = f"{path}: not a readable {NPY if name is None else NPZ} file"
    with parsing(described), open_regular(path) as file:
        if name is None:
            return _spooled(file, array_title(path, None))
        with zipfile.ZipFile(file) as archive:
            known = [member.removesuffix(NPY) for member in archive.namelist()]
            if name not in known:
                raise InputError(
                    f"{path}: holds no array {name!r} but {', '.join(known) or 'nothing'}; "
                    f"{_remedy(archive, known)}"
                )
            with archive.open(name + NPY) as member:
                return _spooled(member, array_title(path, name))


def array_title(path: Path, name: str | None) -> str:
    """The name of an array in errors."""
    return str(path) if name is None else f"{path}: array {name!r}"


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of the array that begins here.

    Raises   ValueError
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _spooled(file: IO[bytes], what: str) -> np.ndarray:
    shape, fortran, dtype = array_header(file)
    if dtype.hasobject:
        raise InputError(
            f"{what}: holds Python objects, which are never loaded; save it as numbers, or as "
            "texts by astype(str)"
        )
    left = dtype.itemsize * math.prod(shape)
    with Spool(what) as spool:
        # One byte more, so that a longer array than was said is noticed.
        while piece := file.read(min(READ_BYTES, left + 1)):
            spool.write(piece)
            left = max(0, left - len(piece))
        return spool.array(dtype, shape, order="F" if fortran else "C")


def _remedy(archive: zipfile.ZipFile, names: Sequence[str]) -> str:
    """How to name the arrays: of two, that with more axes holds the samples."""
    if len(names) == 2:
        axes = {}
        for name in names:
            with archive.open(name + NPY) as member:
                axes[name] = len(array_header(member)[0])
        samples, targets = sorted(names, key=lambda name: -axes[name])
        if axes[samples] > axes[targets]:
            return f"give --x {samples} --y {targets}"
    return "name them with --x and --y"
