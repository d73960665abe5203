"""What one DICOM header says: whose breast, which view, which kind of image, and whether a model may see it.

A header becomes the row that the converter would have found in EMBED's table of images, so one set of rules
(:func:`data_tools.archives.embed.image_exclusion`) decides in both places. What that table states and a header does
not, such as "spot view" or "synthesised", is derived here from the attributes of DICOM PS3.3 C.8.11.7 and the codes of
CID 4014 and 4015.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.archives.embed import image_exclusion
from data_tools.pixels.dicom import BadImage, check_kind, quiet, read_header

TAGS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PresentationIntentType", "NumberOfFrames",
    "SamplesPerPixel", "PatientID", "PatientSex", "AccessionNumber", "StudyInstanceUID", "AcquisitionTime",
    "ImageLaterality", "Laterality", "ViewPosition", "ViewCodeSequence", "ViewModifierCodeSequence",
    "SeriesDescription", "PaddleDescription", "EstimatedRadiographicMagnificationFactor", "LossyImageCompression",
)  # fmt: skip
FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
_PROJECTIONS = "1.2.840.10008.5.1.4.1.1.13.1."  # tomosynthesis and its projections
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame relatives
LOSSY_SYNTAXES = frozenset(
    {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81"}  # the last: JPEG-LS near-lossless
)
# SNOMED CT codes and their SRT predecessors, which machines still write
_VIEWS = {"399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO"}
_OTHER_VIEWS = {
    "399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
    "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO", "399192008": "XCCL",
    "R-1024A": "XCCL", "399101009": "XCCM", "R-1024B": "XCCM", "399196006": "FB", "R-10244": "FB",
    "127457009": "SPECIMEN", "G-8310": "SPECIMEN",
}  # fmt: skip
_SPOT = frozenset({"399055006", "R-102D7", "399163009", "R-102D6"})
# Views with these modifiers show another part of the breast; implant displaced and nipple in profile are ordinary ones
_OTHER_MODIFIERS = {
    "399011000": "AT", "R-102D1": "AT", "399161006": "CV", "R-102D2": "CV", "399197002": "RL", "R-102D3": "RL",
    "399226006": "RM", "R-102D4": "RM", "415670009": "RS", "R-102C9": "RS", "414493004": "RI", "R-102CA": "RI",
    "399110001": "TAN", "R-102C2": "TAN",
}  # fmt: skip
_SPOT_WORD = re.compile(r"\b(?:SPOT|MAG|SMAG|MAGNIF\w*)\b")
MAGNIFIED = 1.4  # a contact view has 1.0 to 1.1, a magnification view 1.5 to 2
# Names under which makers sell the synthesised view, as they stand in series descriptions
_SYNTHESISED_WORD = re.compile(r"\b(?:[CSV][- ]?VIEW|CVIEW|V-?PREVIEW|INTELLIGENT 2D|INSIGHT 2D|SYNTH\w*)\b")
_NOT_PLAIN = ("TOMO", "SUBTRACT", "RECOMBINED", "HIGH_ENERGY")


@dataclass(frozen=True)
class Header:
    """One file as far as its header tells.

    Attributes:
        patient: identifier, for grouping and the private mapping alone; empty if the file has none.
        exam: identifier of the exam, likewise.
        side: ``L`` or ``R``.
        modality: e.g. ``ffdm_cc``; both empty if unknown.
        row: the columns that :mod:`data_tools.archives.embed` reads.
        instance: SOP instance UID.
        syntax: transfer syntax UID.
        male: the patient is a man.
        lossy: pixels were compressed with loss.
        reason: why the file cannot be used, a fixed word; empty if it can.
    """

    patient: str = ""
    exam: str = ""
    side: str = ""
    modality: str = ""
    row: dict[str, str] | None = None
    instance: str = ""
    syntax: str = ""
    male: bool = False
    lossy: bool = False
    reason: str = ""


def read(path: Path, name: str) -> Header:
    """The header of a file; never raises for what the file holds.

    Args:
        path: path of the file.
        name: path of the file below the folder given, which decides between takes of the same time.
    """
    try:
        with quiet():
            return describe(read_header(path, TAGS), name)
    except BadImage as bad:
        return Header(reason=bad.reason)
    except Exception as error:
        # damaged headers fail in ways no list foresees; the text of the error may quote the header
        return Header(reason=f"unexpected_{type(error).__name__}")


def describe(ds: Any, name: str) -> Header:
    """:func:`read` from a pydicom Dataset with file meta information."""
    patient, study, accession = (_identifier(ds, tag) for tag in ("PatientID", "StudyInstanceUID", "AccessionNumber"))
    exam = accession or study
    patient = patient or study  # de-identified files may name no patient
    row = table_row(ds, name)
    modality, reason = image_exclusion(row)
    side = row["ImageLateralityFinal"]
    meta = getattr(ds, "file_meta", {})
    syntax = str(meta.get("TransferSyntaxUID") or "")
    reason = _kind_problem(ds) or reason
    if not reason and not (patient and exam):
        reason = "no_exam_identifier"
    if not reason and not syntax:
        reason = "no_transfer_syntax"
    return Header(
        patient,
        exam,
        side if side in ("L", "R") else "",
        "" if reason else modality,
        row,
        _text(ds, "SOPInstanceUID"),
        syntax,
        _text(ds, "PatientSex").upper() in ("M", "MALE"),
        _text(ds, "LossyImageCompression") == "01" or syntax in LOSSY_SYNTAXES,
        reason,
    )


def table_row(ds: Any, name: str) -> dict[str, str]:
    """The columns of EMBED's table of images that decide about a view, from a header."""
    return {
        "FinalImageType": image_type(ds),
        "ImageLateralityFinal": (_text(ds, "ImageLaterality") or _text(ds, "Laterality")).upper(),
        "ViewPosition": view_position(ds),
        "SeriesDescription": _text(ds, "SeriesDescription"),
        "spot_mag": "1" if is_spot(ds) else "",
        "AcquisitionTime": _text(ds, "AcquisitionTime"),
        "anon_dicom_path": name,
    }


