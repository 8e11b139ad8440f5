"""Pictures from files: upright, opaque, and with all the bits that the file has.

Pillow turns 16-bit colours into 8 bits, saturates 16-bit grays, leaves photographs lying on their
side and drops transparency, all without a warning. Here a picture is read whole or refused. A gamma
or a colour profile changes no pixel, as in every framework for training.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from cloister.base.reading import open_regular, parsing
from cloister.data.dicom import is_dicom, read_dicom
from cloister.errors import InputError, printable

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded: a small file can unpack to gigabytes."""
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "PPM", "GIF", "WEBP")
"""Formats of Pillow that are read: others lose bits, or start programs (EPS)."""
READ = "PNG, JPEG, TIFF, BMP, GIF, PGM, WebP or DICOM"

_GRAY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX")
_WIDE = ("I", "F")
_SHOWN = 20
_FRAMED = ("PNG", "TIFF", "GIF", "WEBP")
"""Formats whose further frames are pictures of their own, unlike the previews in a JPEG."""
_PHOTOMETRIC, _SAMPLE_FORMAT, _BITS_PER_SAMPLE = 262, 339, 258
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
"""Tags of TIFF and their values."""


def read_picture(path: Path, *, background: str | None = None) -> Image.Image:
    """A picture, upright: mode L or RGB, or F with the numbers of one that has more than 8 bits.

    background   the colour behind transparent pixels; None: a picture that has any is refused

    Raises   InputError naming the file and what to do
    """
    with (
        parsing(f"{path}: the picture cannot be decoded; copy it again, or leave it out"),
        _known(path),
        # From an open file: by name, Pillow maps a TIFF into memory and turns it the wrong way.
        open_regular(path) as file,
    ):
        if not os.fstat(file.fileno()).st_size:
            raise InputError(f"{path}: the file is empty; copy it again, or remove it")
        if is_dicom(file):
            picture = read_dicom(file, path, max_pixels=MAX_PIXELS)
        else:
            picture = _read_by_pillow(file, path, background)
        if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
            raise InputError(f"{path}: holds NaN or infinity; write numbers in their place")
        return picture


def as_colour(text: str) -> tuple[int, int, int]:
    """The red, green and blue of a colour, such as white or #ffffff.

    Raises   InputError
    """
    colour: tuple[int, ...] = ()
    with suppress(ValueError):
        colour = ImageColor.getrgb(text)
    if len(colour) != 3:
        raise InputError(f"background {text}: not a colour; give a name, as white, or #rrggbb")
    return colour


@contextmanager
def _known(path: Path) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture that can be read; save it as {READ}") from None


def _read_by_pillow(file: BinaryIO, path: Path, background: str | None) -> Image.Image:
    with warnings.catch_warnings():
        # About metadata, and of a limit of Pillow that only warns; ours is checked first.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            _require_plain(image, path)
            most = max(map(_ppm_maximum, getattr(image, "tile", ())), default=0)
            image.load()
            # Pillow turns a TIFF picture itself when it loads it.
            upright = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
            if _base(image) in _WIDE:
                return _numbers(upright, image, most, path)
            if upright.has_transparency_data:
                upright = _opaque(upright, background, path)
            return upright.convert("L" if _base(image) in _GRAY else "RGB")


def _base(image: Image.Image) -> str:
    return image.mode.split(";")[0]


def _require_plain(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{path}: {image.width}x{image.height} pixels are more than the limit of "
            f"{MAX_PIXELS:,}; make it smaller"
        )
    base = _base(image)
    if base not in (*_GRAY, *_COLOUR, *_WIDE):
        raise InputError(f"{path}: its colours are {image.mode}; convert it to RGB or gray")
    if base not in _WIDE and any(map(_is_narrowed, getattr(image, "tile", ()))):
        raise InputError(
            f"{path}: has 16 bits a channel, of which 8 would be lost; convert it to 8 bits, or "
            "to an array of floating-point numbers"
        )
    if image.format == "TIFF" and _misread(image):
        raise InputError(
            f"{path}: a TIFF of signed 8-bit numbers, or of more than 8 bits where 0 is white; "
            "convert it to 8 bits, or to an array of numbers"
        )
    frames = getattr(image, "n_frames", 1) if image.format in _FRAMED else 1
    if frames > 1:
        raise InputError(f"{path}: holds {frames} pictures; save each in a file of its own")


def _is_narrowed(tile: Sequence[Any]) -> bool:
    """Whether Pillow's decoder makes 8 bits of more: its raw mode or PPM's maximum says so."""
    return ";16" in str(tile[3]) or _ppm_maximum(tile) > 255


def _ppm_maximum(tile: Sequence[Any]) -> int:
    """The largest number of a PPM or PGM that Pillow scales to its own; 0: of another file."""
    scaled = str(tile[0]).startswith("ppm") and isinstance(tile[3], tuple)
    return int(tile[3][1]) if scaled else 0


def _misread(image: Image.Image) -> bool:
    """Whether Pillow takes the numbers of a TIFF for others than they are."""
    tags = getattr(image, "tag_v2", {})
    signed_bytes = _base(image) not in _WIDE and _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    return signed_bytes or (_base(image) in _WIDE and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _numbers(upright: Image.Image, image: Image.Image, most: int, path: Path) -> Image.Image:
    """The numbers of a file; `most` is what Pillow has scaled to 65535."""
    if "transparency" in image.info:
        raise InputError(f"{path}: has a transparent gray; save it without one")
    numbers = np.asarray(upright)
    if most:
        numbers = np.rint(numbers * (most / 65535))
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS_PER_SAMPLE) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (_UNSIGNED,):
        # Pillow takes these for signed ones.
        numbers = numbers.view(np.uint32)
    return Image.fromarray(numbers.astype(np.float32))


def _opaque(image: Image.Image, background: str | None, path: Path) -> Image.Image:
    shown = image.convert("RGBA")
    if background is not None:
        behind = Image.new("RGBA", shown.size, (*as_colour(background), 255))
        return Image.alpha_composite(behind, shown)
    if (np.asarray(shown)[..., 3] < 255).any():
        raise InputError(
            f"{path}: has transparent pixels, whose colour depends on a background; give one with "
            "--background COLOUR"
        )
    return image


def skipped_text(names: Sequence[str]) -> str:
    """One clause that counts and names files that were not read."""
    return f"{len(names):,} skipped ({listed(names)})"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, printable: the first of them, and how many more there are."""
    more = len(names) - _SHOWN
    shown = ", ".join(map(printable, names[:_SHOWN]))
    return shown + (f", and {more:,} more" if more > 0 else "")
