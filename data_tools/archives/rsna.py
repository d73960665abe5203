"""RSNA Screening Mammography 2023: one table of images, two sites, BI-RADS per breast and density per patient.

Only one of the two sites (the American one, site 1) has density and all three BI-RADS values; at the other BI-RADS is 0
or unknown, so a classifier trained on both learns the site. ``birads_sites="labelled"`` therefore leaves out the
BI-RADS of a site that has neither 1 nor 2; judged so, and not by all three values, a small extract of site 1 keeps its
labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.archives.plan import ArchiveOptions, ArchivePlan, Exclusion, Images, Row, Sample, breasts, usable_rows
from data_tools.archives.published import Published, coded
from data_tools.archives.tables import number, read_table
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import MISSING, SPLITS
from m4oe_ds.errors import DataError

COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
REQUIRED = ("site_id", "patient_id", "image_id", "laterality", "view", "BIRADS", "implant", "density")
# The source codes 0 = needs follow-up, 1 = negative, 2 = benign; there is no 4, 5 or 6
BIRADS_SCHEMES: dict[str, dict[float, int]] = {
    "triage": {1.0: 0, 2.0: 1, 0.0: 2},
    "release": {1.0: 0, 2.0: 1},
    "native_rsna": {0.0: 0, 1.0: 1, 2.0: 2},
}
DENSITY = {"A": 0, "B": 1, "C": 2, "D": 3}
SIZE, CONVERTER = (1024, 832), "mammogram"
CHOOSE, ONLY_WOMEN = "area", False
ATTRIBUTES = ("age", "site_id")
VIEWS = {"CC": "ffdm_cc", "MLO": "ffdm_mlo"}
OTHER_VIEWS = ("AT", "LM", "ML", "LMO")
# The whole public training set, by unit; "none" is an empty field
EXPECTED: dict[str, dict[str, int]] = {
    "images": {
        "all": 54706, "site1": 29519, "site2": 25187, "L": 27267, "R": 27439, "CC": 26765, "MLO": 27903, "AT": 19,
        "LM": 10, "ML": 8, "LMO": 1, "implant": 1477,
    },
    "patients": {"all": 11913, "site1": 5818, "site2": 6095},
    "breasts": {"all": 23826, "more_than_one_cc_or_mlo": 5420},
    "density_by_patient": {"A": 553, "B": 2511, "C": 2436, "D": 309, "none": 6104},
    "birads_by_breast": {"0": 3475, "1": 6280, "2": 850, "none": 13221},
    "birads_by_breast_site1": {"0": 2218, "1": 6280, "2": 850},
    "birads_by_breast_site2": {"0": 1257},
}  # fmt: skip


def _one(values: Sequence[str], known: Container[object], plan: ArchivePlan, what: str, unit: str) -> str | None:
    """The one value of a patient or breast; None if unknown or contradictory, which is counted."""
    keys = {value: number(value) if what == "birads" else value for value in values if value}
    found = set(keys.values())  # 1 and 1.0 are the same
    if len(found) > 1:
        plan.violations[f"{what}_not_constant_within_{unit}"] += 1
        return None
    value = next(iter(keys), None)
    if value is not None and keys[value] not in known:
        plan.violations[f"unknown_{what}"] += 1
        return None
    return value


def _damaged(row: Row) -> bool:
    return not all(re.fullmatch("[0-9]+", row[name]) for name in ("patient_id", "image_id"))


_EXCLUSIONS: tuple[Exclusion, ...] = (
    ("no_identifier", "damaged_identifier", lambda row, seen: _damaged(row)),
    ("duplicate_row", "duplicate_image", lambda row, seen: row["image_id"] in seen),
    ("unknown_laterality", "unknown_laterality", lambda row, seen: row["laterality"].upper() not in ("L", "R")),
    ("other_view", None, lambda row, seen: row["view"].upper() in OTHER_VIEWS),
    ("unknown_view", "unknown_view", lambda row, seen: row["view"].upper() not in VIEWS),
)


def _usable(rows: Sequence[Row], plan: ArchivePlan) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Image numbers per (patient, side) and modality, in their order; what is left out is counted."""
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in usable_rows(rows, _EXCLUSIONS, plan):
        plan.notes["implant_images"] += row["implant"] == "1"
        found[row["patient_id"], row["laterality"].upper()][VIEWS[row["view"].upper()]].append(row["image_id"])
    return dict(sorted(found.items(), key=lambda item: (int(item[0][0]), item[0][1])))


