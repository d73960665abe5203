"""RSNA Screening Mammography 2023: one table of images, two sites, BI-RADS per breast and density per patient.

Only one of the two sites (the American one, site 1) has density and all three BI-RADS values; at the other BI-RADS is 0
or unknown, so a classifier trained on both learns the site. ``birads_sites="labelled"`` therefore leaves out the
BI-RADS of a site that has neither 1 nor 2; judged so, and not by all three values, a small extract of site 1 keeps its
labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_tools.archives.plan import Options, Plan, Sample
from data_tools.archives.tables import number, read_table
from m4oe_ds.data.schema import DATASETS, MISSING
from m4oe_ds.errors import DataError

Row = Mapping[str, str]
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


def _one(values: Sequence[str], known: Mapping[object, int], plan: Plan, what: str, unit: str) -> str | None:
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


def _usable(rows: Sequence[Row], plan: Plan) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Image numbers per (patient, side) and modality; what is left out is counted."""
    excluded = plan.excluded["images"]
    seen: set[str] = set()
    out: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not re.fullmatch("[0-9]+", row["patient_id"]) or not re.fullmatch("[0-9]+", row["image_id"]):
            excluded["no_identifier"] += 1
            plan.violations["damaged_identifier"] += 1
        elif row["image_id"] in seen:
            excluded["duplicate_row"] += 1
            plan.violations["duplicate_image"] += 1
        elif row["laterality"].upper() not in ("L", "R"):
            excluded["unknown_laterality"] += 1
            plan.violations["unknown_laterality"] += 1
        elif row["view"].upper() not in VIEWS:
            known = row["view"].upper() in OTHER_VIEWS
            excluded["other_view" if known else "unknown_view"] += 1
            plan.violations["unknown_view"] += not known
        else:
            seen.add(row["image_id"])
            plan.notes["implant_images"] += row["implant"] == "1"
            out[row["patient_id"], row["laterality"].upper()][VIEWS[row["view"].upper()]].append(row["image_id"])
    plan.violations = +plan.violations
    return out


def build_plan(rows: Sequence[Row], options: Options) -> Plan:
    """Samples with labels and candidate images from the rows of ``train.csv``.

    Raises:
        DataError: a BI-RADS scheme this data set does not have.
    """
    if options.birads_scheme not in BIRADS_SCHEMES:
        raise DataError(f"{options.birads_scheme!r} is not defined for RSNA", "--birads-scheme", "use triage")
    scheme = BIRADS_SCHEMES[options.birads_scheme]
    plan = Plan(steps={"table_rows": len(rows)})
    views = _usable(rows, plan)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    by_breast: dict[tuple[str, str], list[Row]] = defaultdict(list)
    values_of_site: dict[str, set[float | None]] = defaultdict(set)
    for row in rows:
        by_patient[row["patient_id"]].append(row)
        by_breast[row["patient_id"], row["laterality"].upper()].append(row)
        values_of_site[row["site_id"]].add(number(row["BIRADS"]))
    labelled = {site for site, values in values_of_site.items() if {1.0, 2.0} & values}
    density: dict[str, int] = {}
    for patient, mine in by_patient.items():
        letter = _one([row["density"].upper() for row in mine], DENSITY, plan, "density", "patient")  # type: ignore[arg-type]
        density[patient] = MISSING if letter is None else DENSITY[letter]
        plan.violations["site_not_constant_within_patient"] += len({row["site_id"] for row in mine}) > 1
        complete = all(VIEWS[view] in views.get((patient, side), {}) for side in "LR" for view in VIEWS)
        plan.violations["patient_without_four_views"] += not complete
    plan.violations = +plan.violations
    modalities = DATASETS["rsna"].modalities
    known = BIRADS_SCHEMES["native_rsna"]
    for (patient, side), names in sorted(views.items(), key=lambda item: (int(item[0][0]), item[0][1])):
        mine = by_breast[patient, side]
        code = _one([row["BIRADS"] for row in mine], known, plan, "birads", "breast")  # type: ignore[arg-type]
        birads = MISSING if code is None else scheme.get(float(code), MISSING)
        site = mine[0]["site_id"]
        if options.birads_sites == "labelled" and site not in labelled and birads != MISSING:
            plan.notes["birads_of_a_site_that_only_recalls_left_out"] += 1
            birads = MISSING
        images = {
            name: tuple(f"train_images/{patient}/{image}.dcm" for image in sorted(names[name], key=int))
            for name in modalities
            if name in names
        }
        if options.require == "complete" and len(images) < len(modalities):
            plan.excluded["samples"]["incomplete"] += 1
            plan.excluded["images"]["of_excluded_samples"] += sum(map(len, images.values()))
            continue
        plan.notes["views_with_several_images"] += sum(len(paths) > 1 for paths in images.values())
        plan.samples.append(
            Sample(
                patient, patient, side, {"density": density[patient], "birads": birads}, images, screening=True,
                stratum=f"site{site}", choose="area",
            )
        )  # fmt: skip
    plan.steps["samples_planned"] = len(plan.samples)
    plan.steps["images_planned"] = sum(len(sample.images) for sample in plan.samples)
    return plan


def plan_archive(root: Path, options: Options) -> Plan:
    """What ``train.csv`` of an archive says.

    Raises:
        DataError: the table or a column is missing, identifiers were rounded, or the scheme does not exist.
    """
    rows = read_table(
        Path(root) / "train.csv", REQUIRED, ("machine_id",), identifiers=("patient_id", "image_id")
    )  # fmt: skip
    return build_plan(rows, options)
