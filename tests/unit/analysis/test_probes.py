"""Probes find planted signal, twins are compared on the same samples, and masking leaves one modality to decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.collect import Features, collect_features
from m4oe_ds.analysis.probes import competition, linear_probe, masked_probabilities, probe_encoders
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import Tokens
from tests.distributed import problem

CPU = torch.device("cpu")
TASK = TaskSpec("risk1", "classes", 2, ("no", "yes"))


def features(seed: int, count: int, strength: dict[str, float], noise: float = 1.0) -> Features:
    """Encoder features in which each modality shows the label with some strength; a fifth of the images is missing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    present = np.ones((count, len(strength)), dtype=bool)
    present[::5, -1] = False
    encoder = {
        name: value * (2 * labels[:, None] - 1) * np.array([1.0, -1.0, 0.0]) + noise * rng.normal(size=(count, 3))
        for name, value in strength.items()
    }
    labels = np.where(np.arange(count) % 7 == 0, -1, labels)
    keys = np.array([f"k{i}" for i in range(count)])
    groups = np.array([f"p{i // 2}" for i in range(count)])
    means = Tokens({}, torch.ones(1, len(strength), dtype=torch.bool))
    return Features(keys, groups, present, {"risk1": labels}, {}, encoder, {}, "encoder", means)


def test_a_probe_needs_labels_of_two_classes_and_keeps_their_columns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = np.where(x[:, 0] > 0, 3, 1)
    y[:5] = -1
    found = linear_probe(x, y, x[:10], 4)
    assert found is not None
    assert found.shape == (10, 4)
    np.testing.assert_allclose(found.sum(1), 1.0)
    assert (found[:, [0, 2]] == 0).all()
    assert (found.argmax(1) == np.where(x[:10, 0] > 0, 3, 1)).mean() >= 0.9
    assert linear_probe(x, np.where(y == 3, -1, y), x, 4) is None


def test_only_samples_with_the_modality_are_probed() -> None:
    train, test = features(0, 200, {"a": 1.0, "b": 1.0}), features(1, 100, {"a": 1.0, "b": 1.0})
    train.encoder["b"][::5] = 1e9  # absent images: their features must not be read
    test.encoder["b"][::5] = 1e9
    rows, probability = probe_encoders(train, test, (TASK,))["risk1", "b"]
    assert (rows % 5 != 0).all()
    assert len(rows) == len(probability) == 80
    labels = test.labels["risk1"][rows]
    assert (probability.argmax(1) == labels)[labels >= 0].mean() > 0.85


def test_the_drop_is_the_twins_advantage_on_the_same_samples() -> None:
    weak, strong = {"a": 1.0, "b": 0.15}, {"b": 1.0}
    train, test = features(0, 400, weak), features(1, 240, weak)
    twin_test = features(1, 240, strong)
    kept = np.r_[0:200]
    twin_test = Features(
        twin_test.keys[kept][::-1],
        twin_test.groups[kept][::-1],
        twin_test.present[kept][::-1],
        {"risk1": twin_test.labels["risk1"][kept][::-1]},
        {},
        {"b": twin_test.encoder["b"][kept][::-1]},
        {},
        "encoder",
        twin_test.means,
    )
    twins = {"b": (features(0, 400, strong), twin_test)}
    rows = {row["modality"]: row for row in competition((TASK,), train, test, {}, twins, resamples=200)}
    assert rows["a"]["multimodal"]["auroc"]["value"] > 0.9
    assert "drop" not in rows["a"]
    entry = rows["b"]
    assert entry["multimodal"]["auroc"]["value"] < 0.75
    assert entry["unimodal"]["auroc"]["value"] > 0.9
    assert entry["drop"]["value"] > 0.15
    assert 0 < entry["drop"]["low"] < entry["drop"]["value"] < entry["drop"]["high"]
    assert entry["unimodal"]["n"] < entry["multimodal"]["n"]


def test_masked_rows_are_scored_by_key() -> None:
    test = features(1, 60, {"a": 1.0, "b": 0.0})
    labels = test.labels["risk1"]
    perfect = np.eye(2)[np.maximum(labels, 0)]
    order = np.random.default_rng(0).permutation(60)
    masked = {"a": {"key": np.append(test.keys[order], "unknown"), "risk1": np.vstack([perfect[order], [[0.5, 0.5]]])}}
    rows = competition((TASK,), features(0, 60, {"a": 1.0, "b": 0.0}), test, masked, {}, resamples=20)
    found = [row for row in rows if row["protocol"] == "mask"]
    assert [row["modality"] for row in found] == ["a"]
    assert found[0]["multimodal"]["auroc"]["value"] == pytest.approx(1.0)
    assert found[0]["multimodal"]["n"] == int((labels >= 0).sum())


@pytest.mark.parametrize("name", ["m4oe", "soft_moe", "mirai"])
def test_masking_leaves_one_modality_to_decide(name: str) -> None:
    config = problem.config(f"model.name={name}")
    model, spec = build(config).eval(), spec_for(config)

    def stream(change: float) -> Any:
        batch = problem.samples(spec, 6, seed=5)
        batch.views["syn_mlo"] += change * torch.randn_like(batch.views["syn_mlo"])
        batch.valid[5] = False
        yield batch

    means = collect_features(model, stream(0.0), (), CPU).means
    first = masked_probabilities(model, stream(0.0), means, "ffdm_cc", CPU)
    other = masked_probabilities(model, stream(1.0), means, "ffdm_cc", CPU)
    assert first["key"].tolist() == [f"k{i}" for i in range(5)]
    np.testing.assert_allclose(first["density"], other["density"], rtol=1e-4, atol=1e-6)
    lone = problem.samples(spec, 6, seed=5)
    lone.present[:, 1] = False
    alone = masked_probabilities(model, iter([lone]), means, "ffdm_cc", CPU)
    np.testing.assert_allclose(
        first["density"], alone["density"][:5], rtol=1e-4, atol=1e-6
    )  # present or not is hidden too
    own = masked_probabilities(model, stream(0.0), means, "syn_mlo", CPU)
    changed = masked_probabilities(model, stream(1.0), means, "syn_mlo", CPU)
    assert np.abs(own["density"] - changed["density"]).max() > 1e-4
    present = problem.samples(spec, 6, seed=5).present[:5, 1]
    assert own["key"].tolist() == [f"k{i}" for i in range(5) if present[i]]
