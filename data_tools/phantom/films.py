"""Synthetic scanned films and the masks that lie beside them, as CBIS-DDSM stores both: Secondary Capture, no window.

A film is drawn as a mammogram and then made to look scanned: 16 bits of few distinct values, metal letters, in some the
bright frame beyond the film's border and light that leaked in at the chest wall.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.phantom.breast import COLS, ROWS, WIDTH, Breast, Lesion, lesion_position, render
from data_tools.phantom.dicom import burn_in_marker

STRETCH = 16  # from the 12 bits of the drawing to 16
FRAME = 4  # pixels of the frame at top and bottom
LEAK = 6000  # value of the light leaked in at the chest wall


@dataclass(frozen=True)
class FilmHeader:
    """What the header of a file says.

    Attributes:
        name: PatientID: the film, for masks and cut-outs with the number of the lesion.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        image: SOPInstanceUID.
        description: SeriesDescription.
        side: ``L`` or ``R``.
        view: ``CC`` or ``MLO``, which stands in PatientOrientation.
        compressed: RLE instead of plain.
    """

    name: str
    study: str
    series: str
    image: str
    description: str
    side: str
    view: str
    compressed: bool = False


def draw_film(
    breast: Breast, view: str, side: str, lesions: tuple[Lesion, ...], rng: np.random.Generator, framed: bool
) -> NDArray[np.uint16]:
    """One film uint16 [ROWS, COLS] with its letters; the chest wall of a right breast is at the right.

    Args:
        view: ``cc`` or ``mlo``.
        framed: whether the scanner saw past the film, and light leaked in.
    """
    pixels = render(breast, f"ffdm_{view}", lesions, rng)
    if side == "R":
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    film = burn_in_marker(pixels, f"{side} {view.upper()}", side, 3800).astype(np.uint16) * np.uint16(STRETCH)
    if framed:
        leak = (LEAK * np.exp(-np.arange(COLS) / 4.0)).astype(np.uint16) // STRETCH * STRETCH
        film = np.maximum(film, (leak if side == "L" else leak[::-1])[None, :].astype(np.uint16))
        film[:FRAME] = film[-FRAME:] = 65000
    return film


def draw_outline(lesion: Lesion, breast: Breast, view: str, side: str) -> NDArray[np.uint8]:
    """The mask of a lesion: uint8 [ROWS, COLS], 255 in a disc of its size, else 0."""
    row, col = lesion_position(lesion.centre, view, breast.axes)
    radius = 0.5 * lesion.diameter * breast.axes[2] * COLS / WIDTH
    y, x = np.ogrid[:ROWS, :COLS]
    mask = np.where((y - row) ** 2 + (x - col) ** 2 <= radius**2, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(mask[:, ::-1]) if side == "R" else mask


def cut_out(film: NDArray[np.uint16], mask: NDArray[np.uint8], margin: int = 6) -> NDArray[np.uint16]:
    """The part of a film around a lesion."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(0, int(rows[0]) - margin), max(0, int(cols[0]) - margin)
    return film[top : int(rows[-1]) + margin, left : int(cols[-1]) + margin].copy()


def write_film(path: Path, pixels: NDArray[Any], header: FilmHeader) -> None:
    """Writes a film or cut-out (uint16) or a mask (uint8) [H, W] as DICOM."""
    import pydicom.uid
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset

    ds = Dataset()
    ds.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    ds.SOPInstanceUID, ds.SeriesInstanceUID = header.image, header.series
    ds.StudyInstanceUID = header.study
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20161004"
    ds.StudyTime = ds.ContentTime = "101500"
    ds.AccessionNumber, ds.Modality, ds.ConversionType, ds.StudyID = "", "MG", "WSD", "DDSM"
    ds.ReferringPhysicianName, ds.SeriesDescription, ds.BodyPartExamined = "", header.description, "BREAST"
    ds.PatientName = ds.PatientID = header.name
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.PatientOrientation, ds.Laterality = header.view, header.side
    bits = pixels.dtype.itemsize * 8
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue = int(pixels.min()), int(pixels.max())
    data = pixels.astype("<u2" if bits == 16 else "u1").tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        ds[name].VR = "US"
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if header.compressed:
        ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, ds, enforce_file_format=True)
