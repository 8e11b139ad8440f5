"""DICOM pictures: numbers in the modality's unit, or refused by file; nothing of the patient."""

import importlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from cloister.data.folder_source import PictureOptions
from cloister.data.preprocessing import Channels
from cloister.data.sources import open_source
from cloister.errors import InputError

NAME = "Secret^Patient"


def numbers(*shape, dtype=np.uint16, low=0, high=4096, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def dataset(array, *, syntax=ExplicitVRLittleEndian, **elements):
    """A picture as a scanner would export it."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["a"])
    meta.TransferSyntaxUID = syntax
    made = FileDataset(
        "", {}, file_meta=meta, preamble=bytes(128),
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )  # fmt: skip
    made.PatientName, made.PatientID = NAME, "Secret-17"
    made.SOPClassUID = SecondaryCaptureImageStorage
    made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    made.Rows, made.Columns = array.shape[:2]
    made.SamplesPerPixel = 3 if array.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if array.ndim == 3 else "MONOCHROME2"
    if array.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * array.itemsize
    made.PixelRepresentation = int(array.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    made.PixelData = array.astype(array.dtype.newbyteorder(order)).tobytes()
    made["PixelData"].VR = "OW" if array.itemsize > 1 else "OB"
    for name, value in elements.items():
        setattr(made, name, value)
    made.HighBit = elements.get("HighBit", made.BitsStored - 1)
    return made


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

VALUES = {
    "signed": (dataset(CT), CT),
    "unsigned": (dataset(STORED, BitsStored=12), STORED),
    "rescaled": (dataset(STORED, RescaleSlope="1", RescaleIntercept="-1024"), STORED - 1024.0),
    "slope": (dataset(STORED, RescaleSlope="0.5", RescaleIntercept="3"), STORED * 0.5 + 3),
    "eight bits, rescaled": (dataset(FINE, RescaleSlope="2", RescaleIntercept="0"), FINE * 2.0),
    "implicit": (dataset(CT, syntax=ImplicitVRLittleEndian), CT),
    "big endian": (dataset(CT, syntax=ExplicitVRBigEndian), CT),
    "unused bits": (dataset(STORED | 0xF000, BitsStored=12), STORED),
    "monochrome1": (
        dataset(STORED, BitsStored=12, PhotometricInterpretation="MONOCHROME1"), 4095.0 - STORED,
    ),
    "monochrome1, signed": (
        dataset(CT, PhotometricInterpretation="MONOCHROME1"), -1.0 - CT,
    ),
    "monochrome1, rescaled": (
        dataset(
            STORED, BitsStored=12, PhotometricInterpretation="MONOCHROME1", RescaleSlope="2",
            RescaleIntercept="-5",
        ),
        (4095.0 - STORED) * 2 - 5,
    ),
    "32 bits": (dataset(STORED.astype(np.uint32) << 16), STORED * 65536.0),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_numbers_are_in_the_modalitys_unit(tmp_path, case):
    made, expected = VALUES[case]
    write(tmp_path, made)
    found, got = read(tmp_path)
    assert (found.kind, found.shape) == ("values", (12, 16, 1))
    np.testing.assert_array_equal(got[0, ..., 0], expected.astype(np.float32))


def test_eight_bits_are_pixels(tmp_path):
    write(tmp_path, dataset(FINE))
    write(tmp_path, dataset(FINE, PhotometricInterpretation="MONOCHROME1"), "sick/b.dcm")
    found, got = read(tmp_path)
    assert (found.kind, found.shape) == ("pixels", (12, 16, 1))
    np.testing.assert_array_equal(got[0, ..., 0], FINE)
    np.testing.assert_array_equal(got[1, ..., 0], 255 - FINE)


def test_colours(tmp_path):
    write(tmp_path, dataset(RGB))
    planes = dataset(RGB, PlanarConfiguration=1)
    planes.PixelData = RGB.transpose(2, 0, 1).tobytes()
    write(tmp_path, planes, "sick/b.dcm")
    found, got = read(tmp_path)
    assert (found.kind, found.shape) == ("pixels", (12, 16, 3))
    np.testing.assert_array_equal(got, [RGB, RGB])
    assert read(tmp_path, channels=Channels.GRAY)[0].shape == (12, 16, 1)


@pytest.mark.parametrize("name", ["sick/IM-0001", "sick/1.2.840.113", "sick/A.DCM", "sick/x.img"])
def test_any_name_will_do(tmp_path, name):
    write(tmp_path, dataset(CT), name)
    assert read(tmp_path)[0].where(0) == name


def test_run_length_encoding_needs_no_library(tmp_path):
    made = dataset(STORED, BitsStored=12)
    made.compress(RLELossless, generate_instance_uid=False)
    write(tmp_path, made)
    np.testing.assert_array_equal(read(tmp_path)[1][0, ..., 0], STORED)


def test_jpeg_2000_is_decoded_by_pillow(tmp_path):
    packed = BytesIO()
    Image.fromarray(FINE).save(packed, "JPEG2000", no_jp2=True)
    made = dataset(FINE, syntax=JPEG2000)
    made.PixelData = encapsulate([packed.getvalue()])
    made["PixelData"].is_undefined_length = True
    write(tmp_path, made)
    np.testing.assert_array_equal(read(tmp_path)[1][0, ..., 0], FINE)


def encapsulated(syntax):
    made = dataset(FINE, syntax=syntax)
    made.PixelData = encapsulate([b"\xff\xd8 no picture \xff\xd9"])
    made["PixelData"].is_undefined_length = True
    return made


def without(*names):
    made = dataset(CT)
    for name in names:
        delattr(made, name)
    return made


def directory():
    made = dataset(CT)
    made.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    del made.PixelData
    return made


REFUSED = {
    "frames": (dataset(STORED, NumberOfFrames=3), "holds 3 frames; save each in a file of its own"),
    "no pixels": (without("PixelData"), "is DICOM without pixel data; leave it out"),
    "directory": (directory(), "is DICOM without pixel data; leave it out"),
    "no size": (without("Rows"), r"cannot be decoded; export it again, or leave it out \(Attr"),
    "no colours": (without("PhotometricInterpretation"), "cannot be decoded; export it again"),
    "short": (dataset(CT, Rows=40), "cannot be decoded; export it again"),
    "lossless JPEG": (
        encapsulated(JPEGLosslessSV1),
        r"is compressed as JPEG Lossless.*no decoder here; install one by .*pylibjpeg",
    ),
    "JPEG-LS": (encapsulated(JPEGLSLossless), "is compressed as JPEG-LS.*or save it uncompressed"),
    "broken JPEG 2000": (encapsulated(JPEG2000), "cannot be decoded; export it again"),
    "video": (encapsulated("1.2.840.10008.1.2.4.102"), "is compressed as MPEG-4.*uncompressed"),
    "palette": (
        dataset(FINE, PhotometricInterpretation="PALETTE COLOR"),
        "its colours are PALETTE COLOR in 1 channels; save it as MONOCHROME2 or RGB",
    ),
    "deep colours": (dataset(RGB.astype(np.uint16)), "has 16 bits a channel; only colours of 8"),
    "table of units": (dataset(STORED, ModalityLUTSequence=Sequence([])), "units are in a table"),
    "enhanced": (dataset(CT, SharedFunctionalGroupsSequence=Sequence([])), "is enhanced DICOM"),
    "no slope": (dataset(STORED, RescaleSlope="0"), "rescale slope and intercept are no numbers"),
    "high bit": (dataset(STORED, BitsStored=12, HighBit=15), "its high bit is not the last"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pictures_that_are_refused(tmp_path, case):
    made, message = REFUSED[case]
    write(tmp_path, made)
    with pytest.raises(InputError, match=f"1 of 1 cannot be used: sick/a.dcm: .*{message}") as told:
        read(tmp_path)
    assert "Secret" not in str(told.value)


def test_a_deflated_file_is_refused_before_it_is_unpacked(tmp_path):
    write(tmp_path, dataset(CT, syntax=DeflatedExplicitVRLittleEndian))
    with pytest.raises(InputError, match="is a deflated file; save it as Explicit VR"):
        read(tmp_path)


def test_large_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
    write(tmp_path, dataset(CT))
    monkeypatch.setattr("cloister.data.pictures.MAX_PIXELS", 191)
    with pytest.raises(InputError, match="16x12 pixels are more than the limit of 191"):
        read(tmp_path)


def test_files_that_were_cut_are_refused(tmp_path):
    whole = write(tmp_path, dataset(CT)).read_bytes()
    for part in (140, 200, 300, len(whole) // 2, len(whole) - 1):
        (tmp_path / "sick/a.dcm").write_bytes(whole[:part])
        with pytest.raises(InputError, match=r"sick/a.dcm: .*(again|leave it out)") as told:
            read(tmp_path)
        assert "Secret" not in str(told.value)


def test_what_names_a_patient_is_not_parsed(tmp_path, monkeypatch):
    write(tmp_path, dataset(CT, RescaleSlope="2", RescaleIntercept="1"))
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
    write(tmp_path, dataset(CT))
    write(tmp_path, dataset(FINE), "well/b.dcm")
    with pytest.raises(InputError, match=r"gray of more than 8 bits \(sick/a.dcm\).*of bits"):
        read(tmp_path)


def test_the_library_is_named_where_it_is_missing(tmp_path, monkeypatch):
    write(tmp_path, dataset(CT))
    found = importlib.import_module

    def missing(name, *more):
        if name.startswith("pydicom"):
            raise ModuleNotFoundError(name)
        return found(name, *more)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"sick/a.dcm: .*pip install cloister\[dicom\]"):
        read(tmp_path)
