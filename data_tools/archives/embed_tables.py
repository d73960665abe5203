"""EMBED's two tables: their columns, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.archives.tables import read_table
from m4oe_ds.errors import DataError

CLINICAL_REQUIRED = (
    "empi_anon", "acc_anon", "study_date_anon", "desc", "asses", "tissueden", "side", "path_severity", "bside",
    "procdate_anon",
)  # fmt: skip
AGE, RACE = "age_at_study", "ETHNICITY_DESC"
SPELLINGS = {AGE: (AGE,), RACE: (RACE, "RACE_DESC")}  # what the columns are called in one table or another
CLINICAL_OPTIONAL = ("pdate_anon", "GENDER_DESC", AGE, *SPELLINGS[RACE])
METADATA_REQUIRED = (
    "empi_anon", "acc_anon", "study_date_anon", "SeriesDescription", "FinalImageType", "ImageLateralityFinal",
    "ViewPosition", "spot_mag", "anon_dicom_path",
)  # fmt: skip
METADATA_OPTIONAL = ("AcquisitionTime", "PatientSex", "Manufacturer", "BreastImplantPresent")


def _read_table(root: Path, name: str, required: Sequence[str], optional: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the whole table or, where that is not there, of the reduced one."""
    folder = root / "tables"
    paths = [folder / f"EMBED_OpenData_{name}{suffix}.csv" for suffix in ("", "_reduced")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(f"neither {paths[0].name} nor {paths[1].name} is here", str(folder), "check --root")
    return read_table(
        path,
        required,
        optional,
        identifiers=("empi_anon", "acc_anon"),
        damaged=r"\D",
        original="use the table of the open-data release",
    )


def read_tables(root: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Clinical and metadata rows of an archive.

    Raises:
        DataError: the archive, a table or a column is missing, or identifiers were rounded.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("is not a folder", str(root), "give the folder that holds tables/ and images/ as --root")
    return (
        _read_table(root, "clinical", CLINICAL_REQUIRED, CLINICAL_OPTIONAL),
        _read_table(root, "metadata", METADATA_REQUIRED, METADATA_OPTIONAL),
    )
