"""Draws the images of one planned exam of a synthetic EMBED patient and writes them as DICOM, faults included."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.phantom.breast import (
    MODALITIES,
    Breast,
    Lesion,
    information_shares,
    make_breast,
    render,
    where_drawn,
)
from data_tools.phantom.dicom import DicomFacts, burn_in_marker, uid, write_mammogram
from data_tools.phantom.embed_plan import (
    FINDING_CONTRAST,
    METADATA_COLUMNS,
    SIGN_CONTRAST,
    VISIBILITY,
    Exam,
    Patient,
    expected_labels,
)

RISKS = tuple(f"risk{k}" for k in range(1, 6))
EVIDENCE = {"sign": RISKS, "smooth": ("birads",), "spiculated": ("birads",)}  # questions, by kind of lesion


@dataclass(frozen=True)
class Take:
    """One image file of an exam. ``fate``: ``ok``, ``missing``, ``truncated``, ``short`` or ``garbage``."""

    modality: str
    side: str
    time: str = "101500"
    series: str = ""
    table_view: str = ""
    table_type: str = ""
    spot: str = ""
    fate: str = "ok"
    spoilt: bool = False  # a take that was repeated, a spot view or an exaggerated view: not the image to use
    rows: int = 1  # rows of the metadata table


def plan_takes(patient: Patient, exam: Exam) -> list[Take]:
    """The files of an exam: the ordinary views of every side examined, then what the faults change and add."""
    names = MODALITIES if patient.synthesised else MODALITIES[:2]
    takes = []
    for side in exam.letters:
        for name in names:
            view = name.split("_")[1].upper()
            synthesised = name.startswith("syn")
            series = f"{side} {view}{' C-View' if synthesised else ''}"
            takes.append(Take(name, side, "101500", series, view, "cview" if synthesised else "2D"))
    if not exam.screening:
        return takes

    def change(modality: str, side: str, **values: Any) -> None:
        at = next(i for i, take in enumerate(takes) if (take.modality, take.side) == (modality, side))
        takes[at] = replace(takes[at], **values)

    faults = patient.faults
    if "repeat_take" in faults:
        change("ffdm_cc", "L", time="102030")
        takes.append(Take("ffdm_cc", "L", "101400", "L CC", "CC", "2D", spoilt=True))
    if "xccl_labelled_cc" in faults:
        takes.append(Take("ffdm_cc", "R", "103000", "RXCCL", "CC", "2D", spoilt=True))
        takes.append(Take("ffdm_cc", "L", "103100", "LXCCL", "CC", "2D", spoilt=True))
    if "duplicate_metadata_row" in faults:
        change("ffdm_mlo", "R", rows=2)
    if "empty_view_position" in faults:
        change("ffdm_mlo", "L", table_view="")
        change("ffdm_cc", "R", table_view="")
    if "sloppy_image_type" in faults:
        change("ffdm_cc", "L", table_type=" 2d")
        change("syn_cc", "R", table_type="CVIEW ")
    if "spot_magnification" in faults:
        takes.append(Take("ffdm_cc", "L", "104000", "L CC SPOT", "CC", "2D", spot="1.0", spoilt=True))
        takes.append(Take("ffdm_mlo", "R", "104100", "R MLO MAG", "MLO", "2D", spot="1.0", spoilt=True))
    if "missing_file" in faults:
        change("ffdm_mlo", "L", fate="missing")
    if "truncated_file" in faults:
        change("ffdm_mlo", "L", fate="truncated")
    if "short_file" in faults:
        change("ffdm_cc", "R", fate="short")
    if "garbage_file" in faults:
        change("ffdm_cc", "R", fate="garbage")
    return takes


def plan_lesions(seed: int, patient: Patient, exam: Exam, side: str) -> tuple[dict[str, Lesion], tuple[Lesion, ...]]:
    """The lesions of one breast.

    Returns:
        ``(targets, drawn)``: what carries the evidence on ``risk`` and ``birads``, there or not, and what is there.
    """
    rng = np.random.default_rng([seed, patient.index, 2, "LR".index(side)])  # same places in every exam
    sign = Lesion(
        "sign",
        (0.10 + rng.uniform(-0.04, 0.04), -0.18 + rng.uniform(-0.04, 0.04), 0.46 + rng.uniform(-0.03, 0.03)),
        float(rng.uniform(0.20, 0.24)),
        SIGN_CONTRAST,
        VISIBILITY[patient.risk_rule],
        int(rng.integers(2**31)),
    )
    letter = exam.letters[side]
    finding = Lesion(
        "spiculated" if letter in "APS" else "smooth",
        (-0.12 + rng.uniform(-0.08, 0.08), 0.30 + rng.uniform(-0.06, 0.06), 0.42 + rng.uniform(-0.06, 0.06)),
        float(rng.uniform(0.11, 0.13)),
        FINDING_CONTRAST * (1.15 if letter in "APS" else 1.0),
        VISIBILITY[patient.birads_rule],
        int(rng.integers(2**31)),
    )
    drawn = []
    years = exam.years_to_cancer
    if years is not None and exam.dropped is None:
        # nearer cancers show more; the label belongs to the exam, so both breasts carry the sign, hers a bit more
        strength = 1.3 - 0.15 * years if years < 5 else 0.1
        drawn.append(replace(sign, contrast=sign.contrast * strength * (1.0 if side == patient.event_side else 0.9)))
    if letter in "BAPS":
        drawn.append(finding)
    return {"risk": sign, "birads": finding}, tuple(drawn)


def _spoil(pixels: NDArray[np.uint16], spot: bool) -> NDArray[np.uint16]:
    """A take that must not be used: a magnified centre, or a breast cut off by bad positioning."""
    if spot:
        rows, cols = pixels.shape
        centre = pixels[rows // 4 : rows // 4 + rows // 2, cols // 4 : cols // 4 + cols // 2]
        return np.ascontiguousarray(np.kron(centre, np.ones((2, 2), np.uint16)))
    shifted = np.zeros_like(pixels)
    shifted[110:] = pixels[:-110]
    return shifted


def _facts(seed: int, patient: Patient, exam: Exam, take: Take, number: int) -> DicomFacts:
    bits = 10 if take.modality.startswith("syn") else 12
    window: tuple[tuple[int, int], ...] = ((540, 580),) if bits == 10 else ((2047, 4096),)
    if patient.variety == "several_windows":
        window = (*window, (window[0][0] + 60, window[0][1] // 2))
    monochrome1 = patient.variety == "monochrome1" and bits == 12
    syntax = "ExplicitVRLittleEndian"
    if patient.variety is not None and "Lossless" in patient.variety:
        syntax = patient.variety
    ids = (seed, patient.index, exam.number)
    return DicomFacts(
        patient.empi,
        exam.accession,
        uid("study", *ids),
        uid("series", *ids, number),
        uid("image", *ids, number),
        exam.day.isoformat(),
        take.time,
        exam.desc,
        take.series,
        take.side,
        take.modality.split("_")[1].upper(),
        "M" if patient.male else "F",
        *patient.vendor,
        bits,
        window,
        syntax,
        monochrome1,
        2**bits - 1 if patient.variety == "padding" else None,
    )


def _metadata_row(patient: Patient, exam: Exam, take: Take, facts: DicomFacts, path: Path) -> dict[str, str]:
    centres, widths = ([pair[i] for pair in facts.window] for i in (0, 1))
    if facts.monochrome1:
        centres = [2**facts.bits - 1 - centre for centre in centres]
    row = dict.fromkeys(METADATA_COLUMNS, "")
    row.update(
        empi_anon=patient.empi,
        acc_anon=exam.accession,
        cohort_num=str(patient.cohort),
        study_date_anon=f"{exam.day} 00:00:00",
        StudyDescription=exam.desc,
        SeriesDescription=take.series,
        FinalImageType=take.table_type,
        ImageLateralityFinal=take.side,
        ViewPosition=take.table_view,
        spot_mag=take.spot,
        Manufacturer=patient.vendor[0],
        ManufacturerModelName=patient.vendor[1],
        PatientSex=facts.sex,
        WindowCenter=str(centres[0] if len(centres) == 1 else centres),
        WindowWidth=str(widths[0] if len(widths) == 1 else widths),
        AcquisitionTime=take.time,
        num_roi="0",
        ROI_coords="()",
        anon_dicom_path=patient.prefix + path.as_posix(),
    )
    return row


def _write_take(path: Path, pixels: NDArray[np.uint16], facts: DicomFacts, take: Take, seed: int) -> None:
    """Writes the file of a take as its fate demands; a missing file is not written."""
    if take.fate == "missing":
        return
    if take.fate == "garbage":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng([seed, 3]).bytes(4096))
        return
    write_mammogram(path, pixels, facts)
    if take.fate == "short":
        _shorten_pixels(path)
    if take.fate == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])


def _shorten_pixels(path: Path) -> None:
    """A header that promises more rows than the pixel data holds, in a file that is otherwise intact."""
    from pydicom import dcmread, dcmwrite

    ds = dcmread(path)
    ds.Rows = int(ds.Rows) + 40
    dcmwrite(path, ds, enforce_file_format=True)


def _render_take(
    breast: Breast, take: Take, drawn: tuple[Lesion, ...], rng: np.random.Generator, marker: bool
) -> NDArray[np.uint16]:
    """Pixels as the machine stores them: the right breast has its chest wall at the right border."""
    pixels = render(breast, take.modality, drawn, rng)
    if take.spoilt:
        pixels = _spoil(pixels, bool(take.spot))
    if take.side == "R":
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if marker:
        top = 1000 if take.modality.startswith("syn") else 4000
        pixels = burn_in_marker(pixels, f"{take.side} {take.modality.split('_')[1].upper()}", take.side, top)
    return pixels


def _pad(pixels: NDArray[np.uint16], value: int) -> NDArray[np.uint16]:
    """A bright frame of padding around the image, touching the breast, as some machines leave it."""
    out = np.minimum(pixels, value - 1)
    out[:12], out[-12:], out[:, :6], out[:, -6:] = value, value, value, value
    return out


def _sample(
    patient: Patient,
    exam: Exam,
    side: str,
    present: tuple[str, ...],
    shares: dict[str, dict[str, float]],
    lesions: list[dict[str, Any]],
) -> dict[str, Any]:
    rounded = {name: {key: round(value, 6) for key, value in one.items()} for name, one in shares.items()}
    risks = dict.fromkeys(RISKS, rounded["risk"])
    return {
        "patient": patient.empi,
        "exam": exam.accession,
        "side": side.lower(),
        "expected": {
            "labels": expected_labels(patient, exam, side),
            "modalities": list(present),
            "dropped": exam.dropped,
        },
        "information": {"birads": rounded["birads"], **risks, "density": rounded["density"]},
        "lesions": lesions,
    }


def write_exam(root: Path, seed: int, patient: Patient, exam: Exam) -> dict[str, Any]:
    """Writes all images of one exam.

    Returns:
        ``metadata`` rows, ``samples`` of the truth, ``faults`` and ``variety`` counts and the number of ``files``.
    """
    result: dict[str, Any] = {"metadata": [], "samples": [], "faults": Counter(), "variety": Counter(), "files": 0}
    takes = plan_takes(patient, exam)
    for side in exam.letters:
        breast = make_breast(seed, patient.index, side, patient.density)
        targets, drawn = plan_lesions(seed, patient, exam, side)
        present: list[str] = []
        for number, take in enumerate(takes):
            if take.side != side:
                continue
            rng = np.random.default_rng([seed, patient.index, 5, exam.number, number])
            facts = _facts(seed, patient, exam, take, number)
            folder = Path(f"cohort_{patient.cohort}", patient.empi, facts.study_uid, facts.series_uid)
            path = folder / f"{facts.sop_uid}.dcm"
            marker = bool(rng.random() < 0.3)
            pixels = _render_take(breast, take, drawn, rng, marker)
            if facts.padding is not None:
                pixels = _pad(pixels, facts.padding)
            _write_take(root / "images" / path, pixels, facts, take, seed)
            result["files"] += take.fate != "missing"
            result["metadata"] += [_metadata_row(patient, exam, take, facts, path) for _ in range(take.rows)]
            if take.fate == "ok" and not take.spoilt:
                present.append(take.modality)
            _count(result, patient, take, facts, marker)
        shares = information_shares(breast, targets, tuple(sorted(present, key=MODALITIES.index)))
        kept = tuple(name for name in MODALITIES if name in present)
        lesions = [where_drawn(one, breast, kept, side, EVIDENCE[one.kind]) for one in drawn]
        result["samples"].append(_sample(patient, exam, side, kept, shares, lesions))
    return result


def _count(result: dict[str, Any], patient: Patient, take: Take, facts: DicomFacts, marker: bool) -> None:
    """Counts what is wrong and what is unusual about one file."""
    faults, variety = result["faults"], result["variety"]
    faults["repeat_take"] += take.spoilt and not take.spot and "XCC" not in take.series
    faults["xccl_labelled_cc"] += "XCC" in take.series
    faults["spot_magnification"] += bool(take.spot)
    faults["duplicate_metadata_row"] += take.rows - 1
    faults["empty_view_position"] += not take.table_view
    faults["sloppy_image_type"] += take.table_type not in ("2D", "cview")
    for fate in ("missing", "truncated", "garbage", "short"):
        faults[f"{fate}_file"] += take.fate == fate
    variety["several_windows"] += len(facts.window) > 1
    variety["monochrome1"] += facts.monochrome1
    variety["padding"] += facts.padding is not None
    variety["burnt_in_marker"] += marker
    variety[facts.syntax] += 1
