"""Inputs for a model: pictures and arrays from files, preprocessed as the model expects.

Pictures (PNG, JPEG) and uint8 arrays hold pixels from 0 to 255; a model is given

    (pixel * scale - mean) / std        scale 1/255, mean 0, std 1 unless said otherwise

with one mean and std for all channels or one per channel, in the model's channel order. Arrays of
floating-point numbers are taken as they are: they are model inputs already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from cloister.cli.arrays import as_input, read_array_file
from cloister.cli.console import note
from cloister.data.pictures import read_picture, skipped_text
from cloister.errors import InputError, RangeError, ShapeError
from cloister.graph.batch import batch_axis, bound_sizes, element_type, part, sample_count
from cloister.graph.graph import Graph

PICTURES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
ARRAYS = (".npy", ".npz")


class Layout(StrEnum):
    """Order of an image model's axes."""

    NCHW = "nchw"
    NHWC = "nhwc"


class Channels(StrEnum):
    """Order of an image model's channels."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to model inputs; `resize` is (height, width)."""

    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    channels: Channels | None = None
    resize: tuple[int, int] | None = None


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


@dataclass(frozen=True)
class _Target:
    size: tuple[int, int]
    channels: Channels
    layout: Layout


def read_inputs(graph: Graph, paths: Sequence[Path], preprocessing: Preprocessing) -> Inputs:
    """Read files, and folders of files, as one batch for a model.

    Raises InputError naming the file and what to do.
    """
    if not graph.inputs:
        raise InputError("the model has no inputs, so there is nothing to give to it")
    batches: list[tuple[Path, dict[str, np.ndarray]]] = []
    names: list[str] = []
    for path in _files(paths):
        batch = _read(graph, path, preprocessing)
        count = sample_count(graph, batch)
        batches.append((path, batch))
        names += [str(path)] if count == 1 else [f"{path}[{i}]" for i in range(count)]
    if not names:
        raise InputError("no inputs given; name pictures (PNG, JPEG) or arrays (.npy, .npz)")
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
        return np.concatenate(arrays, axis)
    for path, batch in batches[1:]:
        if not np.array_equal(batch[name], arrays[0]):
            raise InputError(
                f"{path}: input {name!r} holds for all samples, and differs from that of {first}; "
                "run them apart"
            )
    return arrays[0]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(path.iterdir())
        found = [p for p in inside if p.suffix.lower() in (*PICTURES, *ARRAYS)]
        if not found:
            raise InputError(f"{path}: the folder holds no picture (PNG, JPEG) and no .npy or .npz")
        if len(found) < len(inside):
            skipped = [p.name for p in inside if p not in set(found)]
            note(f"{path}: {skipped_text(skipped)}")
        yield from found


