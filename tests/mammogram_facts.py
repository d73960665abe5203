"""What a synthetic mammogram of the tests says about itself: a left CC view of a woman, 12 bits, one window."""

from __future__ import annotations

from data_tools.phantom.dicom import DicomFacts

FACTS = DicomFacts(
    "90000001",
    "9100000000000001",
    "1.2.3.4.5.6",
    "1.2.3.4.5.7",
    "1.2.3.4.5.8",
    "2014-01-01",
    "101500",
    "MG Screening Bilateral",
    "L CC",
    "L",
    "CC",
    "F",
    "HOLOGIC, Inc.",
    "Selenia",
    12,
    ((2047, 4096),),
)
