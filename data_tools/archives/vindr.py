"""VinDr-Mammo 1.0.0: breast-level labels, an official test split, one exam per patient.

BI-RADS goes from 1 to 5 and never misses; there is no 0. Validation is carved out of the official training split.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.archives.plan import ArchiveOptions, ArchivePlan, Exclusion, Images, Row, Sample, breasts, usable_rows
from data_tools.archives.published import Published, coded
from data_tools.archives.tables import number, read_table
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError

BREAST_COLUMNS = (
    "study_id", "series_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads",
    "breast_density", "split",
)  # fmt: skip
FINDING_COLUMNS = (
    "study_id", "series_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads",
    "breast_density", "finding_categories", "finding_birads", "xmin", "ymin", "xmax", "ymax", "split",
)  # fmt: skip
BIRADS_SCHEMES: dict[str, dict[str, int]] = {
    "triage": {"BI-RADS 1": 0, "BI-RADS 2": 1, "BI-RADS 3": 2, "BI-RADS 4": 2, "BI-RADS 5": 2},
    "release": {"BI-RADS 1": 0, "BI-RADS 2": 1, "BI-RADS 3": 1, "BI-RADS 4": 2, "BI-RADS 5": 2},
}
DENSITY = {"DENSITY A": 0, "DENSITY B": 1, "DENSITY C": 2, "DENSITY D": 3}
SIZE, CONVERTER = (1024, 832), "mammogram"
CHOOSE, ONLY_WOMEN = "area", False
AGE = "Patient's Age"
ATTRIBUTES = (AGE,)
SPLITS = {"training": "train", "test": "test"}
VIEWS = {"CC": "ffdm_cc", "MLO": "ffdm_mlo"}
# The whole public archive, by unit and official split
EXPECTED: dict[str, dict[str, int]] = {
    "images": {"all": 20000, "training": 16000, "test": 4000, "L": 10000, "R": 10000, "CC": 10001, "MLO": 9999},
    "patients": {"all": 5000, "training": 4000, "test": 1000},
    "breasts": {"all": 10000, "training": 8000, "test": 2000, "without_mlo": 1},
    "birads_by_breast_training": {"1": 5362, "2": 1871, "3": 372, "4": 305, "5": 90},
    "birads_by_breast_test": {"1": 1341, "2": 467, "3": 93, "4": 76, "5": 23},
    "density_by_breast_training": {"A": 40, "B": 764, "C": 6116, "D": 1080},
    "density_by_breast_test": {"A": 10, "B": 190, "C": 1530, "D": 270},
}


def _label(rows: Sequence[Row], column: str, known: Mapping[str, int], plan: ArchivePlan, what: str) -> int:
    """Code of the one value all rows of a breast have; MISSING if unknown or contradictory, which is counted."""
    values = {row[column].upper() for row in rows}
    if len(values) > 1:
        plan.violations[f"{what}_not_constant_within_breast"] += 1
        return MISSING
    value = values.pop()
    if value not in known:
        plan.violations[f"unknown_{what}"] += 1
        return MISSING
    return known[value]


def _damaged(row: Row) -> bool:
    return not all(re.fullmatch("[0-9a-fA-F]{32}", row[name]) for name in ("study_id", "image_id"))


_EXCLUSIONS: tuple[Exclusion, ...] = (
    ("duplicate_row", "duplicate_image", lambda row, seen: row["image_id"] in seen),
    ("no_identifier", "damaged_identifier", lambda row, seen: _damaged(row)),
    ("unknown_laterality", "unknown_laterality", lambda row, seen: row["laterality"].upper() not in ("L", "R")),
    ("unknown_view", "unknown_view", lambda row, seen: row["view_position"].upper() not in VIEWS),
    ("unknown_split", "unknown_split", lambda row, seen: row["split"] not in SPLITS),
)


def _studies(rows: Sequence[Row], plan: ArchivePlan) -> dict[str, list[Row]]:
    """Usable rows per study that is in one split; every statement about studies is checked."""
    short = sum(count != 4 for count in Counter(row["study_id"] for row in rows).values())
    if short:
        plan.violations["study_without_four_images"] = short
    studies: dict[str, list[Row]] = defaultdict(list)
    for row in usable_rows(rows, _EXCLUSIONS, plan):
        studies[row["study_id"]].append(row)
    out: dict[str, list[Row]] = {}
    for study, mine in sorted(studies.items()):
        if len({row["split"] for row in mine}) > 1:  # leakage: in neither
            plan.violations["study_in_both_splits"] += 1
            plan.excluded["exams"]["in_both_splits"] += 1
            plan.excluded["images"]["of_excluded_exams"] += len(mine)
        else:
            out[study] = mine
    return out


def _breast_rows(studies: Mapping[str, Sequence[Row]], plan: ArchivePlan) -> dict[tuple[str, str], list[Row]]:
    """Rows per (study, side), in the order of their images; a side without any is counted."""
    out: dict[tuple[str, str], list[Row]] = {}
    for study, mine in studies.items():
        for side in ("L", "R"):
            here = [row for row in mine if row["laterality"].upper() == side]
            if here:
                out[study, side] = sorted(here, key=lambda row: row["image_id"])
            else:
                plan.excluded["samples"]["no_image"] += 1
    return out


def age_in_years(text: str) -> str:
    """Years of an age as DICOM writes it (``053Y``, ``640M``); any other text as it is."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text.strip().upper())
    if found is None:
        return text
    return f"{int(found[1]) / {'D': 365.25, 'W': 52.18, 'M': 12.0, 'Y': 1.0}[found[2]]:g}"


