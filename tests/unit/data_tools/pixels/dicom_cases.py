"""DICOM files of any kind for tests, written by pydicom with the identifiers of a person who does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SECRET = "Doe^Jane"


def write_dicom(path: Path, pixels: NDArray[Any], **values: Any) -> Path:
    """A file with these pixels ([H, W] or [H, W, 3]); ``values`` are attributes by keyword, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID = SECRET, "4711"
    ds.Rows, ds.Columns = pixels.shape[:2]
    colour = pixels.ndim == 3
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    for name, value in values.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stack: NDArray[Any],
    spacing: tuple[float, float, float] = (2.5, 0.5, 0.75),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    seed: int = 0,
    **values: Any,
) -> list[Path]:
    """Slices ``stack`` [D, H, W] along their normal, with names and instance numbers in another order.

    Returns:
        Paths in the order of the positions.
    """
    folder.mkdir(exist_ok=True)
    series = generate_uid()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    names = np.random.default_rng(seed).permutation(len(stack))
    paths = []
    for number, pixels in enumerate(stack):
        position = np.array([-10.0, -20.0, 5.0]) + number * spacing[0] * normal
        facts = {
            "SeriesInstanceUID": series,
            "InstanceNumber": int(names[number]) + 1,
            "ImagePositionPatient": [round(float(n), 4) for n in position],
            "ImageOrientationPatient": [float(n) for n in orientation],
            "PixelSpacing": [spacing[1], spacing[2]],
        }
        path = folder / f"slice{names[number]}.dcm"
        paths.append(write_dicom(path, np.ascontiguousarray(pixels), **(facts | values)))
    return paths
