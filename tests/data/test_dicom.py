"""DICOM pictures: numbers in the modality's unit, or refused by file; nothing of the patient."""

import importlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from cloister.data.folder_source import PictureOptions
from cloister.data.preprocessing import Channels
from cloister.data.sources import open_source
from cloister.errors import InputError
from dicom_files import dicom


def numbers(*shape, dtype=np.uint16, low=0, high=4096, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def write(root, made, name="sick/a.dcm", **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True, **options)
    return path


def read(root, **options):
    found = open_source(root, pictures=PictureOptions(**options))
    return found, found.read(np.arange(len(found.labels)))


CT = numbers(12, 16, dtype=np.int16, low=-1024, high=3072)
STORED = numbers(12, 16)
FINE = numbers(12, 16, dtype=np.uint8, high=256)
RGB = numbers(12, 16, 3, dtype=np.uint8, high=256)

FLOATS = (STORED / 7).astype(np.float32)


def floats(**elements):
    made = dicom(FLOATS.view(np.uint32), **elements)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, name)
    made.FloatPixelData = FLOATS.tobytes()
    return made


VALUES = {
    "signed": (dicom(CT), CT),
    "unsigned": (dicom(STORED, BitsStored=12), STORED),
    "rescaled": (dicom(STORED, RescaleSlope="1", RescaleIntercept="-1024"), STORED - 1024.0),
    "slope": (dicom(STORED, RescaleSlope="0.5", RescaleIntercept="3"), STORED * 0.5 + 3),
    "eight bits, rescaled": (dicom(FINE, RescaleSlope="2", RescaleIntercept="0"), FINE * 2.0),
    "implicit": (dicom(CT, syntax=ImplicitVRLittleEndian), CT),
    "big endian": (dicom(CT, syntax=ExplicitVRBigEndian), CT),
    "unused bits": (dicom(STORED | 0xF000, BitsStored=12), STORED),
    "monochrome1": (
        dicom(STORED, BitsStored=12, PhotometricInterpretation="MONOCHROME1"), 4095.0 - STORED,
    ),
    "monochrome1, signed": (
        dicom(CT, PhotometricInterpretation="MONOCHROME1"), -1.0 - CT,
    ),
    "monochrome1, rescaled": (
        dicom(
            STORED, BitsStored=12, PhotometricInterpretation="MONOCHROME1", RescaleSlope="2",
            RescaleIntercept="-5",
        ),
        (4095.0 - STORED) * 2 - 5,
    ),
    "floats": (floats(), FLOATS),
    "floats, rescaled": (floats(RescaleSlope="2", RescaleIntercept="1"), FLOATS * 2 + 1),
    "32 bits": (dicom(STORED.astype(np.uint32) << 16), STORED * 65536.0),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_numbers_are_in_the_modalitys_unit(tmp_path, case):
    made, expected = VALUES[case]
    write(tmp_path, made)
    found, got = read(tmp_path)
    assert (found.kind, found.shape) == ("values", (12, 16, 1))
    np.testing.assert_array_equal(got[0, ..., 0], expected.astype(np.float32))


def test_eight_bits_are_pixels(tmp_path):
    write(tmp_path, dicom(FINE))
    write(tmp_path, dicom(FINE, PhotometricInterpretation="MONOCHROME1"), "sick/b.dcm")
    found, got = read(tmp_path)
    assert (found.kind, found.shape) == ("pixels", (12, 16, 1))
    np.testing.assert_array_equal(got[0, ..., 0], FINE)
    np.testing.assert_array_equal(got[1, ..., 0], 255 - FINE)


def test_colours(tmp_path):
    write(tmp_path, dicom(RGB))
    planes = dicom(RGB, PlanarConfiguration=1)
    planes.PixelData = RGB.transpose(2, 0, 1).tobytes()
    write(tmp_path, planes, "sick/b.dcm")
    found, got = read(tmp_path)
    assert (found.kind, found.shape) == ("pixels", (12, 16, 3))
    np.testing.assert_array_equal(got, [RGB, RGB])
    assert read(tmp_path, channels=Channels.GRAY)[0].shape == (12, 16, 1)


@pytest.mark.parametrize("name", ["sick/IM-0001", "sick/1.2.840.113", "sick/A.DCM", "sick/x.img"])
def test_any_name_will_do(tmp_path, name):
    write(tmp_path, dicom(CT), name)
    assert read(tmp_path)[0].where(0) == name


def test_run_length_encoding_needs_no_library(tmp_path):
    made = dicom(STORED, BitsStored=12)
    made.compress(RLELossless, generate_instance_uid=False)
    write(tmp_path, made)
    np.testing.assert_array_equal(read(tmp_path)[1][0, ..., 0], STORED)


def test_jpeg_2000_is_decoded_by_pillow(tmp_path):
    packed = BytesIO()
    Image.fromarray(FINE).save(packed, "JPEG2000", no_jp2=True)
    made = dicom(FINE, syntax=JPEG2000)
    made.PixelData = encapsulate([packed.getvalue()])
    made["PixelData"].is_undefined_length = True
    write(tmp_path, made)
    np.testing.assert_array_equal(read(tmp_path)[1][0, ..., 0], FINE)


def encapsulated(syntax):
    made = dicom(FINE, syntax=syntax)
    made.PixelData = encapsulate([b"\xff\xd8 no picture \xff\xd9"])
    made["PixelData"].is_undefined_length = True
    return made


def without(*names):
    made = dicom(CT)
    for name in names:
        delattr(made, name)
    return made


def directory():
    made = dicom(CT)
    made.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    del made.PixelData
    return made


REFUSED = {
    "frames": (dicom(STORED, NumberOfFrames=3), "holds 3 frames; save each in a file of its own"),
    "inverted floats": (
        floats(PhotometricInterpretation="MONOCHROME1"),
        "save it as MONOCHROME2",
    ),
    "no pixels": (without("PixelData"), "is DICOM without pixel data; leave it out"),
    "directory": (directory(), "is DICOM without pixel data; leave it out"),
    "no size": (without("Rows"), r"cannot be decoded; export it again, or leave it out \(Attr"),
    "no colours": (without("PhotometricInterpretation"), "cannot be decoded; export it again"),
    "short": (dicom(CT, Rows=40), "cannot be decoded; export it again"),
    "lossless JPEG": (
        encapsulated(JPEGLosslessSV1),
        r"is compressed as JPEG Lossless.*no decoder here; install one by .*pylibjpeg",
    ),
    "JPEG-LS": (encapsulated(JPEGLSLossless), "is compressed as JPEG-LS.*or save it uncompressed"),
    "broken JPEG 2000": (encapsulated(JPEG2000), "cannot be decoded; export it again"),
    "video": (encapsulated("1.2.840.10008.1.2.4.102"), "is compressed as MPEG-4.*uncompressed"),
    "palette": (
        dicom(FINE, PhotometricInterpretation="PALETTE COLOR"),
        "its colours are PALETTE COLOR in 1 channels; save it as MONOCHROME2 or RGB",
    ),
    "deep colours": (dicom(RGB.astype(np.uint16)), "has 16 bits a channel; only colours of 8"),
    "table of units": (dicom(STORED, ModalityLUTSequence=Sequence([])), "units are in a table"),
    "enhanced": (dicom(CT, SharedFunctionalGroupsSequence=Sequence([])), "is enhanced DICOM"),
    "no slope": (dicom(STORED, RescaleSlope="0"), "rescale slope and intercept are no numbers"),
    "high bit": (dicom(STORED, BitsStored=12, HighBit=15), "its high bit is not the last"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pictures_that_are_refused(tmp_path, case):
    made, message = REFUSED[case]
    write(tmp_path, made)
    with pytest.raises(InputError, match=f"1 of 1 cannot be used: sick/a.dcm: .*{message}") as told:
        read(tmp_path)
    assert "Secret" not in str(told.value)


def test_a_deflated_file_is_refused_before_it_is_unpacked(tmp_path):
    write(tmp_path, dicom(CT, syntax=DeflatedExplicitVRLittleEndian))
    with pytest.raises(InputError, match="is a deflated file; save it as Explicit VR"):
        read(tmp_path)


def test_large_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
    write(tmp_path, dicom(CT))
    monkeypatch.setattr("cloister.data.pictures.MAX_PIXELS", 191)
    with pytest.raises(InputError, match="16x12 pixels are more than the limit of 191"):
        read(tmp_path)


def test_files_that_were_cut_are_refused(tmp_path):
    whole = write(tmp_path, dicom(CT)).read_bytes()
    for part in (140, 200, 300, len(whole) // 2, len(whole) - 1):
        (tmp_path / "sick/a.dcm").write_bytes(whole[:part])
        with pytest.raises(InputError, match=r"sick/a.dcm: .*(again|leave it out)") as told:
            read(tmp_path)
        assert "Secret" not in str(told.value)


def test_what_names_a_patient_is_not_parsed(tmp_path, monkeypatch):
    write(tmp_path, dicom(CT, RescaleSlope="2", RescaleIntercept="1"))
    parsed = []
    dcmread = pydicom.dcmread

    def kept(*given, **options):
        parsed.append(dcmread(*given, **options))
        return parsed[-1]

    monkeypatch.setattr(pydicom, "dcmread", kept)
    read(tmp_path)
    assert len(parsed) == 1
    assert "Rows" in parsed[0]
    assert "PatientName" not in parsed[0]
    assert "PatientID" not in parsed[0]


def test_values_and_pixels_are_of_two_kinds(tmp_path):
    write(tmp_path, dicom(CT))
    write(tmp_path, dicom(FINE), "well/b.dcm")
    with pytest.raises(InputError, match=r"gray of more than 8 bits \(sick/a.dcm\).*of bits"):
        read(tmp_path)


def test_the_library_is_named_where_it_is_missing(tmp_path, monkeypatch):
    write(tmp_path, dicom(CT))
    found = importlib.import_module

    def missing(name, *more):
        if name.startswith("pydicom"):
            raise ModuleNotFoundError(name)
        return found(name, *more)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"sick/a.dcm: .*pip install cloister\[dicom\]"):
        read(tmp_path)