def build_plan(rows: Sequence[Row], options: ArchiveOptions, metadata: Mapping[str, Row] | None = None) -> ArchivePlan:
    """Samples with labels and images from the rows of ``breast-level_annotations.csv``.

    Args:
        rows: of that table.
        options: how labels are made and samples chosen.
        metadata: row of ``metadata.csv`` by image_id.

    Raises:
        DataError: a BI-RADS scheme this data set does not have.
    """
    if options.birads_scheme not in BIRADS_SCHEMES:
        raise DataError(
            f"{options.birads_scheme!r} is not defined for VinDr-Mammo", "--birads-scheme", "use triage or release"
        )
    plan = ArchivePlan(steps={"table_rows": len(rows)})
    studies = _studies(rows, plan)
    by_breast = _breast_rows(studies, plan)
    worst = {study: max(row["breast_birads"] for row in mine) for study, mine in studies.items()}
    files: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (study, side), mine in by_breast.items():
        files[study, side] = defaultdict(list)
        for row in mine:
            files[study, side][VIEWS[row["view_position"].upper()]].append(f"images/{study}/{row['image_id']}.dicom")
        plan.notes["breasts_without_cc"] += "ffdm_cc" not in files[study, side]
        plan.notes["breasts_without_mlo"] += "ffdm_mlo" not in files[study, side]
    plan.notes = +plan.notes

    def make(study: str, side: str, images: Images) -> Sample:
        mine = by_breast[study, side]
        # any of its images says who made the machine: the first of the table, as the order of the numbers is random
        first = next(row for row in studies[study] if row["laterality"].upper() == side)
        header = (metadata or {}).get(first["image_id"])
        labels = {
            "density": _label(mine, "breast_density", DENSITY, plan, "density"),
            "birads": _label(mine, "breast_birads", BIRADS_SCHEMES[options.birads_scheme], plan, "birads"),
        }
        return Sample(
            study,
            study,
            side,
            labels,
            images,
            manufacturer=header["Manufacturer"] if header else "",
            attributes={AGE: age_in_years(header[AGE])} if header else {},
            split=SPLITS[first["split"]],
            stratum=worst[study],
            choose="area",
        )

    breasts(files, make, find_card("vindr").modalities, options, plan)
    return plan


def _count_findings(path: Path, plan: ArchivePlan) -> None:
    """Notes about the finding table, which is optional and not used for labels."""
    rows = read_table(path, ("image_id", "height", "width", "xmin", "ymin", "xmax", "ymax"))
    plan.steps["finding_rows"] = len(rows)
    for row in rows:
        box = [number(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")]
        size = number(row["width"]), number(row["height"])
        if None in box or None in size:
            continue
        left, top, right, bottom = (value or 0.0 for value in box)
        width, height = (value or 0.0 for value in size)
        plan.notes["finding_boxes_beyond_the_image"] += left < 0 or top < 0 or right > width or bottom > height
    plan.notes = +plan.notes


def plan_archive(root: Path, options: ArchiveOptions) -> ArchivePlan:
    """What the tables of an archive say; ``metadata.csv`` and ``finding_annotations.csv`` may be absent.

    Raises:
        DataError: the breast-level table or a column is missing, identifiers were rounded, or the scheme does not
            exist.
    """
    root = Path(root)
    # an identifier of digits around one e is a number to a spreadsheet
    rows = read_table(
        root / "breast-level_annotations.csv", BREAST_COLUMNS, identifiers=("study_id", "series_id", "image_id")
    )
    metadata: dict[str, Row] = {}
    if (root / "metadata.csv").is_file():
        table = read_table(root / "metadata.csv", ("SOP Instance UID", "Manufacturer"), (AGE,))
        metadata = {row["SOP Instance UID"]: row for row in table}
    plan = build_plan(rows, options, metadata)
    if (root / "finding_annotations.csv").is_file():
        _count_findings(root / "finding_annotations.csv", plan)
    return plan


def published(preprocessing: Mapping[str, Any]) -> list[Published]:
    """Label counts of the public splits under the options of a conversion."""
    scheme = BIRADS_SCHEMES[str(preprocessing.get("birads_scheme", "triage"))]
    found = []
    for name, official, splits in (("train and val", "training", ("train", "val")), ("test", "test", ("test",))):
        labels = {
            "density": coded(EXPECTED[f"density_by_breast_{official}"], DENSITY, lambda value: f"DENSITY {value}"),
            "birads": coded(EXPECTED[f"birads_by_breast_{official}"], scheme, lambda value: f"BI-RADS {value}"),
        }
        found.append(Published(f"published, {name}", splits, labels, counted=True))
    return found
