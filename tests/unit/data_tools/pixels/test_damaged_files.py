"""Files changed at random bytes: a picture, or a reason; never another exception, and never a text of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import netpbmfile
import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.picture import read_picture
from data_tools.pixels.volume import read_volume
from tests.unit.data_tools.pixels.dicom_cases import write_dicom

TRIES = 60
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (24, 20, 3), dtype=np.uint8)
WIDE = RANDOM.integers(0, 65536, (24, 20, 3), dtype=np.uint16)
STACK = RANDOM.integers(0, 65536, (5, 9, 8), dtype=np.uint16)

PICTURES: dict[str, Callable[[Path], Any]] = {
    "rgb.png": lambda path: Image.fromarray(RGB).save(path),
    "wide.png": lambda path: path.write_bytes(imagecodecs.png_encode(WIDE)),
    "palette.png": lambda path: Image.fromarray(RGB).convert("P").save(path),
    "rgb.jpg": lambda path: Image.fromarray(RGB).save(path),
    "rgb.bmp": lambda path: Image.fromarray(RGB).save(path),
    "lzw.tif": lambda path: tifffile.imwrite(path, WIDE, photometric="rgb", compression="lzw"),
    "jpeg.tif": lambda path: tifffile.imwrite(path, RGB, photometric="rgb", compression="jpeg"),
    "wide.ppm": lambda path: netpbmfile.imwrite(path, WIDE),
    "wide.npy": lambda path: np.save(path, WIDE),
    "grey.dcm": lambda path: write_dicom(path, WIDE[:, :, 0], WindowCenter=9999, WindowWidth=20000),
}
VOLUMES: dict[str, Callable[[Path], Any]] = {
    "a.nii": lambda path: nib.save(nib.Nifti1Image(STACK, np.eye(4)), path),
    "a.nii.gz": lambda path: nib.save(nib.Nifti1Image(STACK, np.eye(4)), path),
    "stack.tif": lambda path: tifffile.imwrite(path, STACK, photometric="minisblack", compression="lzw"),
    "stack.npy": lambda path: np.save(path, STACK),
}


@pytest.mark.parametrize("name", [*PICTURES, *VOLUMES])
def test_changed_bytes_end_in_a_reason(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    (PICTURES | VOLUMES)[name](path)
    data, random = path.read_bytes(), np.random.default_rng(1)
    reasons: list[str] = []
    for _ in range(TRIES):
        changed = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            reach = min(len(data), 400) if random.random() < 0.7 else len(data)
            changed[int(random.integers(0, reach))] = int(random.integers(0, 256))
        path.write_bytes(changed)
        try:
            if name in VOLUMES:
                read_volume(path)
            else:
                read_picture(path, 1 if name.endswith("dcm") else 3)
        except BadImage as bad:
            reasons.append(bad.reason)
    assert reasons
    assert {name for reason in reasons for name in reason.split("_") if not name.isalnum()} == set()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
