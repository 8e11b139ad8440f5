"""From the pixels of a picture to the input of a model.

Pictures and uint8 arrays hold pixels from 0 to 255. The input of a model is

    (pixel * scale - mean) / std        scale 1/255, mean 0, std 1 unless said otherwise

with one mean and std for all channels or one per channel, in the model's channel order. The numbers
of a picture of more than 8 bits take the place of pixels, if a scale for them is given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from cloister.data.pictures import as_colour, read_picture
from cloister.errors import InputError

PIXEL_SCALE = 1.0 / 255.0


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
    """From pixels to model inputs; `resize` is (height, width), `background` a colour.

    kind   pixels: pictures of 8 bits alone; values: of more alone, whose numbers are the inputs;
           None: those of more than 8 bits need a scale of their own
    """

    scale: float = PIXEL_SCALE
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    channels: Channels | None = None
    resize: tuple[int, int] | None = None
    background: str | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.background is not None:
            as_colour(self.background)

    @property
    def of_unit_pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std that make the same inputs of pixels in 0..1, without a scale."""
        unit = 255 * self.scale
        return tuple(m / unit for m in self.mean), tuple(s / unit for s in self.std)


@dataclass(frozen=True)
class PictureForm:
    """The picture that a model takes: (height, width), channels and the order of its axes.

    A height or width of 0 is any: that of --resize, or of the picture.
    """

    size: tuple[int, int]
    channels: Channels
    layout: Layout


def open_picture(path: Path, form: PictureForm, preprocessing: Preprocessing) -> Image.Image:
    """A picture from a file, gray or coloured as the model takes it.

    Raises   InputError naming the file and what to do
    """
    picture = read_picture(path, background=preprocessing.background)
    wide, kind = picture.mode == "F", preprocessing.kind
    if kind is not None and wide != (kind == "values"):
        found, wanted = ("more than 8", "8") if wide else ("8", "more than 8")
        raise InputError(
            f"{path}: has {found} bits, and the model was trained on pictures of {wanted}; give "
            "those that its owner would"
        )
    if not wide:
        return picture.convert("L" if form.channels is Channels.GRAY else "RGB")
    if kind is None and preprocessing.scale == PIXEL_SCALE:
        raise InputError(
            f"{path}: has more than 8 bits; say with --scale what makes the model's input of its "
            "numbers, such as 1/4095, or save it with 8 bits"
        )
    if form.channels is not Channels.GRAY:
        raise InputError(
            f"{path}: has more than 8 bits and is gray, the model takes colours; save it with 8 "
            "bits"
        )
    return picture


def prepare_picture(
    picture: Image.Image, form: PictureForm, preprocessing: Preprocessing, path: Path
) -> Float32[np.ndarray, "a b c"]:
    """A picture as one sample, (c, h, w) or (h, w, c) as the form has it.

    Raises   InputError naming the file and what to do
    """
    pixels = np.asarray(_fit(picture, form.size, preprocessing.resize, path), np.float32)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if form.channels is Channels.BGR:
        pixels = pixels[:, :, ::-1]
    channels = pixels.shape[2]
    mean = _per_channel(preprocessing.mean, channels, "--mean")
    std = _per_channel(preprocessing.std, channels, "--std")
    values = (pixels * np.float32(preprocessing.scale) - mean) / std
    if form.layout is Layout.NCHW:
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, np.float32)


def _fit(
    picture: Image.Image, size: tuple[int, int], resize: tuple[int, int] | None, path: Path
) -> Image.Image:
    """Bilinear resize; a `resize` larger than the model's input is cut to its centre."""
    height, width = resize or (size[0] or picture.height, size[1] or picture.width)
    size = size[0] or height, size[1] or width
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


def split_pixels(array: Shaped[np.ndarray, "..."], path: Path) -> Iterator[np.ndarray]:
    """Single pictures (h, w, c) of an array (h, w), (h, w, c), (n, h, w), (n, h, w, c).

    Raises   InputError naming the file and what to do
    """
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
            f"{path}: arrays of pixels are (height, width), (height, width, channels) or a "
            f"batch of these, got shape {array.shape}"
        )
    yield from array


def as_picture(pixels: UInt8[np.ndarray, "h w c"], form: PictureForm, path: Path) -> Image.Image:
    """Pixels of an array as a picture.

    Raises   InputError naming the file and what to do
    """
    channels = pixels.shape[2]
    wanted = 1 if form.channels is Channels.GRAY else 3
    if channels != wanted:
        raise InputError(
            f"{path}: pictures with {channels} channels, the model takes {wanted}; convert them"
        )
    plane = np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels)
    return Image.fromarray(plane)
