"""What a run keeps of its data: the same statistics, labels and corrections as the manifest gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds import config_loader
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.task_statistics import from_json, statistics_of
from m4oe_ds.errors import CheckpointError, DataError
from m4oe_ds.models import spec_for
from m4oe_ds.runs import assemble
from m4oe_ds.runs.finished import training_data
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.objective import objective
from m4oe_ds.runs.training_data import TrainingData, kept_data
from m4oe_ds.runs.weights import describe
from tests.integration import shards


def test_what_is_kept_says_what_the_manifest_says(tmp_path: Path) -> None:
    data = shards.write(tmp_path / "shards")
    more = ("data.sampling={kind: balanced, tasks: [density]}", "loss.default={class_weight: balanced}")
    config = config_loader.load(None, (*shards.SMALL, f"data.root={data}", *more))
    spec, manifest = spec_for(config), Manifest.load(data / "train")
    training_data(config, spec, manifest).save(RunFolder(tmp_path).data)
    kept = kept_data(RunFolder(tmp_path))
    assert kept is not None
    assert kept.normalisation() == manifest.normalisation()
    assert (kept.digest, kept.dataset, kept.synthetic) == (manifest.digest, "embed", True)
    assert kept.num_samples == 72
    wanted = assemble.prior_correction(config, spec, manifest)
    assert kept.correction.keys() == wanted.keys()
    for task, values in wanted.items():
        np.testing.assert_array_equal(np.array(kept.correction[task], np.float32), values.numpy())
    known = from_json(kept.statistics, spec.tasks, "data.json")
    assert known == statistics_of(manifest, spec.tasks)
    mine = objective(config, spec, known, wanted["density"].device)
    theirs = objective(config, spec, statistics_of(manifest, spec.tasks), wanted["density"].device)
    for task, loss in theirs.losses.items():
        assert loss.class_weight is not None
        assert mine.losses[task].class_weight is not None
        np.testing.assert_array_equal(mine.losses[task].class_weight, loss.class_weight)
    assert "shards" not in json.loads(RunFolder(tmp_path).data.read_text())


def test_damage_and_other_versions_are_one_line(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    assert kept_data(files) is None
    for text in ("{", "[]", "{}", '{"version": 1}'):
        files.data.write_text(text)
        with pytest.raises(DataError, match=r"data\.json: is damaged"):
            kept_data(files)
    TrainingData("d", False, "", 1, 1, {}, {}, {}, {}, {}, {}).save(files.data)
    files.data.write_text(files.data.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="has version 2, this package reads 1"):
        kept_data(files)


def test_an_export_takes_along_what_makes_it_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for path in (run.config, run.data):
        path.write_text(path.name)
    export = RunFolder(tmp_path / "export")
    assert describe(run, export.weights) == export.path
    assert export.data.read_text() == "data.json"
    assert not export.card.exists()
    for weights in (run.weights, run.path / "weights" / "bf16.safetensors", tmp_path / "model.safetensors"):
        assert describe(run, weights) is None
    assert not (tmp_path / "data.json").exists()  # a file alone leaves its folder as it is
    assert run.data.read_text() == "data.json"
    export.config.write_text("of another run")
    with pytest.raises(CheckpointError, match="export: is another run"):
        describe(run, export.weights)