def image_type(ds: Any) -> str:
    """``2D``, ``cview`` (synthesised from tomosynthesis), ``3D`` or ``other``, as EMBED's ``FinalImageType``."""
    kind = _text(ds, "SOPClassUID")
    if kind.startswith(_SECONDARY_CAPTURE):
        return "other"  # a screen shot, whatever else it says
    if kind.startswith(_PROJECTIONS):
        return "3D"
    words = _text(ds, "ImageType").upper()
    if "GENERATED_2D" in words or "TOMO_2D" in words:
        return "cview"
    if _SYNTHESISED_WORD.search(_text(ds, "SeriesDescription").upper()):
        return "cview"
    return "3D" if any(word in words for word in _NOT_PLAIN) else "2D"


def view_position(ds: Any) -> str:
    """``CC``, ``MLO`` or another view; empty if the header does not say.

    The view code wins where it names another view than CC and MLO, since exaggerated views are entered as CC; so do
    modifiers such as rolled or cleavage. Otherwise ViewPosition counts, then the code.
    """
    codes = list(_codes(ds, "ViewCodeSequence"))
    modifiers = list(_modifiers(ds))
    for code in modifiers:
        if code in _OTHER_MODIFIERS:
            return _OTHER_MODIFIERS[code]
    for code in codes:
        if code in _OTHER_VIEWS:
            return _OTHER_VIEWS[code]
    written = _text(ds, "ViewPosition").upper()
    return written or next((_VIEWS[code] for code in codes if code in _VIEWS), "")


def is_spot(ds: Any) -> bool:
    """Spot compression or magnification, by code, factor, or the words of the paddle and the series."""
    if any(code in _SPOT for code in _modifiers(ds)):
        return True
    try:
        if float(_text(ds, "EstimatedRadiographicMagnificationFactor") or 1.0) >= MAGNIFIED:
            return True
    except ValueError:
        pass  # not a number: the words decide
    return any(_SPOT_WORD.search(_text(ds, name).upper()) for name in ("SeriesDescription", "PaddleDescription"))


def _kind_problem(ds: Any) -> str:
    """Why this is not one grey mammogram made for viewing; empty if it is."""
    kind, modality = _text(ds, "SOPClassUID"), _text(ds, "Modality").upper()
    if modality != "MG" and not (not modality and kind in (FOR_PRESENTATION, FOR_PROCESSING)):
        return "not_a_mammogram"
    if kind == FOR_PROCESSING:
        return "for_processing"
    try:
        check_kind(ds)
    except BadImage as bad:
        return bad.reason
    return ""


def _text(ds: Any, name: str) -> str:
    """A header value as text, several joined by a backslash; empty where it is absent or cannot be read."""
    try:
        value = ds.get(name)
        if value is None:
            return ""
        several = not isinstance(value, str | bytes) and hasattr(value, "__iter__")
        text = "\\".join(map(str, value)) if several else str(value)
    except Exception:  # pydicom converts on access, and damaged values fail in ways no list foresees
        return ""
    return text.encode("utf-8", "replace").decode("utf-8").strip("\0 \t\r\n")


def _identifier(ds: Any, name: str) -> str:
    """An identifier without the character that separates the parts of a keyed hash."""
    return _text(ds, name).replace("|", "%7C")


def _items(ds: Any, name: str) -> list[Any]:
    try:
        return list(ds.get(name) or [])
    except Exception:  # as in _text
        return []


def _codes(ds: Any, name: str) -> Iterator[str]:
    """Code values of a sequence."""
    for item in _items(ds, name):
        yield _text(item, "CodeValue")


def _modifiers(ds: Any) -> Iterator[str]:
    """Codes of view modifiers: inside the items of the view code, and next to it as some machines write them."""
    for item in _items(ds, "ViewCodeSequence"):
        yield from _codes(item, "ViewModifierCodeSequence")
    yield from _codes(ds, "ViewModifierCodeSequence")
