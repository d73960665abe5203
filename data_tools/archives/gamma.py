"""GAMMA: fundus photograph and OCT volume per eye, glaucoma grade, optic-cup mask; 100 labelled eyes, five folds.

The archive comes in two parts (grading and segmentation) and in more than one folder layout, so folders are looked for
below the root by name. There is no official split: folds are stratified, over sorted ids, with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.archives.plan import ArchiveOptions, ArchivePlan, Sample
from data_tools.archives.published import Published, coded
from data_tools.archives.tables import read_table
from m4oe_ds.data.schema import MISSING, SPLITS
from m4oe_ds.errors import DataError

SHEET = "glaucoma_grading_training_GT"
CLASSES = ("non", "early", "mid_advanced")
NUM_SLICES = 256
SIZE, CONVERTER = (512, 512), "eye"
CHOOSE, ONLY_WOMEN = "first", False
ATTRIBUTES: tuple[str, ...] = ()
CUP, RIM, BACKGROUND = 0, 128, 255  # grey values of a mask: 0 is the cup
FOLDS, FOLD_SEED = 5, 10
EXPECTED: dict[str, dict[str, int]] = {"eyes": {"all": 100}, "grade": {"non": 50, "early": 26, "mid_advanced": 24}}
_IMAGES = "multi-modality_images"
_MASKS = "Disc_Cup_Mask"
_ORIGINAL = "use the sheet as it was published"


def _find(root: Path, name: str, within: Sequence[str] = ()) -> Path | None:
    """The first path of that name at or below the root (by sorted order), inside a folder of one of those names."""
    if root.name == name:
        return root
    found = sorted(root.rglob(name))
    inside = [path for path in found if not within or any(part in within for part in path.relative_to(root).parts)]
    return next(iter(inside or found), None)


def read_sheet(path: Path) -> list[dict[str, str]]:
    """Rows of the grading sheet as text, from ``.xlsx`` or ``.csv``; whole numbers lose a ``.0`` of the spreadsheet.

    Raises:
        DataError: unreadable, or without the columns ``data``, ``non``, ``early``, ``mid_advanced``.
    """
    import zipfile

    import pandas as pd

    columns = ("data", *CLASSES)
    if path.suffix == ".csv":
        return [_whole(row) for row in read_table(path, columns, original=_ORIGINAL)]
    try:
        frame = pd.read_excel(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"is not a readable sheet ({type(error).__name__})", str(path), "download it again") from None
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise DataError(f"columns missing: {', '.join(absent)}", str(path), _ORIGINAL)
    return [_whole(row) for row in frame[list(columns)].fillna("").astype(str).to_dict("records")]


def _whole(row: Mapping[Any, str]) -> dict[str, str]:
    """The row without blanks around its values and without the ``.0`` that a spreadsheet adds to whole numbers."""
    return {str(name): value.strip().removesuffix(".0") for name, value in row.items()}


def grade(row: Mapping[str, str]) -> int:
    """Class of a one-hot row; MISSING if it is not one-hot."""
    values = [row[name] for name in CLASSES]
    return values.index("1") if sorted(values) == ["0", "0", "1"] else MISSING


def fold_of(grades: Mapping[str, int]) -> dict[str, int]:
    """Fold 0..4 of every eye: within each class the sorted ids are permuted with a fixed seed and dealt out in turn."""
    folds: dict[str, int] = {}
    dealt = 0
    for code in sorted(set(grades.values())):
        ids = sorted(name for name, grade_ in grades.items() if grade_ == code)
        order = np.random.Generator(np.random.Philox(key=FOLD_SEED * 10 + code + 1)).permutation(len(ids))
        for place, index in enumerate(order):
            folds[ids[index]] = (dealt + place) % FOLDS
        dealt += len(ids)  # the next class goes on where this one ended, so folds differ by at most one eye
    return folds


def _split(fold: int, test: int) -> str:
    return "test" if fold == test else "val" if fold == (test + 1) % FOLDS else "train"


def build_plan(
    root: Path, rows: Sequence[Mapping[str, str]], images: Path, masks: Path | None, options: ArchiveOptions
) -> ArchivePlan:
    """Samples from the rows of the sheet; ``images`` and ``masks`` are the folders of the two parts."""
    plan = ArchivePlan(steps={"sheet_rows": len(rows)})
    grades: dict[str, int] = {}
    for row in rows:
        if not row["data"].isdigit():
            plan.excluded["samples"]["no_identifier"] += 1
            plan.violations["damaged_identifier"] += 1
            continue
        name = row["data"].zfill(4)  # the sheet stores 1..100 as numbers
        if name in grades:
            plan.violations["eye_twice_in_the_sheet"] += 1
            plan.excluded["samples"]["duplicate_row"] += 1
            continue
        grades[name] = grade(row)
        plan.violations["label_row_not_one_hot"] += grades[name] == MISSING
    folds = fold_of(grades)
    unlisted = {path.name for path in images.iterdir() if path.is_dir()} - set(grades)
    plan.notes["folders_not_in_the_sheet"] += len(unlisted)
    for name in sorted(grades):
        fundus, volume = images / name / f"{name}.jpg", images / name / name
        found: dict[str, tuple[str, ...]] = {}
        if fundus.is_file():
            found["fundus"] = (str(fundus.relative_to(root)),)
        if volume.is_dir():
            found["oct"] = (str(volume.relative_to(root)),)
        plan.notes["eyes_without_fundus"] += "fundus" not in found
        plan.notes["eyes_without_oct"] += "oct" not in found
        if not found or (options.require == "complete" and len(found) < 2):
            plan.excluded["samples"]["incomplete" if found else "no_image"] += 1
            continue
        mask = None if masks is None else masks / f"{name}.png"
        have_mask = mask is not None and mask.is_file() and "fundus" in found
        plan.notes["eyes_without_mask"] += not have_mask
        plan.samples.append(
            Sample(
                name,
                name,
                "E",
                {"glaucoma": grades[name]},
                found,
                split=_split(folds[name], options.fold),
                masks={"cup": str(mask.relative_to(root))} if have_mask and mask is not None else {},
            )
        )
    plan.notes, plan.violations = +plan.notes, +plan.violations
    plan.count_planned()
    return plan


def plan_archive(root: Path, options: ArchiveOptions) -> ArchivePlan:
    """What an archive of the grading part, with or without the segmentation part, holds.

    Raises:
        DataError: no sheet, no image folder, or an unreadable sheet.
    """
    root = Path(root)
    sheet = _find(root, f"{SHEET}.xlsx") or _find(root, f"{SHEET}.csv")
    if sheet is None:
        raise DataError(f"{SHEET}.xlsx is not here", str(root), "check --root")
    images = _find(root, _IMAGES, ("training", "training_data"))
    if images is None:
        raise DataError(f"no folder {_IMAGES}", str(root), "check --root")
    rows: list[dict[str, Any]] = read_sheet(sheet)
    return build_plan(root, rows, images, _find(root, _MASKS, ("training",)), options)


def published(_: Mapping[str, Any]) -> list[Published]:
    """Grades of the hundred labelled eyes."""
    codes = {name: code for code, name in enumerate(CLASSES)}
    return [Published("published", SPLITS, {"glaucoma": coded(EXPECTED["grade"], codes)}, counted=True)]
