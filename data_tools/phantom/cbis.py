"""Synthetic patients in the layout of CBIS-DDSM as NBIA Data Retriever leaves it, with the faults of the real archive.

Every breast has a lesion; whether it is malignant is planted in its shape, and a rule says which view shows it.
Everything about a patient follows from (seed, index). Labels and masks of the truth come from the plan, never from the
tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.phantom.breast import Breast, Lesion, information_shares, make_breast
from data_tools.phantom.dicom import uid
from data_tools.phantom.embed_plan import DENSITY_SHARES, FINDING_CONTRAST
from data_tools.phantom.films import FilmHeader, cut_out, draw_film, draw_outline, write_film
from data_tools.phantom.screening import RULES, VISIBILITIES, planted

_SHARED = ("left or right breast", "image view", "abnormality id", "abnormality type")
_LABELS = ("assessment", "pathology", "subtlety", "image file path", "cropped image file path", "ROI mask file path")
MASS_COLUMNS = ["patient_id", "breast_density", *_SHARED, "mass shape", "mass margins", *_LABELS]
CALC_COLUMNS = ["patient_id", "breast density", *_SHARED, "calc type", "calc distribution", *_LABELS]
COLUMNS = {
    f"{kind}_case_description_{part}_set.csv": columns
    for kind, columns in (("mass", MASS_COLUMNS), ("calc", CALC_COLUMNS))
    for part in ("train", "test")
}
FAULT_SLOTS: tuple[tuple[str, ...], ...] = (
    ("several_lesions",),
    ("lesions_disagree",),
    ("patient_in_both_splits",),
    ("scanned_twice",),
    ("scanned_twice_in_two_sizes",),
    ("series_of_their_own",),
    ("mask_scaled",),
    ("mask_of_another_shape",),
    ("mask_missing",),
    ("two_masks",),
    ("density_unknown",),
    ("assessment_incomplete",),
    ("missing_film",),
    ("truncated_film",),
    ("one_view",),
    ("missing_lesion",),
    ("empty_mask",),
)
FAULTS = tuple(name for slot in FAULT_SLOTS for name in slot)
NO_MASK = {  # faults of the left breast after which the mask of its CC view cannot be known
    "scanned_twice_in_two_sizes", "mask_of_another_shape", "mask_missing", "two_masks", "missing_film",
    "truncated_film", "missing_lesion", "empty_mask", "one_view",
}  # fmt: skip
ROOT = "CBIS-DDSM"
MALIGNANT_SHARE = 0.45
KINDS = {"mass": "mass", "calc": "calcification"}
WORDS = {"L": "LEFT", "R": "RIGHT"}
PARTS = {"train": "Training", "test": "Test"}


@dataclass(frozen=True)
class _Lesion:
    """One lesion of a breast: ``kind`` and ``part`` name its table, ``number`` its row."""

    kind: str
    part: str
    number: int
    malignant: bool
    assessment: str
    drawn: Lesion


@dataclass(frozen=True)
class _Breast:
    """One breast as planned, before images.

    Attributes:
        patient: the id of the tables.
        side: ``L`` or ``R``.
        density: 0..3.
        lesions: at least one.
        views: ``cc`` and ``mlo``, or one of them.
        tissue: what is drawn.
        faults: planted in it: those of its patient in the left breast, few in the right one.
    """

    patient: str
    seed: int
    index: int
    side: str
    density: int
    lesions: tuple[_Lesion, ...]
    views: tuple[str, ...]
    tissue: Breast
    faults: frozenset[str]

    def film_name(self, lesion: _Lesion, view: str) -> str:
        """PatientID of the film on which a lesion was drawn."""
        half = f"{lesion.kind.capitalize()}-{PARTS[lesion.part]}"
        return f"{half}_{self.patient}_{WORDS[self.side]}_{view.upper()}"


@dataclass
class _Written:
    """What was written of a patient."""

    root: Path
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    files: int = 0

    def write(self, header: FilmHeader, pixels: NDArray[Any], number: int = 1, fate: str = "") -> None:
        """Writes one file where the download tool would put it."""
        if fate == "missing":
            return
        study, series = (header.study[-5:], header.series[-5:])
        folder = self.root / ROOT / header.name / f"10-04-2016-DDSM-NA-{study}"
        path = folder / f"1.000000-{header.description}-{series}" / f"1-{number}.dcm"
        write_film(path, pixels, header)
        self.files += 1
        if fate == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])


def _lesion(
    rng: np.random.Generator, kind: str, part: str, number: int, malignant: bool, rule: str, second: bool
) -> _Lesion:
    centre = (rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.3), 0.42 + rng.uniform(-0.08, 0.08))
    if second:  # away from the first
        centre = (centre[0], centre[1] - 0.45, 0.25)
    shape = "sign" if kind == "calc" else "spiculated" if malignant else "smooth"
    drawn = Lesion(
        shape,
        centre,
        float(rng.uniform(0.13, 0.16)),
        FINDING_CONTRAST * (1.4 if malignant else 0.9),
        VISIBILITIES[rule],
        int(rng.integers(2**31)),
    )
    assessment = str(rng.integers(4, 6)) if malignant else str(rng.integers(2, 4))
    return _Lesion(kind, part, number, malignant, assessment, drawn)


def _plan(seed: int, index: int, faults: bool, prevalence: float) -> list[_Breast]:
    """Draws one patient: both breasts, or in some one."""
    mine = planted(FAULT_SLOTS, index, faults)
    rng = np.random.default_rng([seed, index, 8])
    density = int(rng.choice(4, p=DENSITY_SHARES))
    part = "test" if index % 5 == 4 else "train"
    breasts = []
    for side in "LR":
        left = side == "L"
        here = mine if left else mine & {"patient_in_both_splits", "density_unknown"}
        kind = ("mass", "calc")[int(rng.integers(2))]
        share = min(1.0, MALIGNANT_SHARE * prevalence / 0.35)
        malignant, rule = bool(rng.random() < share), RULES[int(rng.integers(len(RULES)))]
        half = part
        if "patient_in_both_splits" in here:
            kind, half = ("mass", "train") if left else ("calc", "test")
        more: list[tuple[str, int, bool]] = []
        if here & {"several_lesions", "lesions_disagree"}:  # ids with a gap, as where a case was withdrawn
            more, malignant = [(kind, 3, "lesions_disagree" in here)], malignant and "lesions_disagree" not in here
        elif here & {"scanned_twice", "scanned_twice_in_two_sizes"}:
            kind, more = "mass", [("calc", 1, False)]
        lesions = [_lesion(rng, kind, half, 1, malignant, rule, False)]
        lesions += [_lesion(rng, one, half, number, bad, rule, True) for one, number, bad in more]
        tissue = make_breast(seed, index, side, density)
        views = ("mlo",) if "one_view" in here else ("cc", "mlo")
        if left or rng.random() < 0.8 or "patient_in_both_splits" in here:
            breasts.append(
                _Breast(f"P_{index + 1:05d}", seed, index, side, density, tuple(lesions), views, tissue, here)
            )
    return breasts


def _uids(*names: object) -> tuple[str, str]:
    return uid("cbis study", *names), uid("cbis series", *names)


def _write_film(breast: _Breast, view: str, kind: str, written: _Written) -> NDArray[np.uint16]:
    """Writes the film of a view that the tables of a kind name; returns its pixels."""
    rng = np.random.default_rng([breast.seed, breast.index, 9, "LR".index(breast.side), ("cc", "mlo").index(view)])
    drawn = tuple(lesion.drawn for lesion in breast.lesions)
    film = draw_film(breast.tissue, view, breast.side, drawn, rng, framed=breast.index % 3 == 1)
    if kind != breast.lesions[0].kind and "scanned_twice_in_two_sizes" in breast.faults:
        film = np.ascontiguousarray(film[:, :-20])
    first = next(lesion for lesion in breast.lesions if lesion.kind == kind)
    name = breast.film_name(first, view)
    study, series = _uids(breast.seed, name)
    header = FilmHeader(
        name,
        study,
        series,
        uid("cbis", breast.seed, name),
        "full mammogram images",
        breast.side,
        view.upper(),
        compressed=breast.index % 4 == 2,
    )
    spoilt = breast.faults & {"missing_film", "truncated_film"} if view == "cc" else frozenset()
    written.write(header, film, fate=next(iter(spoilt), "").removesuffix("_film"))
    return film


def _stored_masks(mask: NDArray[np.uint8], faults: frozenset[str]) -> list[NDArray[np.uint8]]:
    """The masks that are written for a lesion: one, but for faults."""
    if "mask_missing" in faults:
        return []
    if "two_masks" in faults:
        return [mask, mask[::-1].copy()]
    if "empty_mask" in faults:
        return [np.zeros_like(mask)]
    if "mask_of_another_shape" in faults:
        return [np.ascontiguousarray(mask[: mask.shape[0] * 3 // 4])]
    if "mask_scaled" in faults:
        rows, cols = (np.arange(n * 5 // 4) * 4 // 5 for n in mask.shape)
        return [np.ascontiguousarray(mask[rows][:, cols])]
    return [mask]


def _write_lesion(
    breast: _Breast, lesion: _Lesion, view: str, film: NDArray[np.uint16], written: _Written
) -> dict[str, str]:
    """Writes mask and cut-out of a lesion on a view; returns its row."""
    name = f"{breast.film_name(lesion, view)}_{lesion.number}"
    spoilt = breast.faults if view == "cc" else frozenset()
    mask = draw_outline(lesion.drawn, breast.tissue, view, breast.side)[:, : film.shape[1]]
    files: list[tuple[str, NDArray[Any]]] = [("ROI mask images", one) for one in _stored_masks(mask, spoilt)]
    if "two_masks" not in spoilt:
        files.insert((breast.index + lesion.number) % 2, ("cropped images", cut_out(film, mask)))
    apart = "series_of_their_own" in spoilt
    shared = "cropped images" if breast.index % 2 else "ROI mask images"  # the folder has one name for both
    series: dict[str, tuple[str, str]] = {}
    for number, (what, pixels) in enumerate(files, 1):
        study, this = series[what] = _uids(breast.seed, name, what if apart else "")
        header = FilmHeader(
            name,
            study,
            this,
            uid("cbis", breast.seed, name, number),
            what if apart else shared,
            breast.side,
            view.upper(),
        )
        written.write(header, pixels, 1 if apart else number, "missing" if "missing_lesion" in spoilt else "")
    other = _uids(breast.seed, name, "")
    paths = {
        what: "/".join((name, *series.get(what, other), f"00000{int(second and not apart)}.dcm"))
        for what, second in (("cropped images", lesion.kind == "calc"), ("ROI mask images", lesion.kind == "mass"))
    }
    return _row(breast, lesion, view, paths)


def _row(breast: _Breast, lesion: _Lesion, view: str, paths: dict[str, str]) -> dict[str, str]:
    film = breast.film_name(lesion, view)
    mass = lesion.kind == "mass"
    pathology = "MALIGNANT" if lesion.malignant else "BENIGN"
    if not lesion.malignant and lesion.assessment == "2":
        pathology = "BENIGN_WITHOUT_CALLBACK"
    values = [
        breast.patient,
        "0" if "density_unknown" in breast.faults else str(breast.density + 1),
        WORDS[breast.side],
        view.upper(),
        str(lesion.number),
        KINDS[lesion.kind],
        ("IRREGULAR" if lesion.malignant else "OVAL") if mass else "PLEOMORPHIC",
        ("SPICULATED" if lesion.malignant else "CIRCUMSCRIBED") if mass else "CLUSTERED",
        "0" if "assessment_incomplete" in breast.faults else lesion.assessment,
        pathology,
        "4",
        "/".join((film, *_uids(breast.seed, film), "000000.dcm")),
        # the real tables have a line break at the end of one of the two columns
        paths["cropped images"] + ("" if mass else "\n"),
        paths["ROI mask images"] + ("\n" if mass else ""),
    ]
    return dict(zip(MASS_COLUMNS if mass else CALC_COLUMNS, values, strict=True))


def _shares(breast: _Breast, present: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of the evidence on pathology and density in each view that can be used."""
    if not present:
        return {"pathology": {}, "density": {}}
    names = tuple(f"ffdm_{view}" for view in present)
    found = information_shares(breast.tissue, {"pathology": breast.lesions[0].drawn}, names)
    return {
        task: {name.replace("ffdm", "film"): round(share, 6) for name, share in one.items()}
        for task, one in found.items()
    }


