"""Real DICOM files that come with installed packages go through the pixel path: converted, or refused with a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pydicom.data
import pytest

from data_tools.convert.images import convert_sample
from data_tools.convert.sample import SampleJob

FILES = sorted(
    path
    for path in Path(pydicom.data.__file__).parent.joinpath("test_files").rglob("*")
    if path.is_file() and path.suffix.lower() in (".dcm", ".dicom", "")
)
META = {"key": "embed-0000000000000000-l", "group": "", "dataset": "embed", "side": "l", "vendor": "", "labels": {}}


def outcome(path: Path) -> str:
    result = convert_sample(SampleJob(META, {"ffdm_cc": (str(path),)}, 64, 52, "b2"))
    assert len(result.bad) + len(result.meta["modalities"]) == 1
    return "converted" if result.meta["modalities"] else result.bad[0][1]


def test_every_bundled_file_is_converted_or_refused_with_a_reason() -> None:
    assert len(FILES) > 60
    outcomes = Counter(outcome(path) for path in FILES)
    assert outcomes["converted"] >= 10, outcomes
    assert not [reason for reason in outcomes if reason.startswith("unexpected_")], outcomes


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm", "MR_small.dcm",
        "MR_small_bigendian.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm",
    ],
)  # fmt: skip
def test_these_decode(name: str) -> None:
    """One per transfer syntax: what they show is not a breast, so only decoding and grading are tested."""
    from data_tools.pixels.dicom import decode, quiet
    from data_tools.pixels.grayscale import grade

    with quiet():
        ds, stored, extremes = decode(next(path for path in FILES if path.name == name))
        image = grade(ds, stored, extremes).part(0, 0, *stored.shape)
    assert image.shape == stored.shape
    assert 0.0 <= float(image.min()) < float(image.max()) <= 1.0
