"""``m4oe predict`` for other runs, other archives and bad input; weights are random, images go the converter's way."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data_tools.convert import ConvertOptions, convert
from data_tools.convert.options import Shares
from data_tools.phantom import archive as phantom
from m4oe_ds import cli, config_loader
from m4oe_ds.command_line import INTERRUPTED
from m4oe_ds.config import to_dict
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.evaluation.inference import predict_split
from m4oe_ds.models import build
from m4oe_ds.predict import samples as predict_samples
from m4oe_ds.runs.finished import open_run
from m4oe_ds.runs.folder import write_yaml
from m4oe_ds.runs.objective import objective
from tests.integration import shards

pytestmark = pytest.mark.integration


def make_run(folder: Path, data: Path, *overrides: str) -> Path:
    """A run folder with random weights, as training would leave it."""
    config = config_loader.load(None, (*shards.SMALL, f"data.root={data}", *overrides))
    model = build(config)
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    (folder / "weights").mkdir(parents=True)
    write_yaml(folder / "config.yaml", to_dict(config))
    state = {
        name: value.detach().clone().contiguous() for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    save_file(state, str(folder / "weights" / "model.safetensors"))
    return folder


SPLIT = Shares(70, 10, 20)


def make_archive(folder: Path, layout: str, patients: int, split: Shares = SPLIT) -> Path:
    """An archive and its shards next to it."""
    phantom.generate(layout, folder, patients, 3, workers=1)
    out = folder.with_name(f"{layout}-shards")
    options = ConvertOptions(
        dataset=layout, root=folder, out=out, workers=0, rows=64, cols=52, split=split, max_quarantine=1.0
    )
    convert(options)
    return folder


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("embed") / "archive", "embed", 3, Shares(100, 0, 0))


def predict(run: Path, dicom: Path, out: Path, *more: str) -> int:
    """The command in this process; the phantom's keys are the converter's, its secret is none."""
    return cli.main(["predict", str(run), "--dicom", str(dicom), "--out", str(out), "--workers", "0", *more])


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "predictions.json").read_text())


def probabilities(out: Path) -> dict[str, np.ndarray]:
    """All probabilities of a sample in one array, by key."""
    return {
        sample["key"]: np.array(
            [value for task in sample["tasks"].values() for value in task.get("probabilities", {}).values()]
        )
        for sample in content(out)["samples"]
    }


def evaluated(run: Path, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """The same of the shards, as ``m4oe evaluate`` reads them."""
    out: dict[str, np.ndarray] = {}
    for split in splits:
        opened = open_run(run, split)
        if not opened.manifests[split].num_samples:
            continue
        goal = objective(opened.config, opened.spec, opened.statistics, opened.device)
        found = predict_split(opened.model, opened.batches(split), opened.spec, goal, opened.device, torch.float32)
        rows = np.concatenate([found.probabilities[task] for task in found.probabilities], axis=1)
        out.update(zip(map(str, found.keys), rows, strict=True))
    return out


def assert_same(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert theirs.keys() <= mine.keys()
    assert theirs
    for key, values in theirs.items():
        np.testing.assert_allclose(mine[key], values, atol=1e-5)


def test_a_model_that_compares_breasts_sees_both_whatever_the_limit(embed: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", embed.with_name("embed-shards"), "model.name=asymmirai", "data.contralateral=true")
    assert predict(run, embed, tmp_path / "all") == 0
    everything = probabilities(tmp_path / "all")
    assert_same(everything, evaluated(run, ["train"]))
    # the other breast matters, and is read although the limit cuts the exam in two
    assert predict(run, embed, tmp_path / "three", "--limit", "3", "--batch-size", "1") == 0
    three = probabilities(tmp_path / "three")
    assert len(three) == 3
    assert_same(everything, three)
    left_out = content(tmp_path / "three")["files"]["left_out"]
    assert left_out["beyond_limit"] > 0
    assert sum(left_out.values()) + content(tmp_path / "three")["files"]["used"] == left_out["not_dicom"] + sum(
        1 for _ in embed.rglob("*.dcm")
    )
    alone = tmp_path / "alone"  # only the left breasts
    for path in embed.rglob("*.dcm"):
        if pydicom.dcmread(path, stop_before_pixels=True).ImageLaterality == "L":
            (alone / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, alone / path.parent.name)
    shutil.copy(embed / "phantom.json", alone)
    assert predict(run, alone, tmp_path / "left") == 0
    left = probabilities(tmp_path / "left")
    assert max(np.abs(values - everything[key]).max() for key, values in left.items()) > 1e-4
    assert "contribution" not in content(tmp_path / "left")["samples"][0]["tasks"]["density"]


def test_runs_on_some_modalities_and_on_complete_samples_alone(embed: Path, tmp_path: Path) -> None:
    data = embed.with_name("embed-shards")
    run = make_run(tmp_path / "cc", data, "data.modalities=[ffdm_cc]", "data.tasks=[density]")
    assert predict(run, embed, tmp_path / "out") == 0
    assert_same(probabilities(tmp_path / "out"), evaluated(run, ["train"]))
    assert content(tmp_path / "out")["modalities"] == ["ffdm_cc"]
    assert content(tmp_path / "out")["files"]["left_out"]["view_not_used_by_the_run"] > 0

    run = make_run(tmp_path / "complete", data, "data.complete_only=true")
    whole = tmp_path / "whole"
    shutil.copytree(embed, whole)
    views = {}
    for path in sorted(whole.rglob("*.dcm")):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        views[ds.AccessionNumber, ds.ImageLaterality, ds.SeriesDescription] = path
    # a breast that lacks one view of four is not predicted, as training never saw one like it
    victim = next(path for (_, _, series), path in views.items() if series.endswith("MLO C-View"))
    before = evaluated(run, ["train"])
    assert predict(run, whole, tmp_path / "first") == 0
    assert probabilities(tmp_path / "first").keys() == before.keys()
    victim.unlink()
    assert predict(run, whole, tmp_path / "second") == 0
    assert len(probabilities(tmp_path / "second")) == len(before) - 1
    (failed,) = [one for one in content(tmp_path / "second")["samples_without_prediction"] if one["key"] in before]
    assert failed["reason"] == "modalities_missing_for_the_run"


@pytest.mark.parametrize(("layout", "patients"), [("rsna", 7), ("vindr", 4)])
def test_the_largest_breast_of_several_takes(layout: str, patients: int, tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "archive", layout, patients)
    run = make_run(tmp_path / "run", tmp_path / f"{layout}-shards", f"data.dataset={layout}")
    if layout == "rsna":  # the phantom's other views are named in the table alone
        shutil.rmtree(archive / "train_images" / str(10000 + 1 * 7 + 3 % 7))
    out = tmp_path / "out"
    assert predict(run, archive, out) == 0
    # RSNA: patient and exam are one in its table, and not in its files, so the keys differ: match by the file
    mine, theirs = probabilities(out), evaluated(run, SPLITS)
    names = breasts(out.with_name("out.mapping.csv"), "key")
    wanted = {(row["patient"], row["side"]): row["key"] for row in read(tmp_path / f"{layout}-shards.mapping.csv")}
    shared = names.keys() & wanted.keys()
    assert len(shared) >= 2 * (patients - 3)
    for breast in shared:
        np.testing.assert_allclose(mine[names[breast]], theirs[wanted[breast]], atol=1e-5)
    files = content(out)["files"]
    assert files["used"] + sum(files["left_out"].values()) == files["found"]
    assert files["left_out"].get("smaller_take", 0) == (2 if layout == "rsna" else 1)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def breasts(path: Path, column: str) -> dict[tuple[str, str], str]:
    """A column of a mapping by (folder of the patient, side): the archive's own identifiers are folder names."""
    return {(Path(row["file"]).parent.name, row["side"]): row[column] for row in read(path) if row["key"]}


