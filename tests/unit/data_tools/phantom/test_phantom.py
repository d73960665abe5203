"""The phantom archive: valid files, tables with the promised faults, a truth that an independent reading confirms."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from data_tools.phantom import archive as phantom
from data_tools.phantom import breast as phantom_breast
from data_tools.phantom import embed_plan as phantom_embed
from m4oe_ds.errors import DataError

PATIENTS, SEED = 14, 5
BIRADS_TRIAGE = {"N": 0, "B": 1, "A": 2, "P": 2, "S": 2, "M": 2, "K": 2, "X": -1}


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive with every fault."""
    out = tmp_path_factory.mktemp("phantom") / "archive"
    phantom.generate("embed", out, PATIENTS, SEED, workers=1)
    return out


def _table(archive: Path, name: str) -> list[dict[str, str]]:
    with (archive / "tables" / f"EMBED_OpenData_{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _samples(archive: Path) -> list[dict[str, Any]]:
    return json.loads((archive / "truth.json").read_text())["samples"]


def _file(archive: Path, row: dict[str, str]) -> Path:
    path = row["anon_dicom_path"]
    return archive / "images" / path[path.index("cohort_") :]


def _digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _pixels(path: Path) -> np.ndarray:
    """Pixels of a readable file with bright tissue; raises what pydicom raises."""
    ds = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = ds.pixel_array
    assert pixels.max() < 2**ds.BitsStored
    if ds.PhotometricInterpretation == "MONOCHROME1":
        return (2**ds.BitsStored - 1 - pixels).astype(pixels.dtype)
    return pixels


def _derived_risk(clinical: list[dict[str, str]], index: date) -> list[int]:
    """risk1..risk5 of an index exam from the clinical rows of the patient, by the rules of the documentation."""
    days = [date.fromisoformat(row["study_date_anon"]) for row in clinical]
    events = [
        date.fromisoformat((row["procdate_anon"] or row["pdate_anon"] or row["study_date_anon"])[:10])
        for row in clinical
        if row["path_severity"] in ("0.0", "1.0")
    ]
    event = min((day for day in events if day >= index), default=None)
    followed = int((max([*days, *events]) - index).days / 365.25)
    labels = []
    for k in range(1, 6):
        if event is not None:
            labels.append(int((event - index).days / 365.25 < k))
        else:
            labels.append(0 if followed >= k else -1)
    return labels


def test_every_fault_is_planted(archive: Path) -> None:
    counts = json.loads((archive / "faults.json").read_text())
    missing = [name for name, count in counts["faults"].items() if count < 1]
    assert set(phantom_embed.FAULTS) <= set(counts["faults"])
    assert missing == []
    for name in (
        "JPEG2000Lossless",
        "RLELossless",
        "JPEGLSLossless",
        "JPEGLosslessSV1",
        "monochrome1",
        "several_windows",
        "padding",
    ):
        assert counts["variety"][name] >= 1


def test_faults_are_in_the_tables(archive: Path) -> None:
    metadata, clinical = _table(archive, "metadata"), _table(archive, "clinical")
    counts = json.loads((archive / "faults.json").read_text())["faults"]
    exaggerated = [row for row in metadata if "XCCL" in row["SeriesDescription"]]
    assert len(exaggerated) == counts["xccl_labelled_cc"]
    assert {row["ViewPosition"] for row in exaggerated} == {"CC"}
    assert sum(row["ViewPosition"] == "" for row in metadata) == counts["empty_view_position"]
    assert sum(row["spot_mag"] == "1.0" for row in metadata) == counts["spot_magnification"]
    assert sum(row["FinalImageType"] not in ("2D", "cview") for row in metadata) == counts["sloppy_image_type"]
    assert sum(not _file(archive, row).exists() for row in metadata) == counts["missing_file"]
    paths = [row["anon_dicom_path"] for row in metadata]
    assert len(paths) - len(set(paths)) == counts["duplicate_metadata_row"]
    assert sum(row["asses"] == "X" for row in clinical) == counts["assessment_x"]
    assert any(row["tissueden"] == "5.0" for row in clinical)
    sides: dict[str, list[str]] = {}
    for row in clinical:
        if "screen" in row["desc"].lower():
            sides.setdefault(row["acc_anon"], []).append(row["side"])
    assert sum(set(one) in ({"L"}, {"R"}) for one in sides.values()) == counts["missing_contralateral_row"]
    assert {row["PatientSex"] for row in metadata} == {"F", "M"}
    assert any("Diagnostic" in row["StudyDescription"] for row in metadata)
    assert {re.match(r".*?(?=cohort_)", path)[0] for path in paths} == set(phantom_embed.PREFIXES)


def test_identifiers_look_like_the_real_ones(archive: Path) -> None:
    for row in _table(archive, "metadata") + _table(archive, "clinical"):
        assert re.fullmatch(r"9\d{7}", row["empi_anon"])
        assert re.fullmatch(r"9\d{15}", row["acc_anon"])
        assert int(row["acc_anon"]) > 2**53
        assert int(row["acc_anon"]) % 2 == 1


def test_files_are_valid_dicom_or_a_counted_fault(archive: Path) -> None:
    broken = 0
    for path in sorted((archive / "images").rglob("*.dcm")):
        try:
            pixels = _pixels(path)
        except Exception:  # pydicom raises many kinds for what is broken on purpose; the number of them is asserted
            broken += 1
            continue
        ds = pydicom.dcmread(path)
        assert ds.SOPClassUID == pydicom.uid.DigitalMammographyXRayImageStorageForPresentation
        assert ds.BitsStored in (10, 12)
        assert pixels.std() > 0
        assert path.stem == ds.SOPInstanceUID
        assert path.parent.name == ds.SeriesInstanceUID
    counts = json.loads((archive / "faults.json").read_text())["faults"]
    assert broken == counts["truncated_file"] + counts["garbage_file"] + counts["short_file"]


def test_chest_wall_is_on_the_side_of_the_laterality_and_air_is_dark(archive: Path) -> None:
    seen = 0
    for row in _table(archive, "metadata"):
        if row["ViewPosition"] != "CC" or row["spot_mag"] or not _file(archive, row).exists():
            continue
        try:
            pixels = _pixels(_file(archive, row)).astype(float)
        except Exception:  # broken on purpose
            continue
        third = pixels.shape[1] // 3
        left, right = pixels[:, :third].sum(), pixels[:, -third:].sum()
        assert (left > 2 * right) == (row["ImageLateralityFinal"] == "L")
        air = pixels[-30:, -30:] if row["ImageLateralityFinal"] == "L" else pixels[-30:, :30]
        if "PixelPaddingValue" in (header := pydicom.dcmread(_file(archive, row), stop_before_pixels=True)):
            air = air[air != header.PixelPaddingValue]
        assert air.max() < 5
        seen += 1
    assert seen > 20


def test_truth_agrees_with_the_tables_read_independently(archive: Path) -> None:
    clinical, metadata = _table(archive, "clinical"), _table(archive, "metadata")
    acquired = {row["acc_anon"]: date.fromisoformat(row["study_date_anon"][:10]) for row in metadata}
    positive = 0
    for sample in _samples(archive):
        rows = [row for row in clinical if row["acc_anon"] == sample["exam"]]
        everything = [row for row in clinical if row["empi_anon"] == sample["patient"]]
        assert rows
        assert {row["empi_anon"] for row in rows} == {sample["patient"]}
        expected, labels = sample["expected"], sample["expected"]["labels"]["triage"]
        letters = [row["asses"] for row in rows if row["side"] in ("", "B", sample["side"].upper())]
        worst = max((BIRADS_TRIAGE[letter] for letter in letters), default=0)
        assert labels["birads"] == worst
        densities = {row["tissueden"] for row in rows}
        code = int(float(densities.pop())) - 1 if len(densities) == 1 else -1
        assert labels["density"] == (code if 0 <= code < 4 else -1)
        risks = [labels[f"risk{k}"] for k in range(1, 6)]
        screening = "screen" in rows[0]["desc"].lower()
        if screening and expected["dropped"] is None:
            assert risks == _derived_risk(everything, acquired[sample["exam"]])
            positive += 1 in risks
        else:
            assert risks == [-1] * 5
    assert positive >= 2


def test_benign_biopsies_are_no_cancer() -> None:
    plans = [phantom_embed.plan_patient(2, index, False, 0.0) for index in range(200)]
    rows = [row for plan in plans for exam in plan.exams for row in exam.rows]
    assert sum(row["path_severity"] == "4.0" for row in rows) > 5
    for plan in plans:
        for exam in plan.exams:
            everything = [row for other in plan.exams for row in other.rows] + plan.later_rows
            assert list(phantom_embed.risk_labels(plan, exam).values()) == _derived_risk(everything, exam.day)


def test_dropped_samples_have_their_reason(archive: Path) -> None:
    clinical = _table(archive, "clinical")
    reasons = {sample["expected"]["dropped"] for sample in _samples(archive)}
    assert reasons == {None, "male", "prior_cancer"}
    for sample in _samples(archive):
        male = any(row["tissueden"] == "5.0" for row in clinical if row["empi_anon"] == sample["patient"])
        assert (sample["expected"]["dropped"] == "male") == male


def test_modalities_of_the_truth_can_be_read(archive: Path) -> None:
    readable: dict[tuple[str, str], set[str]] = {}
    for row in _table(archive, "metadata"):
        if "XCC" in row["SeriesDescription"] or row["spot_mag"]:
            continue
        try:
            _pixels(_file(archive, row))
        except Exception:  # broken on purpose
            continue
        view = row["ViewPosition"] or ("CC" if "CC" in row["SeriesDescription"] else "MLO")
        kind = "ffdm" if row["FinalImageType"].strip().lower() == "2d" else "syn"
        key = (row["acc_anon"], row["ImageLateralityFinal"].lower())
        readable.setdefault(key, set()).add(f"{kind}_{view.lower()}")
    for sample in _samples(archive):
        assert set(sample["expected"]["modalities"]) == readable[sample["exam"], sample["side"]]


def test_information_shares(archive: Path) -> None:
    for sample in _samples(archive):
        assert set(sample["information"]) == {"birads", "density", *(f"risk{k}" for k in range(1, 6))}
        for shares in sample["information"].values():
            assert list(shares) == sample["expected"]["modalities"]
            assert sum(shares.values()) == pytest.approx(1.0, abs=1e-4)
            assert min(shares.values()) >= 0.0


@pytest.mark.parametrize(
    ("rule", "strong"),
    [
        ("ffdm_dominant", {"ffdm_cc", "ffdm_mlo"}),
        ("syn_dominant", {"syn_cc", "syn_mlo"}),
        ("hidden_cc", {"ffdm_mlo", "syn_mlo"}),
        ("hidden_mlo", {"ffdm_cc", "syn_cc"}),
    ],
)
def test_rule_decides_where_the_evidence_is(rule: str, strong: set[str]) -> None:
    breast = phantom_breast.make_breast(1, 0, "L", 1)
    sign = phantom_breast.Lesion("sign", (0.1, -0.2, 0.46), 0.1, 0.3, phantom_embed.VISIBILITY[rule], 3)
    shares = phantom_breast.information_shares(breast, {"risk": sign}, phantom_breast.MODALITIES)["risk"]
    assert sum(shares[name] for name in strong) > 0.8


@pytest.mark.parametrize("modality", ["ffdm_cc", "syn_cc"])
def test_noise_variance_is_that_of_the_noise_drawn(modality: str) -> None:
    rng = np.random.default_rng(0)
    n = phantom_breast.BLOCK
    means = [
        phantom_breast.noise_image(rng, modality)[: 60 * n, : 50 * n].reshape(60, n, 50, n).mean((1, 3))
        for _ in range(8)
    ]
    assert np.var(means) == pytest.approx(phantom_breast.noise_variance(modality), rel=0.06)


def test_denser_breasts_are_brighter() -> None:
    means = []
    for density in range(4):
        breast = phantom_breast.make_breast(2, 0, "L", density)
        inside = breast.mask["cc"] > 0.9
        means.append(float(breast.tissue["cc"][inside].mean()))
    assert means == sorted(means)
    assert means[3] > 1.4 * means[0]


def test_glandular_fraction_follows_the_density_class() -> None:
    for density, share in enumerate(phantom_breast.GLANDULAR_FRACTION):
        inside, gland, _ = phantom_breast.glandular_volume(np.random.default_rng(7), density)
        assert gland[inside > 0].mean() == pytest.approx(share, rel=0.25)


def test_sign_is_visible_at_training_resolution() -> None:
    breast = phantom_breast.make_breast(4, 0, "L", 1)
    sign = phantom_breast.Lesion("sign", (0.1, -0.18, 0.46), 0.115, phantom_embed.SIGN_CONTRAST, (1.0,) * 4, 3)
    for modality in phantom_breast.MODALITIES:
        change = phantom_breast.clean_image(breast, modality, (sign,)) - phantom_breast.clean_image(
            breast, modality, ()
        )
        small = change[: 64 * 6, : 56 * 6].reshape(64, 6, 56, 6).mean((1, 3))
        assert small.max() > 10 * np.sqrt(phantom_breast.noise_variance(modality))
        assert (small > small.max() / 2).sum() >= 6


def test_bytes_depend_on_arguments_only(tmp_path: Path) -> None:
    for name, workers, seed in (("one", 1, 3), ("two", 2, 3), ("other", 1, 4)):
        phantom.generate("embed", tmp_path / name, 3, seed, workers=workers)
    one, two, other = (_digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert not set(one.values()) & set(other.values())


def test_refuses_a_folder_with_other_content(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        phantom.generate("embed", tmp_path, 2, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="other arguments"):
        phantom.generate("embed", archive, PATIENTS, SEED + 1)
    assert phantom.generate("embed", archive, PATIENTS, SEED)["reused"] is True


def test_without_faults_every_sample_is_complete(tmp_path: Path) -> None:
    phantom.generate("embed", tmp_path / "clean", 4, SEED, workers=1, faults="none")
    counts = json.loads((tmp_path / "clean" / "faults.json").read_text())["faults"]
    assert sum(counts.values()) == 0
    for sample in _samples(tmp_path / "clean"):
        assert sample["expected"]["dropped"] is None
        assert len(sample["expected"]["modalities"]) in (2, 4)
        assert -1 not in (sample["expected"]["labels"]["triage"][task] for task in ("birads", "density"))


def test_prevalence_and_horizons() -> None:
    plans = [phantom_embed.plan_patient(9, index, False, 0.35) for index in range(600)]
    years = [exam.years_to_cancer for plan in plans for exam in plan.exams[:1]]
    soon = [value for value in years if value is not None and value < 5]
    assert len(soon) / len(plans) == pytest.approx(0.35, abs=0.06)
    assert min(np.histogram(soon, bins=5, range=(0, 5))[0]) > 20
    for plan in plans:
        for exam in plan.exams:
            labels = phantom_embed.risk_labels(plan, exam)
            valid = [value for value in labels.values() if value >= 0]
            assert valid == sorted(valid)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools.phantom", "--layout", "embed", "--out", str(tmp_path / "a")]
    done = subprocess.run([*command, "--patients", "1"], capture_output=True, text=True, check=True)
    assert str(tmp_path / "a") in done.stdout.splitlines()[-1]
    assert json.loads((tmp_path / "a" / "phantom.json").read_text())["synthetic"] is True
    refused = subprocess.run([*command, "--patients", "2"], capture_output=True, text=True, check=False)
    assert refused.returncode == DataError.exit_code
    assert "Traceback" not in refused.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom data_tools.phantom import archive\n"
        "try:\n    archive.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'pydicom', 'torch', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
