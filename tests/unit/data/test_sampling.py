"""Class-balanced and risk-aware sampling, and the correction that undoes at evaluation its effect on probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.config_loader import load
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Shard, assemble
from m4oe_ds.data.order import weighted_order
from m4oe_ds.errors import ConfigError
from m4oe_ds.runs.assemble import prior_correction, sampling_weights

RISKS = tuple(f"risk{k}" for k in range(1, 6))


def manifest(labels: dict[str, list[int]], size: int = 10) -> Any:
    """A split with these labels; no files."""
    count = len(next(iter(labels.values())))
    card = find_card("embed")
    card = replace(card, tasks=tuple(task for task in card.tasks if task.name in labels))
    shards = []
    for start in range(0, count, size):
        part = {name: codes[start : start + size] for name, codes in labels.items()}
        n = len(next(iter(part.values())))
        shards.append(Shard(f"{start}", 0, "", n, list(range(n + 1)), part, [1] * n, ["g"] * n, ["e-l"] * n))
    return assemble(card, "train", shards, synthetic=True, preprocessing={})


def settings(*names: str, **more: Any) -> tuple[Any, Any]:
    """Configuration and tasks."""
    overrides = ["data.sampling.kind=balanced", f"data.sampling.tasks=[{', '.join(names)}]"]
    overrides += [f"data.sampling.{name}={value}" for name, value in more.items()]
    tasks = tuple(find_card("embed").task(name) for name in names)
    return load(None, overrides), SimpleNamespace(tasks=tasks)


def test_the_sooner_a_cancer_the_oftener_its_sample() -> None:
    """With all horizons as tasks: within 1 year > within 3 > within 5 > free of cancer for 5 years."""
    years = [0] * 2 + [2] * 4 + [4] * 6 + [9] * 188
    labels = {name: [int(year < k) for year in years] for k, name in enumerate(RISKS, start=1)}
    config, spec = settings(*RISKS, strength=1.0, max_ratio=1e9)
    weights = sampling_weights(config, spec, manifest(labels))
    assert weights is not None
    one, three, five, free = (weights[place] for place in (0, 2, 6, 12))
    assert one > three > five > free
    # by hand: horizon k has 2, 2, 6, 6, 12 positives of 200
    ratios = [(200 - n) / n for n in (2, 2, 6, 6, 12)]
    assert free == pytest.approx(1.0)
    assert one == pytest.approx(np.mean(ratios))
    assert three == pytest.approx((1 + 1 + sum(ratios[2:])) / 5)
    drawn = weighted_order(manifest(labels), 0, 0, weights)
    assert len(drawn) == 200
    found = np.asarray(years)[drawn[:, 0] * 10 + drawn[:, 1]]
    assert (found < 1).mean() == pytest.approx(2 * one / weights.sum(), abs=3 / 200)  # 1 % in the data


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_correction_brings_back_the_probabilities_of_the_data(strength: float) -> None:
    """A world of a feature x and a class y, both known: the posterior of what was drawn, corrected, is that of the
    data.
    """
    joint = np.array([[600, 30, 5], [100, 60, 5], [100, 60, 40]])  # samples by x and y
    y = [code for row in joint for code, n in enumerate(row) for _ in range(n)]
    x = np.repeat(np.arange(3), joint.sum(1))
    config, spec = settings("birads", strength=strength, max_ratio=1e9)
    split = manifest({"birads": y})
    weights = sampling_weights(config, spec, split)
    assert weights is not None
    drawn = np.array([[weights[(x == i) & (np.asarray(y) == c)].sum() for c in range(3)] for i in range(3)])
    logits = torch.tensor(np.log(drawn / drawn.sum(1, keepdims=True)))  # a model that learnt the drawn epochs perfectly
    expected = torch.tensor(joint / joint.sum(1, keepdims=True))
    assert (logits.softmax(1) - expected).abs().max() > 0.05  # uncorrected it is wrong
    corrected = (logits + prior_correction(config, spec, split)["birads"].double()).softmax(1)
    torch.testing.assert_close(corrected, expected, rtol=0, atol=1e-6)


def test_missing_labels_and_classes_without_samples_are_left_alone() -> None:
    config, spec = settings("birads", strength=1.0, max_ratio=1e9)
    found = prior_correction(config, spec, manifest({"birads": [0] * 30 + [1] * 10 + [-1] * 50}))["birads"]
    assert found[2] == 0.0
    assert float(found[0] - found[1]) == pytest.approx(math.log(3.0))


def test_uniform_sampling_and_a_switched_off_correction_change_nothing() -> None:
    labels = {"birads": [0] * 30 + [1] * 10}
    _, spec = settings("birads")
    assert sampling_weights(load(None), spec, manifest(labels)) is None
    assert prior_correction(load(None), spec, manifest(labels)) == {}
    config, spec = settings("birads", correct_evaluation=False)
    assert prior_correction(config, spec, manifest(labels)) == {}


def test_tasks_that_cannot_be_balanced_are_named() -> None:
    _, spec = settings("birads")
    config, _ = settings("density")
    with pytest.raises(ConfigError, match="density is not a classification task of this run"):
        sampling_weights(config, spec, manifest({"birads": [0, 1]}))
