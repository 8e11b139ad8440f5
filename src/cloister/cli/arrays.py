"""Arrays from .npy and .npz files, never unpickled."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError
from cloister.graph.batch import batch_axis, element_type
from cloister.graph.graph import Graph


def read_array_file(path: Path, *, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by input name: those an .npz names like the inputs, or the only one.

    Raises InputError naming the file.
    """
    with parsing(f"{path}: not a readable .npy or .npz file"), open_regular(path) as file:
        try:
            found = _load(file, wanted)
        except ValueError:
            if not _holds_objects(file):
                raise
            raise InputError(
                f"{path}: holds Python objects, which are never loaded; save plain numbers"
            ) from None
    if len(wanted) == 1 and len(found) == 1:
        return {wanted[0]: next(iter(found.values()))}
    if "" in found:
        raise InputError(
            f"{path}: holds one array, the model takes {', '.join(wanted)}; save one .npz with all"
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(
            f"{path}: no array named {missing[0]!r}; save one .npz with arrays named "
            f"{', '.join(wanted)}"
        )
    return found


def _load(file: BinaryIO, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"": loaded}
    # One array needs no name; of several, none is guessed to be the input.
    only = loaded.files if len(loaded.files) == 1 else []
    keys = [key for key in wanted if key in loaded.files] or only
    return {key: loaded[key] for key in keys}


def _holds_objects(file: BinaryIO) -> bool:
    """Whether an array, or one of an archive, is stored as Python objects."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        return _header(file).hasobject
    with zipfile.ZipFile(file) as archive:
        return any(_header(archive.open(name)).hasobject for name in archive.namelist())


def _header(file: IO[bytes]) -> np.dtype:
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.read_array_header_2_0)
    )
    return read(file)[2]


def as_input(graph: Graph, name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """An array as an input of the model; a single sample gets its batch axis."""
    expected = element_type(graph, name)
    if expected.kind == "f" and array.dtype.kind == "f":
        array = array.astype(expected)
    elif array.dtype != expected:
        raise InputError(
            f"{path}: holds {array.dtype} numbers, input {name!r} takes {expected}; "
            f"convert with array.astype({str(expected)!r})"
        )
    sizes, axis = graph.sizes(name) or (), batch_axis(graph, name)
    if array.ndim == len(sizes) - 1:
        array = np.expand_dims(array, axis or 0)
    wanted = ", ".join(map(str, sizes))
    if array.ndim != len(sizes):
        raise InputError(
            f"{path}: array of {array.ndim} axes {array.shape}, input {name!r} takes ({wanted})"
        )
    pairs = enumerate(zip(sizes, array.shape, strict=True))
    if any(want != got for i, (want, got) in pairs if isinstance(want, int) and i != axis):
        raise InputError(f"{path}: array of shape {array.shape}, input {name!r} takes ({wanted})")
    return array
