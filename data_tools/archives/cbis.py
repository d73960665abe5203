"""CBIS-DDSM: scanned films with a lesion in every breast; labels and masks of lesions, an official test split.

Four tables, one row per lesion and view. A sample is a breast: it gets the worst assessment and pathology of its
lesions. The official split of the mass tables does not know that of the calcification tables: patients of both halves
go to the test split. Validation is carved out of the rest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.archives.downloads import Download, walk
from data_tools.archives.plan import ArchiveOptions, ArchivePlan, Images, Outline, Sample, breasts
from data_tools.archives.published import Published
from data_tools.archives.tables import read_table
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError

TABLES = {
    f"{kind}_case_description_{part}_set.csv": part for kind in ("mass", "calc") for part in ("train", "test")
}  # the official split of each
COLUMNS = (
    "patient_id", "breast_density", "left_or_right_breast", "image_view", "abnormality_id", "abnormality_type",
    "assessment", "pathology", "image_file_path", "cropped_image_file_path", "roi_mask_file_path",
)  # fmt: skip
_OLDER = {  # spelling of copies made before the tables were published in their present form
    "side": "left_or_right_breast", "view": "image_view", "abn_num": "abnormality_id",
    "od_img_path": "image_file_path", "od_crop_path": "cropped_image_file_path", "mask_path": "roi_mask_file_path",
    "cropped_image_path": "cropped_image_file_path",
}  # fmt: skip
SIZE, CONVERTER = (1024, 832), "film"
CHOOSE, ONLY_WOMEN = "area", False
ATTRIBUTES: tuple[str, ...] = ()
SIDES = {"LEFT": "L", "RIGHT": "R"}
VIEWS = {"CC": "film_cc", "MLO": "film_mlo"}
TYPES = {"mass": 0, "calcification": 1}  # classes of the masks; of two scans of a view the first is used
DENSITY = {"1": 0, "2": 1, "3": 2, "4": 3}
# 0 says that more images are needed: it is no step of this scale
ASSESSMENT = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 4}
PATHOLOGY = {"BENIGN_WITHOUT_CALLBACK": 0, "BENIGN": 0, "MALIGNANT": 1}
UNKNOWN = {"breast_density": ("0",), "assessment": ("0",), "pathology": ()}  # values that mean that it is not known
# The whole public archive, counted in its tables; by breast with patients of both halves in the test split
EXPECTED: dict[str, dict[str, int]] = {
    "rows": {"all": 3568, "mass_train": 1318, "mass_test": 378, "calc_train": 1546, "calc_test": 326},
    "patients": {"all": 1566, "train": 1217, "test": 349, "in_both_splits": 31},
    "breasts": {"all": 1708, "train": 1324, "test": 384},
    "views": {"all": 3032, "both": 1324, "film_mlo": 280, "film_cc": 104, "scanned_twice": 71},
    "series": {"all": 6775},
    "density_train": {"0": 187, "1": 500, "2": 408, "3": 229},
    "density_test": {"0": 40, "1": 155, "2": 114, "3": 74},
    "assessment_train": {"0": 0, "1": 140, "2": 166, "3": 675, "4": 243},
    "assessment_test": {"0": 1, "1": 35, "2": 51, "3": 205, "4": 67},
    "pathology_train": {"0": 723, "1": 601},
    "pathology_test": {"0": 224, "1": 160},
}


@dataclass(frozen=True)
class _Lesion:
    """One row: a lesion on one view.

    Attributes:
        values: the row.
        table: file name of its table.
        film: PatientID of the film's headers and UID of its series.
        cuts: the same of the series that hold its mask and its cut-out, each once.
    """

    values: Mapping[str, str]
    table: str
    film: tuple[str, str]
    cuts: tuple[tuple[str, str], ...]

    @property
    def breast(self) -> tuple[str, str]:
        """Patient and side."""
        return self.values["patient_id"], SIDES[self.values["left_or_right_breast"].upper()]

    @property
    def view(self) -> str:
        """Name of its modality."""
        return VIEWS[self.values["image_view"].upper()]

    @property
    def code(self) -> int:
        """Class of its mask."""
        return TYPES[self.values["abnormality_type"].lower()]


def _canonical(column: str) -> str:
    name = re.sub(r"[\s_]+", "_", column.strip().lower())
    return _OLDER.get(name, name)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table by the names of COLUMNS, whichever spelling it has; paths without the line breaks in them.

    Raises:
        DataError: unreadable, or columns missing.
    """
    import pandas as pd

    try:
        header = [str(column) for column in pd.read_csv(path, nrows=0, dtype=str).columns]
    except (ValueError, OSError) as error:
        raise DataError(f"is not a readable table ({type(error).__name__})", str(path), "download it again") from None
    named = {_canonical(column): column for column in header}
    absent = [column for column in COLUMNS if column not in named]
    if absent:
        raise DataError(f"columns missing: {', '.join(absent)}", str(path), "use the table as it was published")
    rows = read_table(path, [named[column] for column in COLUMNS], identifiers=(named["patient_id"],))
    out = [{column: row[named[column]] for column in COLUMNS} for row in rows]
    for row in out:
        for column in COLUMNS[-3:]:
            row[column] = re.sub(r"\s+", "", row[column].replace("\\", "/"))
    return out