def test_masks_and_a_manifest_alone(embed: Path, tmp_path: Path) -> None:
    """No shipped card of mammograms read by EMBED's reader has a mask; one of one's own gets a mask per sample."""
    shipped = find_card("embed")
    tasks = {
        "density": shipped.content["tasks"]["density"],
        "mass": {"kind": "mask", "of": "ffdm_cc", "classes": ["mass"]},
    }
    card = tmp_path / "masks.yaml"
    card.write_text(json.dumps({**shipped.content, "tasks": tasks, "headline": ["density"]}))
    data = tmp_path / "moved"  # of the shards, only this file is needed
    (data / "train").mkdir(parents=True)
    manifest = Manifest.load(embed.with_name("embed-shards") / "train")
    labels = [{"density": shard.labels["density"], "mass": [1] * shard.num_samples} for shard in manifest.shards]
    shards_ = tuple(replace(shard, labels=one) for shard, one in zip(manifest.shards, labels, strict=True))
    replace(manifest, card=find_card(str(card)), shards=shards_).save(data / "train")
    run = make_run(tmp_path / "run", tmp_path / "gone", f"data.dataset={card}")
    assert predict(run, embed, tmp_path / "out") == 4  # the shards it was trained on are not here
    assert predict(run, embed, tmp_path / "out", "--data", str(data)) == 0
    for sample in content(tmp_path / "out")["samples"]:
        with Image.open(tmp_path / "out" / sample["tasks"]["mass"]["mask"]) as image:
            assert image.size == (32, 32)
            assert set(np.unique(np.asarray(image)).tolist()) <= {0, 255}
    assert len(list((tmp_path / "out" / "masks").iterdir())) == len(content(tmp_path / "out")["samples"])