def _truth(breast: _Breast, both: bool) -> dict[str, Any]:
    """What a conversion must make of a breast, and the pixels of its lesions on the original films."""
    gone = {"missing_film", "truncated_film"} & breast.faults
    present = [view for view in breast.views if not (gone and view == "cc")]
    incomplete = "assessment_incomplete" in breast.faults
    known = {"cc": "cc" in present and not breast.faults & NO_MASK, "mlo": "mlo" in present}
    if "scanned_twice_in_two_sizes" in breast.faults:
        known["mlo"] = False
    labels = {
        "density": -1 if "density_unknown" in breast.faults else breast.density,
        "assessment": -1 if incomplete else max(int(lesion.assessment) for lesion in breast.lesions) - 1,
        "pathology": int(any(lesion.malignant for lesion in breast.lesions)),
        **{f"lesion_{view}": 1 if known[view] else -1 for view in ("cc", "mlo")},
    }
    pixels: dict[str, dict[str, int]] = {}
    for view in (view for view in breast.views if known[view]):
        pixels[f"lesion_{view}"] = {}
        for kind, word in KINDS.items():
            several = [
                draw_outline(one.drawn, breast.tissue, view, breast.side) for one in breast.lesions if one.kind == kind
            ]
            pixels[f"lesion_{view}"][word] = int(np.any(several, axis=0).sum()) if several else 0
    test = both or breast.lesions[0].part == "test"
    return {
        "patient": breast.patient,
        "exam": breast.patient,
        "side": breast.side.lower(),
        "expected": {
            "labels": dict.fromkeys(("triage", "release"), labels),
            "modalities": [f"film_{view}" for view in present],
            "dropped": None,
            "split": "test" if test else "",
            "mask_pixels": pixels,
        },
        "information": _shares(breast, present),
    }


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the films, cut-outs and masks of one patient below ``root`` and returns the rest.

    Args:
        root: folder of the archive.
        seed: seed of the archive.
        index: index of the patient.
        faults: whether the known faults are planted.
        risk_prevalence: 0.35 gives about the share of malignant lesions of the archive; others scale it.

    Returns:
        ``tables`` (rows by path), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    breasts = _plan(seed, index, faults, risk_prevalence)
    written = _Written(Path(root))
    for breast in breasts:
        for view in breast.views:
            films = {
                kind: _write_film(breast, view, kind, written)
                for kind in dict.fromkeys(lesion.kind for lesion in breast.lesions)
            }
            for lesion in breast.lesions:
                row = _write_lesion(breast, lesion, view, films[lesion.kind], written)
                written.tables.setdefault(f"{lesion.kind}_case_description_{lesion.part}_set.csv", []).append(row)
    mine = planted(FAULT_SLOTS, index, faults)
    return {
        "tables": written.tables,
        "samples": [_truth(breast, "patient_in_both_splits" in mine) for breast in breasts],
        "faults": Counter(mine),
        "variety": Counter(lesion.kind for breast in breasts for lesion in breast.lesions),
        "files": written.files,
    }