def _series(path: str) -> tuple[str, str] | None:
    """PatientID and series UID of a path of the tables; None if it has another form."""
    parts = path.split("/")
    return (parts[0], parts[-2]) if len(parts) == 4 and re.fullmatch(r"[\d.]{10,64}", parts[-2]) else None


def _lesions(tables: Mapping[str, Sequence[Mapping[str, str]]], plan: ArchivePlan) -> list[_Lesion]:
    """The usable rows of all tables; the others are counted."""
    out: list[_Lesion] = []
    for table, rows in tables.items():
        seen: set[tuple[str, ...]] = set()
        for row in rows:
            film, crop, mask = (_series(row[column]) for column in COLUMNS[-3:])
            key = tuple(row[column] for column in ("patient_id", *COLUMNS[2:5]))
            reason = _fault(row, film)
            if not reason and key in seen:
                reason = "duplicate_row"
            if reason or film is None:
                plan.excluded["images"][reason] += 1
                plan.violations[reason] += 1
                continue
            seen.add(key)
            plan.violations["damaged_mask_path"] += crop is None or mask is None
            cuts = tuple(dict.fromkeys(one for one in (mask, crop) if one is not None))
            out.append(_Lesion(row, table, film, cuts))
    plan.violations = +plan.violations
    return out


def _fault(row: Mapping[str, str], film: tuple[str, str] | None) -> str:
    """Why a row cannot be used; empty if it can."""
    if not re.fullmatch(r"P_\d+", row["patient_id"]):
        return "damaged_identifier"
    if row["left_or_right_breast"].upper() not in SIDES:
        return "unknown_laterality"
    if row["image_view"].upper() not in VIEWS:
        return "unknown_view"
    if row["abnormality_type"].lower() not in TYPES:
        return "unknown_abnormality_type"
    if film is None:
        return "damaged_path"
    named = "_".join((row["patient_id"], row["left_or_right_breast"].upper(), row["image_view"].upper()))
    return "" if film[0].endswith(named) else "path_of_another_film"


def _codes(lesions: Sequence[_Lesion], column: str, known: Mapping[str, int], plan: ArchivePlan) -> list[int]:
    """The codes of the lesions, without those of values that are no label at all, which are counted."""
    values = [lesion.values[column].upper() for lesion in lesions]
    odd = sum(value not in known and value not in UNKNOWN[column] for value in values)
    if odd:
        plan.violations[f"unknown_{column}"] += odd
    return [known.get(value, MISSING) for value in values]


def _worst(codes: Sequence[int], what: str, plan: ArchivePlan) -> int:
    """The worst of the lesions of a breast; MISSING if one of them is not known, as it may be the worst."""
    if len(set(codes)) > 1:
        plan.notes[f"breasts_with_lesions_of_different_{what}"] += 1
    if MISSING in codes:
        plan.notes[f"breasts_without_{what}"] += 1
        return MISSING
    return max(codes)


def _labels(lesions: Sequence[_Lesion], plan: ArchivePlan) -> dict[str, int]:
    density = set(_codes(lesions, "breast_density", DENSITY, plan))
    if len(density) > 1:
        plan.violations["density_not_constant_within_breast"] += 1
    plan.notes["breasts_without_density"] += density == {MISSING}
    return {
        "density": density.pop() if len(density) == 1 else MISSING,
        "assessment": _worst(_codes(lesions, "assessment", ASSESSMENT, plan), "assessment", plan),
        "pathology": _worst(_codes(lesions, "pathology", PATHOLOGY, plan), "pathology", plan),
        "lesion_cc": MISSING,  # until its mask is made
        "lesion_mlo": MISSING,
    }


def _scan(lesions: Sequence[_Lesion], files: Download) -> tuple[tuple[str, str], tuple[str, ...]]:
    """The series of a view that is used, and its files: masses first, as their outlines are the finer ones."""
    ordered = sorted(lesions, key=lambda lesion: (lesion.code, lesion.table, lesion.film))
    found = {lesion.film: files.find(*lesion.film) for lesion in ordered}
    return next(((film, paths) for film, paths in found.items() if paths), (ordered[0].film, ()))


def _outlines(
    lesions: Sequence[_Lesion], film: tuple[str, str], files: Download, plan: ArchivePlan
) -> tuple[Outline, ...]:
    """The masks of all lesions of a view; none if one of them is not here."""
    out = []
    for lesion in lesions:
        paths = tuple(dict.fromkeys(path for series in lesion.cuts for path in files.find(*series)))
        if not paths:
            plan.notes["views_without_all_masks"] += 1
            return ()
        out.append(Outline(lesion.view, lesion.code, paths, own=lesion.film == film))
    return tuple(out)


def _splits(lesions: Sequence[_Lesion], plan: ArchivePlan) -> dict[str, str]:
    """The split of every patient; those of both halves are tested."""
    official: dict[str, set[str]] = defaultdict(set)
    for lesion in lesions:
        official[lesion.breast[0]].add(TABLES[lesion.table])
    plan.notes["patients_in_both_splits"] += sum(len(parts) > 1 for parts in official.values())
    return {patient: "test" if "test" in parts else "train" for patient, parts in official.items()}


