"""What a finished run was configured with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.config import to_dict
from m4oe_ds.errors import DataError
from m4oe_ds.runs.configuration import UNRECORDED_MICRO_BATCH, micro_batch, open_config
from m4oe_ds.runs.folder import RunFolder, write_yaml


def made(folder: Path, *overrides: str) -> Path:
    """A folder with nothing but a configuration."""
    folder.mkdir()
    write_yaml(RunFolder(folder).config, to_dict(config_loader.load(None, overrides)))
    return folder


def test_the_batch_of_evaluation_is_that_of_training_unless_configured(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    config = open_config(run)
    assert micro_batch(config, run) == UNRECORDED_MICRO_BATCH
    RunFolder(run).environment.write_text(json.dumps({"batch": {"train": 24, "micro": 6}}))
    assert micro_batch(config, run) == 6
    assert micro_batch(open_config(made(tmp_path / "other", "evaluation.micro_batch=3")), run) == 3


def test_a_record_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    for content in ("{", "[]", '{"batch": {"micro": null}}'):
        RunFolder(run).environment.write_text(content)
        with pytest.raises(DataError, match=r"environment\.json: is damaged"):
            micro_batch(open_config(run), run)


def test_augmentation_is_off_and_the_data_may_have_moved(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "data.augment.enabled=true", "data.root=old", "data.augment.noise=0.5")
    assert open_config(run).data.root == "old"
    opened = open_config(run, "new").data
    assert (opened.root, opened.augment.enabled, opened.augment.noise) == ("new", False, 0.5)


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run folder \(no config\.yaml\)"):
        open_config(tmp_path)


def test_a_folder_is_refused_without_torch() -> None:
    """``m4oe predict`` checks its job with it before the libraries load, which takes seconds."""
    script = (
        "import sys, pathlib\n"
        "from m4oe_ds.errors import DataError\n"
        "from m4oe_ds.predict.job import PredictionJob, check\n"
        "try: check(PredictionJob(*map(pathlib.Path, ('absent', 'dicom', 'out'))))\n"
        "except DataError as error: print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "no such run folder (no config.yaml)" in done.stdout
    assert done.stdout.endswith(" False\n")
