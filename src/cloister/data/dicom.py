"""DICOM pictures, read by pydicom: numbers in the modality's own unit, such as Hounsfield's.

Of a file, only the elements that describe the picture are parsed. What it says of a patient stays
in the file: no error quotes a value of it.
"""

import importlib
import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from cloister.base.reading import parsing
from cloister.errors import InputError

PREAMBLE_BYTES = 128
MARK = b"DICM"
"""Behind the preamble of every file."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_ELEMENTS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", *_FRAME_GROUPS, *PIXELS,
)  # fmt: skip
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PIXEL_BITS = 8


def is_dicom(file: BinaryIO) -> bool:
    """Whether a file begins as DICOM does; the file is rewound."""
    begin = file.read(PREAMBLE_BYTES + len(MARK))
    file.seek(0)
    return begin[PREAMBLE_BYTES:] == MARK


def read_dicom(file: BinaryIO, path: Path, *, max_pixels: int) -> Image.Image:
    """The one picture of a file: mode L or RGB for plain pixels of 8 bits, F for other numbers.

    A stored number becomes slope * number + intercept. MONOCHROME1, where 0 is white, is inverted
    before, within the bits that are stored.

    Raises   InputError naming the file and what to do
    """
    pydicom = _library(path)
    damaged = f"{path}: the DICOM picture cannot be decoded; export it again, or leave it out"
    with warnings.catch_warnings(), parsing(damaged, quoted=False):
        # Warnings of pydicom quote values.
        warnings.simplefilter("ignore")
        _require_decoder(pydicom, path)
        found = pydicom.dcmread(file, specific_tags=list(_ELEMENTS))
        _require_one_picture(found, path, max_pixels)
        numbers = np.asarray(pydicom.pixels.pixel_array(found))
        if numbers.ndim == 3:
            return Image.fromarray(_pixels(numbers, found, path))
        slope, intercept = _rescaling(found, path)
        if found.PhotometricInterpretation == "MONOCHROME1":
            numbers = _inverted(numbers, found, path)
        if (slope, intercept) == (1, 0) and _is_pixels(numbers, found):
            return Image.fromarray(numbers)
        return Image.fromarray((numbers * slope + intercept).astype(np.float32))


def _library(path: Path) -> Any:  # noqa: ANN401  (pydicom's types are not needed to run)
    try:
        importlib.import_module("pydicom.pixels")
        return importlib.import_module("pydicom")
    except ImportError:
        raise InputError(
            f"{path}: pydicom reads DICOM pictures; install it by `pip install cloister[dicom]`"
        ) from None


def _require_decoder(pydicom: Any, path: Path) -> None:  # noqa: ANN401
    """Refuse what cannot be unpacked, or only without a limit."""
    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise InputError(
            f"{path}: is compressed as {syntax.name}, for which pydicom has no decoder here; "
            "install one by `pip install pylibjpeg[all]`, or save it uncompressed"
        )
    if syntax.is_deflated:
        raise InputError(f"{path}: is a deflated file; save it as Explicit VR Little Endian")


def _require_one_picture(found: Any, path: Path, max_pixels: int) -> None:  # noqa: ANN401
    if not any(name in found for name in PIXELS):
        raise InputError(f"{path}: is DICOM without pixel data; leave it out")
    frames = int(found.get("NumberOfFrames") or 1)
    if frames > 1:
        raise InputError(f"{path}: holds {frames} frames; save each in a file of its own")
    if any(name in found for name in _FRAME_GROUPS):
        raise InputError(
            f"{path}: is enhanced DICOM, which has its units frame by frame; save it as classic "
            "DICOM"
        )
    if found.Rows * found.Columns > max_pixels:
        raise InputError(
            f"{path}: {found.Columns}x{found.Rows} pixels are more than the limit of "
            f"{max_pixels:,}; make it smaller"
        )
    colours, channels = found.PhotometricInterpretation, found.get("SamplesPerPixel", 1)
    if (colours, channels) not in {*((c, 1) for c in _GRAY), *((c, 3) for c in _COLOUR)}:
        raise InputError(
            f"{path}: its colours are {colours} in {channels} channels; save it as MONOCHROME2 or "
            "RGB"
        )
    if "ModalityLUTSequence" in found:
        raise InputError(
            f"{path}: its units are in a table (Modality LUT); save it with a rescale slope"
        )
    if found.get("HighBit", found.get("BitsStored", 1) - 1) != found.get("BitsStored", 1) - 1:
        raise InputError(f"{path}: its high bit is not the last bit stored; save it anew")


def _pixels(numbers: np.ndarray, found: Any, path: Path) -> np.ndarray:  # noqa: ANN401
    if not _is_pixels(numbers, found):
        raise InputError(
            f"{path}: has {found.BitsStored} bits a channel; only colours of 8 bits are read, "
            "convert it to these"
        )
    return numbers


def _is_pixels(numbers: np.ndarray, found: Any) -> bool:  # noqa: ANN401
    return numbers.dtype == np.uint8 and found.BitsStored == _PIXEL_BITS


def _inverted(numbers: np.ndarray, found: Any, path: Path) -> np.ndarray:  # noqa: ANN401
    if numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: MONOCHROME1 of floating-point numbers; save it as MONOCHROME2")
    # The lowest and the highest number that the stored bits can hold change places.
    ends = 2**found.BitsStored - 1 if numbers.dtype.kind == "u" else -1
    inverted: np.ndarray = (ends - numbers.astype(np.int64)).astype(numbers.dtype)
    return inverted


def _rescaling(found: Any, path: Path) -> tuple[float, float]:  # noqa: ANN401
    slope, intercept = found.get("RescaleSlope"), found.get("RescaleIntercept")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise InputError(f"{path}: its rescale slope and intercept are no numbers to scale by")
    return slope, intercept