@pytest.fixture(scope="module")
def plain(embed: Path) -> Path:
    return make_run(embed.with_name("run"), embed.with_name("embed-shards"))


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a failure."""
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_wrong_files_are_counted_and_the_rest_is_predicted(embed: Path, plain: Path, tmp_path: Path) -> None:
    dicom = tmp_path / "dicom"
    source = sorted(embed.rglob("*.dcm"))[:4]
    for number, path in enumerate(source):
        (dicom / str(number)).mkdir(parents=True)
        shutil.copy(path, dicom / str(number) / "1.dcm")
    (dicom / "note.txt").write_text("Jane Doe")
    (dicom / "empty.dcm").touch()
    data = source[0].read_bytes()
    (dicom / "0" / "1.dcm").write_bytes(data[: len(data) // 2])
    ds = pydicom.dcmread(source[0])
    ds.Modality, ds.AccessionNumber = "CT", "77"
    ds.save_as(dicom / "ct.dcm")
    ds.Modality, ds.ViewPosition, ds.SeriesDescription, ds.ViewCodeSequence = "MG", "", "", []
    ds.save_as(dicom / "view.dcm")
    ds.ViewPosition, ds.LossyImageCompression, ds.ImageLaterality = "CC", "01", "R"
    ds.save_as(dicom / "lossy.dcm")
    assert predict(plain, dicom, tmp_path / "out") == 0
    files = content(tmp_path / "out")["files"]
    assert files["found"] == 9
    left = files["left_out"]
    assert left["not_dicom"] == 2
    assert {
        name: left[name] for name in ("not_a_mammogram", "unknown_view", "lossy_compression", "undecodable_pixels")
    } == {"not_a_mammogram": 1, "unknown_view": 1, "lossy_compression": 1, "undecodable_pixels": 1}
    (lost,) = content(tmp_path / "out")["exams_without_prediction"]
    assert lost["files"] == {"lossy_compression": 1, "not_a_mammogram": 1, "unknown_view": 1}
    assert predict(plain, dicom, tmp_path / "lossy", "--accept-lossy") == 0
    assert content(tmp_path / "lossy")["exams_without_prediction"] == []


def test_nothing_usable_is_one_line_and_leaves_nothing(
    embed: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom = tmp_path / "dicom"
    dicom.mkdir()
    assert predict(plain, dicom, tmp_path / "out") == 4
    assert "no usable mammogram among 0 files (it is empty)" in error(capsys)
    data = sorted(embed.rglob("*.dcm"))[0].read_bytes()
    (dicom / "half.dcm").write_bytes(data[: len(data) // 2])  # found only when its pixels are read
    (dicom / "a.txt").touch()
    assert predict(plain, dicom, tmp_path / "out") == 4
    assert "among 2 files (not_dicom 1, undecodable_pixels 1)" in error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["dicom"]


def test_what_is_refused(
    embed: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    gamma = make_run(tmp_path / "gamma", embed.with_name("embed-shards"), "data.dataset=gamma")
    assert predict(gamma, embed, out) == 3
    assert "reads fundus and oct, for which its card names no table and no headers" in error(capsys)
    assert predict(tmp_path / "none", embed, out) == 4
    assert "run folder (no config.yaml)" in error(capsys)
    assert predict(plain, tmp_path / "none", out) == 4
    assert "is not a folder" in error(capsys)
    with pytest.raises(SystemExit):
        predict(plain, embed, out, "--limit", "-1")
    assert "--limit: write a whole number from 0, got '-1'" in error(capsys)
    out.mkdir()
    (out / "x").touch()
    assert predict(plain, embed, out) == 4
    assert "exists already and is not empty" in error(capsys)
    (out / "x").unlink()
    other = tmp_path / "other" / "train"
    other.mkdir(parents=True)
    manifest = json.loads((embed.with_name("embed-shards") / "train" / "manifest.json").read_text())
    manifest["preprocessing"]["margin_share"] = 0.5
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert predict(plain, embed, out, "--data", str(other.parent)) == 4
    assert "shards were made with margin_share 0.5, this package uses 0.01" in error(capsys)
    monkeypatch.setenv("RANK", "0")
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert predict(plain, embed, out) == 6
    assert "start m4oe predict as one process" in error(capsys)
    assert list(out.iterdir()) == []


def test_an_interrupted_prediction_leaves_nothing(
    embed: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_samples, "decode", stop)
    assert predict(plain, embed / "images", tmp_path / "out") == INTERRUPTED
    assert list(tmp_path.iterdir()) == []
