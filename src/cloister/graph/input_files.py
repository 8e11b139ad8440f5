"""Inputs for a model from files: pictures, arrays that are never unpickled, tables; as one batch.

Pictures and uint8 arrays are preprocessed (data/preprocessing.py). Arrays of floating-point numbers
are taken as they are: they are model inputs already.
"""

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32

from cloister.base.reading import open_regular, parsing
from cloister.data.array_files import array_header
from cloister.data.picture_folder import is_picture_file
from cloister.data.pictures import skipped_text
from cloister.data.preprocessing import (
    Channels,
    Layout,
    PictureForm,
    Preprocessing,
    as_picture,
    open_picture,
    prepare_picture,
    split_pixels,
)
from cloister.data.table_options import TableOptions
from cloister.errors import InputError, ShapeError
from cloister.graph.array_conversion import as_input
from cloister.graph.batch import batch_axis, bound_sizes, element_type, is_other, part, sample_count
from cloister.graph.csv_inputs import read_csv
from cloister.graph.graph import Graph
from cloister.graph.sample_form import own_pixels, sample_form

ARRAYS = (".npy", ".npz")
TABLE = ".csv"
_TABLE_AXES = 2
"""Integers on more axes may be pixels, of which only uint8 says so."""
AS_UNIT = Preprocessing()
"""Pixels from 0 to 1."""
AS_FOUND = TableOptions()
"""Tables as their files suggest."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch: arrays by input name, for every sample where it came from, and its axes."""

    arrays: dict[str, np.ndarray]
    names: tuple[str, ...]
    axes: Mapping[str, int | None]

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The first samples only; inputs without a batch stay whole."""
        return {
            name: array if (axis := self.axes[name]) is None else part(array, axis, 0, count)
            for name, array in self.arrays.items()
        }


def read_inputs(
    graph: Graph,
    paths: Sequence[Path],
    preprocessing: Preprocessing = AS_UNIT,
    *,
    columns: Sequence[str] | None = None,
    written: TableOptions = AS_FOUND,
    note: Callable[[str], None] | None = None,
) -> Inputs:
    """Read files, folders of files, and patterns (`*.png`) as one batch for a model.

    columns   of CSV files, that are the model's features (csv_inputs.py)
    written   how the text and the cells of CSV files are written
    note      called with what is left out of a folder, and values that a model never saw

    Raises   InputError naming the file and what to do
    """
    if not graph.inputs:
        raise InputError("the model has no inputs, so there is nothing to give to it")
    other = next((name for name in graph.inputs if is_other(graph, name)), None)
    if other is not None:
        raise InputError(
            f"input {other!r} is a sequence, a map or optional, which no file holds; call "
            "Session.run"
        )
    preprocessing = own_pixels(graph, preprocessing)
    batches: list[tuple[Path, dict[str, np.ndarray]]] = []
    names: list[str] = []
    for path in _files(paths, note):
        batch = _read(graph, path, preprocessing, columns, written, note)
        count = sample_count(graph, batch)
        batches.append((path, batch))
        names += [str(path)] if count == 1 else [f"{path}[{i}]" for i in range(count)]
    if not names:
        raise InputError("no inputs given; name pictures, arrays (.npy, .npz) or a .csv")
    axes = {name: batch_axis(graph, name) for name in graph.inputs}
    arrays = {name: _together(name, axes[name], batches) for name in graph.inputs}
    return Inputs(arrays, tuple(names), axes)


def _together(
    name: str, axis: int | None, batches: Sequence[tuple[Path, dict[str, np.ndarray]]]
) -> np.ndarray:
    """One input from all files."""
    first, _ = batches[0]
    arrays = [batch[name] for _, batch in batches]
    if axis is not None:
        shapes = [array.shape[:axis] + array.shape[axis + 1 :] for array in arrays]
        for (path, _), shape in zip(batches, shapes, strict=True):
            if shape != shapes[0]:
                raise InputError(
                    f"{path}: input {name!r} has samples of shape {shape}, and those of {first} "
                    f"have {shapes[0]}; run them apart, or resize them alike"
                )
        return np.concatenate(arrays, axis)
    for path, batch in batches[1:]:
        if not np.array_equal(batch[name], arrays[0]):
            raise InputError(
                f"{path}: input {name!r} holds for all samples, and differs from that of {first}; "
                "run them apart"
            )
    return arrays[0]


def _files(paths: Sequence[Path], note: Callable[[str], None] | None) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from _in_folder(path, note)
        elif has_magic(str(path)) and not path.exists():
            found = sorted(one for one in map(Path, glob(str(path))) if not one.is_dir())
            if not found:
                raise InputError(f"{path}: no file has such a name")
            yield from found
        else:
            yield path


def _in_folder(path: Path, note: Callable[[str], None] | None) -> list[Path]:
    inside = sorted(path.iterdir())
    found = [p for p in inside if p.suffix.lower() in (*ARRAYS, TABLE) or is_picture_file(p)]
    if not found:
        raise InputError(
            f"{path}: the folder holds no picture and no .npy, .npz or .csv; "
            "folders in it are not read"
        )
    if note is not None and len(found) < len(inside):
        note(f"{path}: {skipped_text([p.name for p in inside if p not in set(found)])}")
    return found


def _read(
    graph: Graph,
    path: Path,
    preprocessing: Preprocessing,
    columns: Sequence[str] | None,
    written: TableOptions,
    note: Callable[[str], None] | None,
) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix.lower() == TABLE:
        batch = read_csv(graph, path, columns, written=written, note=note)
    elif path.suffix.lower() in ARRAYS:
        found = _read_arrays(path, wanted=graph.required_inputs, optional=graph.defaults)
        batch = {
            name: _from_array(graph, name, array, path, preprocessing)
            for name, array in found.items()
        }
    elif len(graph.required_inputs) != 1:
        raise InputError(
            f"{path}: the model takes {', '.join(graph.inputs)}; give one .npz that holds them "
            "all, or a .csv with a column for each"
        )
    else:
        (name,) = graph.required_inputs
        form = picture_form(graph, name, path, preprocessing)
        batch = {name: _as_input(path, form, preprocessing)[None]}
    batch = {**graph.defaults, **batch}
    try:
        bound_sizes(graph, batch)
    except ShapeError as error:
        raise InputError(f"{path}: {error}") from None
    return batch


def _as_input(
    path: Path, form: PictureForm, preprocessing: Preprocessing
) -> Float32[np.ndarray, "a b c"]:
    picture = open_picture(path, form, preprocessing)
    return prepare_picture(picture, form, preprocessing, path)


def picture_form(graph: Graph, name: str, path: Path, preprocessing: Preprocessing) -> PictureForm:
    """What kind of image an input wants; `path` begins the message.

    Raises   InputError for an input that takes no picture
    """
    known, dtype = graph.sizes(name) or (), element_type(graph, name)
    sizes = [size if isinstance(size, int) else 0 for size in known]
    # A free height or width is that of the picture; the channels have to be stated.
    if len(sizes) != 4 or 0 in known or not (sizes[1] or sizes[3]) or dtype.kind != "f":
        raise InputError(
            f"{path}: input {name!r} takes {dtype} of shape ({', '.join(map(str, known))}), which "
            "is no picture; give a .npy or .npz array"
        )
    layout = preprocessing.layout or (
        Layout.NHWC if sizes[3] in (1, 3) and sizes[1] not in (1, 3) else Layout.NCHW
    )
    channels, height, width = sizes[1:] if layout is Layout.NCHW else (sizes[3], sizes[1], sizes[2])
    if channels not in (1, 3):
        raise InputError(
            f"{path}: input {name!r} has {channels} channels in {layout} layout, a picture has 1 "
            "or 3; correct --layout or give a .npy array"
        )
    order = preprocessing.channels or (Channels.GRAY if channels == 1 else Channels.RGB)
    if (order is Channels.GRAY) != (channels == 1):
        raise InputError(f"{path}: input {name!r} has {channels} channels, not --channels {order}")
    return PictureForm((height, width), order, layout)


# ---- arrays


def _from_array(
    graph: Graph, name: str, array: np.ndarray, path: Path, preprocessing: Preprocessing
) -> np.ndarray:
    expected = element_type(graph, name)
    is_batch = batch_axis(graph, name) is not None
    form = sample_form(graph)
    if form is not None and form.kind == "values":
        array = _own_values(graph, name, array)
    if array.dtype == np.uint8 and expected.kind == "f" and is_batch:
        shown = picture_form(graph, name, path, preprocessing)
        pictures = [as_picture(one, shown, path) for one in split_pixels(array, path)]
        return np.stack([prepare_picture(one, shown, preprocessing, path) for one in pictures])
    if array.dtype.kind in "iu" and expected.kind == "f" and array.ndim > _TABLE_AXES:
        raise InputError(
            f"{path}: holds {array.dtype} numbers, input {name!r} takes {expected}; convert pixels "
            f"to uint8, and other numbers with array.astype({str(expected)!r})"
        )
    return as_input(graph, name, array, f"{path}: input {name!r}", whole=False)


def _own_values(graph: Graph, name: str, array: np.ndarray) -> np.ndarray:
    """Samples as their owner encrypted them: whole numbers too, and other orders of their axes.

    Domain   numbers that float32 does not hold exactly are rounded, as other values are
    """
    sizes = graph.sizes(name) or ()
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if len(sizes) != 4 or array.shape[1:] == sizes[1:]:
        return array
    height, width, channels = sizes[1:]
    if array.shape[1:] == (channels, height, width):
        return array.transpose(0, 2, 3, 1)
    return array[..., None] if (*array.shape[1:], 1) == sizes[1:] else array


def _read_arrays(
    path: Path, *, wanted: Sequence[str], optional: Collection[str]
) -> dict[str, np.ndarray]:
    """Arrays by input name: those an .npz names like the inputs, or the only one.

    Raises InputError naming the file.
    """
    with parsing(f"{path}: not a readable .npy or .npz file"), open_regular(path) as file:
        try:
            found = _load(file, (*wanted, *optional))
        except ValueError:
            if not _holds_objects(file):
                raise
            raise InputError(
                f"{path}: holds Python objects, which are never loaded; save plain numbers"
            ) from None
    if len(wanted) == 1 and len(found) == 1 and set(optional).isdisjoint(found):
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
        file.seek(0)
        return array_header(file)[2].hasobject
    with zipfile.ZipFile(file) as archive:
        return any(array_header(archive.open(name))[2].hasobject for name in archive.namelist())