def _read(graph: Graph, path: Path, preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix.lower() in ARRAYS:
        found = read_array_file(path, wanted=graph.inputs)
        batch = {
            name: _from_array(graph, name, array, path, preprocessing)
            for name, array in found.items()
        }
    elif len(graph.inputs) != 1:
        raise InputError(
            f"{path}: the model takes {', '.join(graph.inputs)}; give one .npz that holds them all"
        )
    else:
        (name,) = graph.inputs
        target = _target(graph, name, path, preprocessing)
        batch = {name: _prepare(_open_picture(path, target), target, preprocessing, path)[None]}
    for name, array in batch.items():
        _require_finite(array, batch_axis(graph, name), path)
    try:
        bound_sizes(graph, batch)
    except ShapeError as error:
        raise InputError(f"{path}: {error}") from None
    return batch


def _require_finite(array: np.ndarray, axis: int | None, path: Path) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = np.argwhere(~np.isfinite(array))
    which = "an array" if axis is None else f"sample {bad[:, axis].min()}"
    raise RangeError(f"{path}: {which} contains NaN or infinity; repair or leave it out")


# ---- arrays


def _from_array(
    graph: Graph, name: str, array: np.ndarray, path: Path, preprocessing: Preprocessing
) -> np.ndarray:
    expected = element_type(graph, name)
    is_batch = batch_axis(graph, name) is not None
    if array.dtype == np.uint8 and expected.kind == "f" and is_batch:
        target = _target(graph, name, path, preprocessing)
        pictures = [_as_picture(one, target, path) for one in _split_pixels(array, path)]
        return np.stack([_prepare(one, target, preprocessing, path) for one in pictures])
    return as_input(graph, name, array, path)


def _split_pixels(array: UInt8[np.ndarray, "..."], path: Path) -> Iterator[np.ndarray]:
    """Single pictures (h, w, c) of an array (h, w), (h, w, c), (n, h, w), (n, h, w, c)."""
    few = (1, 3)
    if array.ndim == 4 and array.shape[1] in few and array.shape[3] in few:
        raise InputError(
            f"{path}: the channels of shape {array.shape} may come first or last; convert the "
            "array to the model's own floating-point input"
        )
    if array.ndim == 4 and array.shape[1] in few and array.shape[3] not in few:
        array = array.transpose(0, 2, 3, 1)
    elif array.ndim == 3:
        array = array[None] if array.shape[2] in few else array[..., None]
    elif array.ndim == 2:
        array = array[None, :, :, None]
    if array.ndim != 4 or not array.size:
        raise InputError(
            f"{path}: uint8 arrays hold pixels (height, width), (height, width, channels) or a "
            f"batch of these, got shape {array.shape}"
        )
    yield from array


def _as_picture(pixels: UInt8[np.ndarray, "h w c"], target: _Target, path: Path) -> Image.Image:
    channels = pixels.shape[2]
    wanted = 1 if target.channels is Channels.GRAY else 3
    if channels != wanted:
        raise InputError(
            f"{path}: pictures with {channels} channels, the model takes {wanted}; convert them"
        )
    plane = np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels)
    return Image.fromarray(plane)


# ---- pictures


def _target(graph: Graph, name: str, path: Path, preprocessing: Preprocessing) -> _Target:
    """What kind of image an input wants."""
    known, dtype = graph.sizes(name) or (), element_type(graph, name)
    sizes = [size if isinstance(size, int) else 0 for size in known]
    if len(sizes) != 4 or 0 in sizes[1:] or dtype.kind != "f":
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
    return _Target((height, width), order, layout)


def _open_picture(path: Path, target: _Target) -> Image.Image:
    picture = read_picture(path, formats=FORMATS)
    if picture.mode not in ("L", "RGB"):
        raise InputError(
            f"{path}: pictures of more than 8 bits are not read; save it as .npy float32"
        )
    return picture.convert("L" if target.channels is Channels.GRAY else "RGB")


def _prepare(
    picture: Image.Image, target: _Target, preprocessing: Preprocessing, path: Path
) -> Float32[np.ndarray, "a b c"]:
    pixels = np.asarray(_fit(picture, target.size, preprocessing.resize, path), np.float32)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if target.channels is Channels.BGR:
        pixels = pixels[:, :, ::-1]
    channels = pixels.shape[2]
    mean = _per_channel(preprocessing.mean, channels, "--mean")
    std = _per_channel(preprocessing.std, channels, "--std")
    values = (pixels * np.float32(preprocessing.scale) - mean) / std
    if target.layout is Layout.NCHW:
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, np.float32)


def _fit(
    picture: Image.Image, size: tuple[int, int], resize: tuple[int, int] | None, path: Path
) -> Image.Image:
    """Bilinear resize; a `resize` larger than the model's input is cut to its centre."""
    height, width = resize or size
    if height < size[0] or width < size[1]:
        raise InputError(
            f"{path}: --resize {height},{width} is smaller than the model's input "
            f"{size[0]},{size[1]}"
        )
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return picture.crop((left, top, left + size[1], top + size[0]))


def _per_channel(values: Sequence[float], channels: int, option: str) -> Float32[np.ndarray, " c"]:
    if len(values) not in (1, channels):
        raise InputError(f"{option}: give one number or {channels}, one per channel")
    return np.array(values, np.float32)
