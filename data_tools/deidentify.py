"""Pseudonyms, the split of patients, and the search for what must never be in a shard."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from m4oe_ds.data.schema import SPLITS
from m4oe_ds.errors import DataError

# Synthetic archives name no one, and a demo must give the same shards everywhere: their secret is not secret.
SYNTHETIC_SECRET = b"synthetic"
MIN_SECRET_BYTES = 16

# Attribute names that only appear where a DICOM header was copied
_ATTRIBUTES = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientAge", "PatientSex", "AccessionNumber", "StudyInstanceUID",
    "SeriesInstanceUID", "SOPInstanceUID", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyTime",
    "AcquisitionTime", "InstitutionName", "StationName", "DeviceSerialNumber", "OperatorsName",
    "ReferringPhysicianName", "StudyDescription", "SeriesDescription", "empi_anon", "acc_anon", "study_date_anon",
    "procdate_anon", "pdate_anon", "anon_dicom_path", "first_3_zip", "ETHNICITY_DESC", "RACE_DESC",
)  # fmt: skip
_PATTERNS = {
    "a DICOM UID": re.compile(r"(?<![\d.])\d+(?:\.\d+){5,}"),
    "a date": re.compile(
        r"(?<![0-9a-fA-F])(?:19|20)\d\d([-/.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?![0-9a-fA-F])"
        r"|(?<![0-9a-fA-F])(?:0?[1-9]|[12]\d|3[01])[-/](?:0?[1-9]|1[0-2])[-/](?:19|20)\d\d(?!\d)"
    ),
    "a 16-digit number": re.compile(r"(?<![0-9a-fA-F.])\d{16}(?![0-9a-fA-F])"),
    "a number of 10 to 15 digits": re.compile(r"(?<![0-9a-fA-F.])(?!(\d)\1+(?!\d))\d{10,15}(?![0-9a-fA-F])"),
    "a 32-digit hexadecimal identifier": re.compile(
        r"(?<![0-9a-fA-F])(?!([0-9a-fA-F])\1+(?![0-9a-fA-F]))[0-9a-fA-F]{32}(?![0-9a-fA-F])"
    ),
    "an 8-digit number starting with 9": re.compile(r"(?<![0-9a-fA-F.])9\d{7}(?![0-9a-fA-F])"),
    "a DICOM or archive attribute name": re.compile("|".join(_ATTRIBUTES)),
}


def load_secret(path: Path) -> bytes:
    """The secret of the pseudonyms, made (readable by its owner only) if the file is absent.

    Raises:
        DataError: the file is too short or cannot be read or written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", str(path), "check --salt-file") from None
        if len(secret) < MIN_SECRET_BYTES:
            raise DataError(
                f"holds {len(secret)} bytes, a secret needs at least {MIN_SECRET_BYTES}",
                str(path),
                "delete it to have one made, or write a longer one",
            ) from None
        return secret
    except OSError as error:
        raise DataError(f"cannot be made ({error.strerror})", str(path), "check --salt-file and --out") from None
    secret = secrets.token_hex(32).encode()
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secret + b"\n")
    return secret


def hash16(secret: bytes, *parts: str) -> str:
    """Keyed hash of the parts, 64 bits as 16 hexadecimal digits."""
    return hmac.new(secret, "|".join(parts).encode(), hashlib.sha256).hexdigest()[:16]


def split_of(secret: bytes, patient: str, shares: Sequence[int]) -> str:
    """The split of a patient: a keyed hash of the patient alone, so all exams of a patient stay together.

    Args:
        shares: percentages of ``SPLITS``, summing to 100.
    """
    digest = hmac.new(secret, f"split|{patient}".encode(), hashlib.sha256).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * 100
    border = 0.0
    for split, share in zip(SPLITS, shares, strict=True):
        border += share
        if place < border:
            return split
    return SPLITS[-1]


VENDORS = ("hologic", "ge", "fujifilm", "siemens", "other")


def vendor_family(manufacturer: str) -> str:
    """Coarse family of a manufacturer: hologic, ge, fujifilm, siemens or other."""
    text = manufacturer.strip().lower()
    for family, marks in (
        ("hologic", ("hologic", "lorad")),
        ("fujifilm", ("fuji",)),
        ("siemens", ("siemens",)),
        ("ge", ("ge ", "ge_", "general electric")),
    ):
        if any(text.startswith(mark) for mark in marks) or text == family:
            return family
    return "other"


def find_identifiers(text: str) -> list[str]:
    """Kinds of identifying content found in a text; never the content itself."""
    return [kind for kind, pattern in _PATTERNS.items() if pattern.search(text)]