def _densities(
    rows: Sequence[Row], views: Mapping[tuple[str, str], Mapping[str, object]], plan: ArchivePlan
) -> dict[str, int]:
    """Density per patient; every statement about patients is checked."""
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_patient[row["patient_id"]].append(row)
    density: dict[str, int] = {}
    for patient, mine in by_patient.items():
        letter = _one([row["density"].upper() for row in mine], DENSITY, plan, "density", "patient")
        density[patient] = MISSING if letter is None else DENSITY[letter]
        plan.violations["site_not_constant_within_patient"] += len({row["site_id"] for row in mine}) > 1
        complete = all(VIEWS[view] in views.get((patient, side), {}) for side in "LR" for view in VIEWS)
        plan.violations["patient_without_four_views"] += not complete
    plan.violations = +plan.violations
    return density


def _birads(
    by_breast: Mapping[tuple[str, str], Sequence[Row]], rows: Sequence[Row], options: ArchiveOptions, plan: ArchivePlan
) -> dict[tuple[str, str], int]:
    """BI-RADS per breast under the scheme of the options, without that of sites that only recall."""
    values_of_site: dict[str, set[float | None]] = defaultdict(set)
    for row in rows:
        values_of_site[row["site_id"]].add(number(row["BIRADS"]))
    labelled = {site for site, values in values_of_site.items() if {1.0, 2.0} & values}
    scheme, known = BIRADS_SCHEMES[options.birads_scheme], BIRADS_SCHEMES["native_rsna"]
    out: dict[tuple[str, str], int] = {}
    for breast, mine in by_breast.items():
        code = _one([row["BIRADS"] for row in mine], known, plan, "birads", "breast")
        out[breast] = MISSING if code is None else scheme.get(float(code), MISSING)
        if options.birads_sites == "labelled" and mine[0]["site_id"] not in labelled and out[breast] != MISSING:
            plan.notes["birads_of_a_site_that_only_recalls_left_out"] += 1
            out[breast] = MISSING
    return out


def build_plan(rows: Sequence[Row], options: ArchiveOptions) -> ArchivePlan:
    """Samples with labels and candidate images from the rows of ``train.csv``.

    Raises:
        DataError: a BI-RADS scheme this data set does not have.
    """
    if options.birads_scheme not in BIRADS_SCHEMES:
        raise DataError(f"{options.birads_scheme!r} is not defined for RSNA", "--birads-scheme", "use triage")
    plan = ArchivePlan(steps={"table_rows": len(rows)})
    views = _usable(rows, plan)
    density = _densities(rows, views, plan)
    # also rows of images that are not used say what a breast's label is
    by_breast: dict[tuple[str, str], list[Row]] = {breast: [] for breast in views}
    for row in rows:
        if (breast := (row["patient_id"], row["laterality"].upper())) in views:
            by_breast[breast].append(row)
    birads = _birads(by_breast, rows, options, plan)
    files = {
        (patient, side): {
            name: [f"train_images/{patient}/{image}.dcm" for image in sorted(images, key=int)]
            for name, images in names.items()
        }
        for (patient, side), names in views.items()
    }

    def make(patient: str, side: str, images: Images) -> Sample:
        labels = {"density": density[patient], "birads": birads[patient, side]}
        first = by_breast[patient, side][0]
        return Sample(
            patient,
            patient,
            side,
            labels,
            images,
            screening=True,
            stratum=f"site{first['site_id']}",
            choose="area",
            attributes={name: first.get(name, "") for name in ATTRIBUTES},
        )

    breasts(files, make, find_card("rsna").modalities, options, plan)
    plan.notes["views_with_several_images"] += sum(
        len(paths) > 1 for sample in plan.samples for paths in sample.images.values()
    )
    return plan


def plan_archive(root: Path, options: ArchiveOptions) -> ArchivePlan:
    """What ``train.csv`` of an archive says.

    Raises:
        DataError: the table or a column is missing, identifiers were rounded, or the scheme does not exist.
    """
    rows = read_table(Path(root) / "train.csv", REQUIRED, ("machine_id", "age"), identifiers=("patient_id", "image_id"))
    return build_plan(rows, options)


def published(preprocessing: Mapping[str, Any]) -> list[Published]:
    """Label counts of the public training set under the options of a conversion."""
    part = "" if preprocessing.get("birads_sites") == "all" else "_site1"
    scheme = BIRADS_SCHEMES[str(preprocessing.get("birads_scheme", "triage"))]
    labels = {
        # a patient's density counts for both breasts
        "density": coded(EXPECTED["density_by_patient"], DENSITY, times=2),
        "birads": coded(EXPECTED[f"birads_by_breast{part}"], scheme, number),
    }
    return [Published("published", SPLITS, labels, counted=True)]
