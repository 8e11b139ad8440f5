"""Pictures from files: upright, opaque, and with all the bits that the file has.

Pillow turns 16-bit colours into 8 bits, saturates 16-bit grays, leaves photographs lying on their
side and drops transparency, all without a warning. Here a picture is read whole or refused.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded: a small file can unpack to gigabytes."""

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""
_GRAY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX")
_WIDE = ("I", "F")
_SHOWN = 3
_FRAMED = ("PNG", "TIFF")
"""Formats whose further frames are pictures of their own, unlike the previews in a JPEG."""


@dataclass(frozen=True)
class PictureKind:
    """The description of a file's picture: (height, width, channels) once it is upright.

    wide   more than 8 bits: its numbers are values in the maker's units, not pixels of 0 to 255
    """

    shape: tuple[int, int, int]
    wide: bool


def picture_kind(path: Path, *, formats: Sequence[str] | None = None) -> PictureKind:
    """Look at a picture's header; nothing is decoded.

    Raises   InputError naming the file and what to do
    """
    with _opened(path, formats) as image:
        return _kind(image)


def read_picture(path: Path, *, formats: Sequence[str] | None = None) -> Image.Image:
    """A picture, upright: mode L or RGB, or one of more than 8 bits (I;16, I, F).

    Raises   InputError naming the file and what to do
    """
    with _opened(path, formats) as image:
        kind = _kind(image)
        image.load()
        # Pillow turns a TIFF picture itself when it loads it, and its header says so beforehand.
        upright = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
        if kind.wide:
            return upright.copy()
        if "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in image.info:
            _require_opaque(upright, path)
        return upright.convert("L" if kind.shape[2] == 1 else "RGB")


@contextmanager
def _opened(path: Path, formats: Sequence[str] | None) -> Iterator[Image.Image]:
    # From an open file: by name, Pillow maps a TIFF into memory and turns it the wrong way.
    with (
        parsing(f"{path}: the picture cannot be decoded"),
        _known(path, formats),
        open_regular(path) as file,
        warnings.catch_warnings(),
    ):
        # Pillow's own, higher limit only warns; ours is checked before any pixel is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=None if formats is None else tuple(formats)) as image:
            _require_plain(image, path)
            yield image


@contextmanager
def _known(path: Path, formats: Sequence[str] | None) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        named = "picture" if formats is None else " or ".join(formats) + " picture"
        raise InputError(f"{path}: not a {named}") from None


def _require_plain(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{path}: {image.width}x{image.height} pixels are more than the limit of "
            f"{MAX_PIXELS:,}; make it smaller"
        )
    base = image.mode.split(";")[0]
    if base not in (*_GRAY, *_COLOUR, *_WIDE):
        raise InputError(f"{path}: its colours are {image.mode}; convert it to RGB or gray")
    if base not in _WIDE and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise InputError(
            f"{path}: has 16 bits a channel, of which 8 would be lost; convert it to 8 bits, or "
            "to an array of floating-point numbers"
        )
    frames = getattr(image, "n_frames", 1) if image.format in _FRAMED else 1
    if frames > 1:
        raise InputError(f"{path}: holds {frames} pictures; save each in a file of its own")


def _kind(image: Image.Image) -> PictureKind:
    base = image.mode.split(";")[0]
    height, width = image.height, image.width
    if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED:
        height, width = width, height
    return PictureKind((height, width, 3 if base in _COLOUR else 1), base in _WIDE)


def _require_opaque(image: Image.Image, path: Path) -> None:
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if (alpha < 255).any():
        raise InputError(
            f"{path}: has transparent pixels, whose colour depends on a background; put it on one"
        )


def skipped_text(names: Sequence[str]) -> str:
    """One clause that counts and names files that were not read."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} skipped ({shown})"
