"""``m4oe predict`` as a user runs it: the archive's own files give the probabilities of ``m4oe evaluate``, and no
names.
"""

from __future__ import annotations

import csv
import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_tools.convert import ConvertOptions, convert
from data_tools.convert.options import Shares
from data_tools.identifiers import scan_identifiers
from data_tools.phantom import archive as phantom
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SPLITS
from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
TOLERANCE = 1e-5  # probabilities are written with seven decimals


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen synthetic patients: every fault and every unusual format of the phantom, one group each."""
    out = tmp_path_factory.mktemp("predict") / "archive"
    phantom.generate("embed", out, 14, 5, workers=1)
    return out


@pytest.fixture(scope="module")
def trained(archive: Path) -> Path:
    """Shards of the archive, a run trained on them for an epoch and evaluated on the test split."""
    data, run = archive.with_name("shards"), archive.with_name("run")
    split = Shares(50, 20, 30)
    convert(ConvertOptions(dataset="embed", root=archive, out=data, workers=0, rows=64, cols=52, split=split))
    engine = json.loads((commands.ROOT / "ds_configs" / "zero2.json").read_text())
    engine["train_batch_size"] = 8
    engine["optimizer"]["params"]["lr"] = 0.01  # far from the initial weights after three steps
    (archive.parent / "ds.json").write_text(json.dumps(engine))
    # without augmentation the training split, too, is evaluated as it is stored
    more = (f"data.root={data}", "run.num_epochs=1", "data.augment.enabled=false")
    settings = [f"--set={item}" for item in (*shards.SMALL, *more)]
    done = commands.train(["--ds_config", str(archive.parent / "ds.json"), "--output", str(run), *settings])
    assert done.returncode == 0, done.stdout + done.stderr
    for split in ("train", "test"):  # the validation split was evaluated at the end of training
        done = commands.m4oe("evaluate", str(run), "--split", split)
        assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def predicted(archive: Path, trained: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Of the images alone, without tables and without the mark of a phantom: the keys have a secret of their own."""
    out = archive.with_name("out")
    done = commands.m4oe(
        "predict",
        str(trained),
        "--dicom",
        str(archive / "images"),
        "--out",
        str(out),
        "--workers",
        "1",
        "--batch-size",
        "7",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_breast(path: Path) -> dict[str, tuple[str, str, str]]:
    """(patient, exam, side) by key, from a private mapping."""
    return {row["key"]: (row["patient"], row["exam"], row["side"]) for row in table(path) if row["key"]}


def test_predictions_are_those_of_the_evaluation(
    archive: Path, trained: Path, predicted: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, _ = predicted
    rows = {row["key"]: row for row in table(out / "predictions.csv")}
    content = json.loads((out / "predictions.json").read_text())
    entries = {sample["key"]: sample for sample in content["samples"]}
    assert set(rows) == set(entries)
    mine = {breast: key for key, breast in by_breast(out.with_name("out.mapping.csv")).items()}
    theirs = by_breast(archive.with_name("shards.mapping.csv"))
    compared = 0
    for split in SPLITS:
        stored = np.load(trained / "predictions" / f"{split}.npz", allow_pickle=False)
        tasks, modalities = stored["tasks"].tolist(), stored["modalities"].tolist()
        for n, key in enumerate(stored["keys"].tolist()):
            entry, row = entries[mine[theirs[key]]], rows[mine[theirs[key]]]
            assert entry["key"] != key  # another secret
            for k, task in enumerate(tasks):
                expected = stored[f"prob_{task}"][n]
                answer = entry["tasks"][task]
                np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=TOLERANCE)
                assert answer["predicted"] == content["tasks"][task][int(expected.argmax())] == row[f"{task}_predicted"]
                shares = [answer["contribution"][name] for name in modalities]
                np.testing.assert_allclose(shares, stored["contribution"][n, k], atol=TOLERANCE)
                written = [float(value) for name, value in row.items() if name.startswith(f"{task}_probability_")]
                np.testing.assert_allclose(written, expected, atol=TOLERANCE)
            present = [name for name, share in zip(modalities, stored["contribution"][n, 0], strict=True) if share > 0]
            assert entry["modalities"] == present
            assert row["missing_views"] == str(int(len(present) < len(modalities)))
            compared += 1
    assert compared == sum(Manifest.load(trained.with_name("shards") / split).num_samples for split in SPLITS) >= 30
    spread = np.load(trained / "predictions" / "test.npz")["prob_density"].std(0)
    assert spread.max() > 100 * TOLERANCE  # samples differ, so equality says something


def test_files_add_up_and_reasons_are_those_planted(
    archive: Path, predicted: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, done = predicted
    content = json.loads((out / "predictions.json").read_text())
    faults = json.loads((archive / "faults.json").read_text())["faults"]
    files, left = content["files"], content["files"]["left_out"]
    assert files["found"] == json.loads((archive / "phantom.json").read_text())["images"]
    assert files["used"] + sum(left.values()) == files["found"]
    assert left["spot_or_magnification"] == faults["spot_magnification"] == 2
    assert left["other_view"] == faults["xccl_labelled_cc"] == 2
    assert left["earlier_take"] == faults["repeat_take"] == 1
    assert left["not_dicom"] == faults["garbage_file"]
    assert left["undecodable_pixels"] == faults["truncated_file"] + faults["short_file"]
    male = {row["exam_key"] for row in table(out.with_name("out.mapping.csv")) if row["outcome"] == "male"}
    assert {exam["exam"] for exam in content["exams_without_prediction"]} == male != set()
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"predicted {len(content['samples'])} samples of ")
    assert str(out / "predictions.csv") in last
    assert "by a model trained on synthetic data" in last
    assert "\r" not in done.stderr  # no bar in what is no terminal


def test_nothing_names_a_person(archive: Path, predicted: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = predicted
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.json"]
    expected = (
        "predictions.csv: is neither a shard nor a report; move it out of this folder"  # it is a table, and clean
    )
    assert scan_identifiers(out) == [expected]
    names: set[str] = set()
    for path in (archive / "images").rglob("*.dcm"):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        names |= {
            str(ds[name].value) for name in ("PatientID", "AccessionNumber", "StudyInstanceUID", "SOPInstanceUID")
        }
        names |= {ds.StudyDate, path.name}
    assert len(names) > 300
    text = done.stdout + done.stderr + "".join(path.read_text() for path in out.iterdir())
    assert [name for name in names if name in text] == []
    for private in ("out.mapping.csv", "out.secret"):
        assert stat.S_IMODE(out.with_name(private).stat().st_mode) == 0o600
    assert len(out.with_name("out.secret").read_bytes()) > 32


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = commands.m4oe("predict", "--help")
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert "--dicom DIR" in done.stdout
    assert min(seconds) < 1.5
    code = "import sys, m4oe_ds.cli; m4oe_ds.cli.parser(); print({'torch', 'pydicom', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
