"""The report shows whole exams: both sides of a patient, chosen before anything is predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from m4oe_ds.data.manifest import Manifest
from m4oe_ds.evaluation.examples import exam_of, exams_shown
from m4oe_ds.evaluation.inference import Predictions, predict_split
from m4oe_ds.models import build, spec_for
from tests.distributed import problem
from tests.integration import shards


def paired(parent: Path) -> Path:
    """A split of thirteen samples in two shards; samples 0 and 12, far from each other, are two sides of one exam."""
    folder = shards.write(parent, {"test": 13}) / "test"
    manifest = Manifest.load(folder)
    first, last = manifest.shards
    last.groups[-1] = first.groups[0]
    last.exams[-1] = f"{exam_of(first.exams[0])}-{'l' if first.exams[0].endswith('r') else 'r'}"
    manifest.save(folder)
    return folder


def test_of_every_patient_the_fullest_exam_is_taken_until_there_are_enough(tmp_path: Path) -> None:
    manifest = Manifest.load(paired(tmp_path))
    names = [name for shard in manifest.shards for name in shard.exams]
    first, second = exam_of(names[0]), exam_of(names[1])
    assert exams_shown(manifest, 0) == frozenset()
    assert exams_shown(manifest, 1) == exams_shown(manifest, 2) == {first}
    assert exams_shown(manifest, 3) == {first, second}
    assert len(exams_shown(manifest, 100)) == 12


def test_all_samples_of_the_chosen_exams_are_kept_at_any_batch_size(tmp_path: Path) -> None:
    folder = shards.write(tmp_path, {"test": 13}) / "test"
    exams = {exam_of(name) for name in Manifest.load(folder).shards[1].exams}  # those of the second shard only
    small, large = (kept(folder, size, exams) for size in (2, 13))
    assert len(small.examples["keys"]) == 3
    assert {key[6:22] for key in small.examples["keys"].tolist()} == exams
    assert small.examples["exams"].tolist() == [key[6:22] for key in small.examples["keys"].tolist()]
    for name, value in small.examples.items():
        np.testing.assert_array_equal(value, large.examples[name])
    assert small.examples["views"].reshape(3, -1).any(1).all()


def kept(folder: Path, micro: int, exams: set[str]) -> Predictions:
    cfg = problem.config("data.modalities=[]")
    spec = spec_for(cfg)
    torch.manual_seed(0)
    model, goal = build(cfg).eval(), problem.objective(spec)
    batches = shards.stream(folder, spec, micro).evaluation()
    return predict_split(model, batches, spec, goal, torch.device("cpu"), torch.float32, exams=exams)


def test_without_any_example_nothing_is_kept_or_written(tmp_path: Path) -> None:
    folder = shards.write(tmp_path / "shards", {"test": 5}) / "test"
    found = kept(folder, 5, set())
    assert found.examples == {}
    found.save_examples(tmp_path / "examples.npz")
    assert not (tmp_path / "examples.npz").exists()


def test_a_model_without_contributions_keeps_its_samples(tmp_path: Path) -> None:
    folder = shards.write(tmp_path / "shards", {"test": 5}) / "test"
    found = kept(folder, 5, {exam_of(name) for name in Manifest.load(folder).shards[0].exams[:2]})
    found.contribution = None
    found.save_examples(tmp_path / "examples.npz")
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as stored:
        assert "contribution" not in stored.files
        assert len(stored["keys"]) == 2
