"""Arrays from .npy and .npz files, never unpickled."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloister.errors import InputError
from cloister.graph.graph import TensorType


def read_array_file(path: Path, *, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by input name: those an .npz names like the inputs, or the only or first one.

    Raises InputError naming the file.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                found = {"": loaded}
            else:
                keys = [key for key in wanted if key in loaded.files] or loaded.files[:1]
                found = {key: loaded[key] for key in keys}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise InputError(
                f"{path}: holds Python objects, which are never loaded; save plain numbers"
            ) from None
        raise InputError(f"{path}: not a readable .npy or .npz file ({error})") from None
    except MemoryError:
        raise InputError(f"{path}: claims to hold more than fits in memory") from None
    if len(wanted) == 1 and len(found) == 1:
        return {wanted[0]: next(iter(found.values()))}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"{path}: no array named {missing[0]!r}; save one .npz with all inputs")
    return found


def with_batch_axis(
    array: np.ndarray, expected: TensorType, *, name: str, path: Path
) -> np.ndarray:
    """An array as a batch of an input's type; a single sample gets its batch axis."""
    if expected.dtype.kind == "f" and array.dtype.kind == "f":
        array = array.astype(expected.dtype)
    elif array.dtype != expected.dtype:
        raise InputError(
            f"{path}: holds {array.dtype} numbers, input {name!r} takes {expected.dtype}; "
            f"convert with array.astype({str(expected.dtype)!r})"
        )
    if array.ndim == len(expected.shape) - 1:
        array = array[None]
    wanted = ", ".join("batch" if size is None else str(size) for size in expected.shape)
    if array.ndim != len(expected.shape):
        raise InputError(
            f"{path}: array of {array.ndim} axes {array.shape}, input {name!r} takes ({wanted})"
        )
    pairs = zip(expected.shape[1:], array.shape[1:], strict=True)
    if any(want is not None and want != got for want, got in pairs):
        raise InputError(f"{path}: array of shape {array.shape}, input {name!r} takes ({wanted})")
    return array
