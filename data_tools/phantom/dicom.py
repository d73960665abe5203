"""Writes a phantom mammogram as a DICOM file: Digital Mammography X-Ray Image, For Presentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYNTAXES = ("ExplicitVRLittleEndian", "JPEG2000Lossless", "RLELossless", "JPEGLSLossless", "JPEGLosslessSV1")
# SNOMED CT codes of DICOM context group 4014, by the values of ViewPosition
_VIEW_CODES = {
    "CC": ("399162004", "cranio-caudal"),
    "MLO": ("399368009", "medio-lateral oblique"),
    "ML": ("399260004", "medio-lateral"),
    "XCCL": ("399192008", "cranio-caudal exaggerated laterally"),
}
_GLYPHS = {  # 5 x 7 dots, one number per row
    "C": (14, 17, 16, 16, 16, 17, 14),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "R": (30, 17, 17, 30, 20, 18, 17),
    " ": (0, 0, 0, 0, 0, 0, 0),
}


@dataclass(frozen=True)
class DicomFacts:
    """What the header of one file says. ``window``: (centre, width) pairs, none to several; times ``HHMMSS``."""

    patient: str
    accession: str
    study_uid: str
    series_uid: str
    sop_uid: str
    date: str
    time: str
    study_description: str
    series_description: str
    side: str
    view: str
    sex: str
    manufacturer: str
    model: str
    bits: int
    window: tuple[tuple[int, int], ...]
    syntax: str = "ExplicitVRLittleEndian"
    monochrome1: bool = False
    padding: int | None = None  # stored value of padding pixels, PixelPaddingValue
    voi_function: str = ""
    voi_lut: bool = False  # a VOI LUT sequence with 12-bit entries in a 16-bit table


def uid(*parts: object) -> str:
    """A UID that follows from the parts."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["phantom", *(str(part) for part in parts)]))


def burn_in_marker(pixels: NDArray[np.uint16], text: str, side: str, top: int) -> NDArray[np.uint16]:
    """Writes e.g. ``R MLO`` into the air beside the breast, in grey value ``top``; the chest wall of R is at right."""
    dots = np.zeros((7, 6 * len(text)), np.uint16)
    for place, letter in enumerate(text):
        for row, code in enumerate(_GLYPHS[letter]):
            for bit in range(5):
                dots[row, 6 * place + bit] = (code >> (4 - bit)) & 1
    stamp = np.kron(dots, np.ones((2, 2), np.uint16)) * np.uint16(top)
    out = pixels.copy()
    left = 8 if side == "R" else pixels.shape[1] - stamp.shape[1] - 6
    area = out[8 : 8 + stamp.shape[0], left : left + stamp.shape[1]]
    np.maximum(area, stamp, out=area)
    return out


def _code(value: str, meaning: str) -> Any:
    """A code item of SNOMED CT."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _voi_lut(bits: int) -> Any:
    """A straight table whose entries use 12 of the 16 bits its descriptor promises."""
    from pydicom.dataset import Dataset

    item = Dataset()
    entries = np.linspace(0, 4095, 2**bits).round().astype("<u2")
    item.add_new((0x0028, 0x3002), "US", [2**bits % 65536, 0, 16])
    item.add_new((0x0028, 0x3006), "OW", entries.tobytes())
    return item


def _dataset(facts: DicomFacts) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID, DigitalMammographyXRayImageStorageForPresentation

    ds = Dataset()
    ds.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    ds.SOPInstanceUID, ds.SeriesInstanceUID = UID(facts.sop_uid), UID(facts.series_uid)
    ds.StudyInstanceUID = UID(facts.study_uid)
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = facts.date.replace("-", "")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = facts.time
    ds.AccessionNumber, ds.Modality, ds.PresentationIntentType = facts.accession, "MG", "FOR PRESENTATION"
    ds.Manufacturer, ds.ManufacturerModelName = facts.manufacturer, facts.model
    ds.StudyDescription, ds.SeriesDescription = facts.study_description, facts.series_description
    ds.PatientName, ds.PatientID, ds.PatientSex, ds.PatientBirthDate = "SYNTHETIC^PHANTOM", facts.patient, facts.sex, ""
    ds.SpecificCharacterSet, ds.DetectorType = "ISO_IR 100", "DIRECT"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.AnatomicRegionSequence = [_code("76752008", "Breast")]
    view = _code(*_VIEW_CODES.get(facts.view, _VIEW_CODES["CC"]))
    view.ViewModifierCodeSequence = []
    ds.ViewCodeSequence, ds.AcquisitionContextSequence = [view], []
    ds.ReferringPhysicianName, ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "", "1", 1, 1
    ds.BodyPartExamined, ds.ImageLaterality, ds.ViewPosition = "BREAST", facts.side, facts.view
    ds.BreastImplantPresent, ds.PositionerType, ds.OrganExposed = "NO", "MAMMOGRAPHIC", "BREAST"
    ds.ImageType = ["DERIVED", "PRIMARY", "", "GENERATED_2D" if facts.bits == 10 else ""]
    toward = "A" if facts.side == "L" else "P"
    down = ("R" if facts.side == "L" else "L") if facts.view != "MLO" else ("FR" if facts.side == "L" else "FL")
    ds.PatientOrientation = [toward, down]
    return ds


def write_mammogram(path: Path, pixels: NDArray[np.uint16], facts: DicomFacts) -> None:
    """Writes one file.

    Args:
        path: target; its folder is made.
        pixels: uint16 [rows, cols] with bright tissue; stored inverted when ``facts.monochrome1``.
        facts: header values; ``facts.syntax`` names a transfer syntax of pydicom, one of ``SYNTAXES``.
    """
    import pydicom.uid
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset

    ds = _dataset(facts)
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, facts.bits, facts.bits - 1
    ds.PhotometricInterpretation = "MONOCHROME1" if facts.monochrome1 else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if facts.monochrome1 else "IDENTITY"
    ds.ImagerPixelSpacing = [0.56, 0.56]
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.BurnedInAnnotation = 0, 1, "US", "NO"
    centres = [(2**facts.bits - 1 - centre) if facts.monochrome1 else centre for centre, _ in facts.window]
    widths = [width for _, width in facts.window]
    if widths:
        ds.WindowCenter, ds.WindowWidth = (centres, widths) if len(widths) > 1 else (centres[0], widths[0])
    if facts.voi_lut:
        ds.VOILUTSequence = [_voi_lut(facts.bits)]
    if facts.voi_function:
        ds.VOILUTFunction = facts.voi_function
    if facts.padding is not None:
        ds.PixelPaddingValue = facts.padding
    ds.LossyImageCompression = "00"
    top = np.uint16(2**facts.bits - 1)
    ds.PixelData = (top - pixels if facts.monochrome1 else pixels).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if facts.syntax not in ("ExplicitVRLittleEndian", "JPEGLosslessSV1"):
        ds.compress(getattr(pydicom.uid, facts.syntax), generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, ds, enforce_file_format=True)
    if facts.syntax == "JPEGLosslessSV1":
        _to_jpeg_lossless(path)


def _to_jpeg_lossless(path: Path) -> None:
    """Compresses a written file in place as JPEG Lossless SV1, which only GDCM can write here."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    if not reader.Read():
        raise RuntimeError("GDCM cannot read what was just written")
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError("GDCM cannot compress this image")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError("GDCM cannot write the compressed image")
