"""Reading real DICOM files of every transfer syntax that can be written here, and refusing what is not a mammogram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import JPEGBaseline8Bit, JPEGLosslessSV1

from data_tools.phantom.dicom import SYNTAXES, write_mammogram
from data_tools.pixels import dicom
from data_tools.pixels.dicom import BadImage
from m4oe_ds.errors import EnvironmentProblem
from tests.mammogram_facts import FACTS


def pixels() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 4096, (64, 48), dtype=np.uint16)


def write(path: Path, change: Callable[[Any], None] | None = None, **facts: Any) -> Path:
    write_mammogram(path, pixels(), replace(FACTS, **facts))
    if change is not None:
        ds = pydicom.dcmread(path)
        change(ds)
        ds.save_as(path)
    return path


def reason(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        dicom.decode(path)
    return caught.value.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_pixels_come_back_bit_for_bit(tmp_path: Path, syntax: str) -> None:
    path = write(tmp_path / "image.dcm", syntax=syntax)
    _, stored, extremes = dicom.decode(path)
    np.testing.assert_array_equal(stored, pixels())
    assert extremes == (pixels().min(), pixels().max())
    assert dicom.transfer_syntax(path) == getattr(pydicom.uid, syntax)


def _set(**values: Any) -> Callable[[Any], None]:
    def change(ds: Any) -> None:
        for name, value in values.items():
            setattr(ds, name, value)

    return change


def _delete_pixels(ds: Any) -> None:
    del ds.PixelData


def _two_frames(ds: Any) -> None:
    ds.NumberOfFrames = 2
    ds.PixelData = ds.PixelData * 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set(PresentationIntentType="FOR PROCESSING"), "for_processing"),
        (_set(SamplesPerPixel=3), "colour"),
        (_two_frames, "multi_frame"),
        (_delete_pixels, "no_pixels"),
        (_set(BitsStored=10, HighBit=9), "beyond_bits_stored"),
        (_set(PixelData=bytes(64 * 48 * 2)), "constant"),
    ],
)
def test_what_is_no_mammogram_is_refused(tmp_path: Path, change: Callable[[Any], None], expected: str) -> None:
    assert reason(write(tmp_path / "image.dcm", change)) == expected


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_truncated_files_are_refused(tmp_path: Path, syntax: str) -> None:
    path = write(tmp_path / "image.dcm", syntax=syntax)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    # pydicom drops an unfinished element in an encapsulated file
    assert reason(path) in ("undecodable_pixels", "unreadable_header", "no_pixels")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent.dcm") == "missing_file"
    (tmp_path / "garbage.dcm").write_bytes(np.random.default_rng(0).bytes(4096))
    assert reason(tmp_path / "garbage.dcm") == "not_dicom"
    (tmp_path / "empty.dcm").write_bytes(b"")
    assert reason(tmp_path / "empty.dcm") in ("not_dicom", "unreadable_header")


def test_missing_decoder_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydicom.pixels

    class Absent:
        is_available = False

    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda uid: Absent())
    with pytest.raises(EnvironmentProblem, match="python-gdcm"):
        dicom.require_decoders([JPEGLosslessSV1])
    monkeypatch.undo()
    dicom.require_decoders([JPEGLosslessSV1, JPEGBaseline8Bit])


def test_damaged_bytes_are_noticed_or_harmless(tmp_path: Path) -> None:
    """Whatever a damaged file does, it is converted or refused under a reason; nothing else gets out."""
    from data_tools.convert.images import convert_sample
    from data_tools.convert.sample import SampleJob

    good = write(tmp_path / "good.dcm").read_bytes()
    rng = np.random.default_rng(0)
    meta = {"side": "l", "vendor": "hologic", "dataset": "embed"}
    path = tmp_path / "bad.dcm"
    refused = set()
    for _ in range(150):
        data = bytearray(good)
        for place in rng.integers(132, len(good) - 6144, 4):  # the header only: pixels may be anything
            data[place] = rng.integers(256)
        path.write_bytes(data)
        result = convert_sample(SampleJob(meta, {"ffdm_cc": (str(path),)}, 32, 26, "b2"))
        assert len(result.bad) + len(result.members) == 1
        refused.update(reason for _, reason in result.bad)
    assert {"undecodable_pixels", "no_pixels"} <= refused