def _look_for(wanted: Set[tuple[str, str]], files: Download, plan: ArchivePlan) -> None:
    """Counts the series that are here; headers are read only if folders do not tell of all."""
    if not all(files.find(*series) for series in wanted):
        files.read_headers({path for series in wanted for path in files.find(*series)})
    plan.steps["series"] = len(wanted)
    plan.steps["series_here"] = sum(bool(files.find(*series)) for series in wanted)
    plan.notes["headers_read_to_find_series"] = files.read
    plan.notes["links_not_followed"] = files.links


def _files(
    by_breast: Mapping[tuple[str, str], Sequence[_Lesion]], files: Download, plan: ArchivePlan
) -> tuple[dict[tuple[str, str], dict[str, Sequence[str]]], dict[tuple[str, str], dict[str, tuple[Outline, ...]]]]:
    """Films by modality and outlines by mask task of every breast of which there is a film."""
    images: dict[tuple[str, str], dict[str, Sequence[str]]] = {}
    outlines: dict[tuple[str, str], dict[str, tuple[Outline, ...]]] = defaultdict(dict)
    for breast, mine in sorted(by_breast.items()):
        views: dict[str, Sequence[str]] = {}
        for view in sorted({lesion.view for lesion in mine}):
            here = [lesion for lesion in mine if lesion.view == view]
            film, paths = _scan(here, files)
            plan.notes["views_scanned_twice"] += len({lesion.film for lesion in here}) > 1
            if not paths:
                plan.excluded["images"]["film_not_here"] += 1
                continue
            views[view] = paths
            if drawn := _outlines(here, film, files, plan):
                outlines[breast][f"lesion_{view.removeprefix('film_')}"] = drawn
        if views:
            images[breast] = views
        else:
            plan.excluded["samples"]["no_film_here"] += 1
    return images, outlines


def build_plan(
    tables: Mapping[str, Sequence[Mapping[str, str]]], files: Download, options: ArchiveOptions
) -> ArchivePlan:
    """Samples from the rows of the four tables.

    Args:
        tables: rows by file name of the table, as :func:`read_rows` gives them.
        files: what was downloaded.
        options: say whether a breast needs both views.
    """
    plan = ArchivePlan(steps={"table_rows": sum(len(rows) for rows in tables.values())})
    lesions = _lesions(tables, plan)
    splits = _splits(lesions, plan)
    by_breast: dict[tuple[str, str], list[_Lesion]] = defaultdict(list)
    for lesion in lesions:
        by_breast[lesion.breast].append(lesion)
    plan.steps["patients"], plan.steps["breasts"] = len(splits), len(by_breast)
    _look_for({series for lesion in lesions for series in (lesion.film, *lesion.cuts)}, files, plan)
    malignant = {lesion.breast[0] for lesion in lesions if lesion.values["pathology"].upper() == "MALIGNANT"}
    images, outlines = _files(by_breast, files, plan)

    def make(patient: str, side: str, views: Images) -> Sample:
        return Sample(
            patient,
            patient,
            side,
            _labels(by_breast[patient, side], plan),
            views,
            split=splits[patient],
            stratum="malignant" if patient in malignant else "benign",
            choose="area",
            outlines=outlines[patient, side],
        )

    breasts(images, make, find_card("cbis").modalities, options, plan)
    plan.notes, plan.violations = +plan.notes, +plan.violations
    return plan


def plan_archive(root: Path, options: ArchiveOptions) -> ArchivePlan:
    """What the four tables say of the files below a folder, wherever in it both lie.

    Raises:
        DataError: a table is missing, unreadable, or there twice with different content; no film of the tables.
    """
    files = walk(Path(root), TABLES)
    absent = [name for name in TABLES if name not in files.tables]
    if absent:
        raise DataError(
            f"tables missing: {', '.join(absent)}", str(root), "put all four there: patients occur in several of them"
        )
    for name, paths in files.tables.items():
        if len({path.read_bytes() for path in paths}) > 1:
            raise DataError(f"{len(paths)} different tables are called {name}", str(root), "keep one of them")
    plan = build_plan({name: read_rows(files.tables[name][0]) for name in TABLES}, files, options)
    if not plan.steps["series_here"]:
        raise DataError(
            f"none of the {plan.steps['series']} series of the tables is here", str(root), "check --root: no .dcm fits"
        )
    return plan


def published(preprocessing: Mapping[str, Any]) -> list[Published]:
    """Labels by breast of the whole archive; unknown where breasts with one view are left out."""
    if preprocessing.get("require") == "complete":
        return []
    found = []
    for name, official, splits in (("train and val", "train", ("train", "val")), ("test", "test", ("test",))):
        labels = {
            task: {code: float(number) for code, number in EXPECTED[f"{task}_{official}"].items()}
            for task in ("density", "assessment", "pathology")
        }
        found.append(Published(f"counted in the published tables, {name}", splits, labels, counted=True))
    return found
