"""DICOM files as a scanner would export them, with the name of a patient in them."""

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

NAME = "Secret^Patient"


def dicom(array, *, syntax=ExplicitVRLittleEndian, **elements):
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
