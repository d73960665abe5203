"""Predictions of a split: each sample once, padding without a trace, a token baseline that knows absent views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score

from m4oe_ds.evaluation.inference import overlap, predict_split
from m4oe_ds.models import build, spec_for
from tests.distributed import problem
from tests.integration import shards


def predict(folder: Path, micro: int) -> tuple[object, object]:
    cfg = problem.config("data.modalities=[]")
    spec = spec_for(cfg)
    model = build(cfg).eval()
    stream = shards.stream(folder, spec, micro)
    goal = problem.objective(spec)
    found = predict_split(model, stream.evaluation(), spec, goal, torch.device("cpu"), torch.float32, num_examples=3)
    return found, stream.manifest


def test_batch_size_and_padding_change_nothing(tmp_path: Path) -> None:
    folder = shards.write(tmp_path, {"test": 13}) / "test"
    (one, manifest), (other, _) = predict(folder, 5), predict(folder, 4)
    assert len(one.keys) == len(set(one.keys.tolist())) == manifest.num_samples == 13
    assert one.keys.tolist() == sorted(one.keys.tolist()) == other.keys.tolist()
    for task, probability in one.probabilities.items():
        np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(probability, other.probabilities[task], atol=1e-5)
        assert sorted(one.labels[task].tolist()) == sorted(manifest.sample_labels(task).tolist())
        assert abs(one.losses[task] - other.losses[task]) < 1e-5
    np.testing.assert_allclose(one.contribution.sum(2), 1, atol=1e-5)
    assert one.contribution.min() >= 0


def test_absent_views_have_no_share(tmp_path: Path) -> None:
    folder = shards.write(tmp_path, {"test": 13}) / "test"  # five of the thirteen lack both synthesised views
    found, manifest = predict(folder, 5)
    lacking = ~manifest.sample_present(manifest.modalities)[:, 2]
    assert lacking.sum() == 5
    assert (~found.present[:, 2:]).all(1).sum() == 5
    assert (found.present[:, 2] == (found.contribution[:, 0, 2] > 1e-7)).all()  # row by row
    np.testing.assert_allclose(found.token_share, [(5 * 0.5 + 8 * 0.25) / 13] * 2 + [8 * 0.25 / 13] * 2, atol=1e-6)
    assert np.isclose(found.contribution[:, :, 2:].sum(2), 0, atol=1e-7).all(1).sum() == 5
    assert found.examples["views"].shape == (3, 4, 16, 16)
    assert not found.examples["views"][~found.examples["present"]].any()


def test_saved_arrays_need_no_pickle(tmp_path: Path) -> None:
    folder = shards.write(tmp_path / "s", {"test": 6}) / "test"
    found, _ = predict(folder, 6)
    found.save(tmp_path / "p" / "test.npz", spec_for(problem.config("data.modalities=[]")))
    with np.load(tmp_path / "p" / "test.npz", allow_pickle=False) as stored:
        assert {
            "keys",
            "groups",
            "tasks",
            "modalities",
            "token_share",
            "contribution",
            "present",
            "prob_density",
        } <= set(stored.files)


def test_overlap_of_masks() -> None:
    random = np.random.default_rng(6)
    first, second = random.random((5, 9, 7)) < 0.4, random.random((5, 9, 7)) < 0.5
    found = overlap(torch.from_numpy(first), torch.from_numpy(second)).tolist()
    for k in range(5):
        assert np.isclose(found[k], f1_score(second[k].ravel(), first[k].ravel()))


def test_overlap_of_empty_masks() -> None:
    none, some = torch.zeros(2, 4, dtype=torch.bool), torch.tensor([[False] * 4, [True, False, False, False]])
    assert overlap(none, some).tolist() == [1, 0]
