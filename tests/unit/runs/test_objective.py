"""The seam between configuration and numerics: what the options of the objective do to the loss that trains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models import build, spec_for
from m4oe_ds.runs.objective import class_weights, objective, task_prior
from tests.distributed import problem

CPU = torch.device("cpu")
DENSITY = np.array([0] * 6 + [1] * 3 + [2] * 1 + [-1] * 5)  # of four classes the last never comes


def labels_of(task: str) -> np.ndarray:
    """Codes of the training split: density as above, risk1 on two samples, nothing else labelled."""
    known = {"density": DENSITY, "risk1": np.array([0, 1] + [-1] * 13)}
    return known.get(task, np.full(15, -1))


def made(*overrides: str) -> tuple[Config, Objective]:
    config = problem.config(*overrides)
    return config, objective(config, spec_for(config), labels_of, CPU)


def test_complement_weighs_rare_classes_more() -> None:
    _, goal = made("loss.default.class_weight=complement")
    weight = goal.losses["density"].class_weight
    assert weight is not None
    assert weight.tolist() == pytest.approx([0.4, 0.7, 0.9, 1.0])  # 1 - 6/10, 1 - 3/10, 1 - 1/10, 1 - 0


def test_balanced_weighs_classes_by_the_inverse_of_their_count() -> None:
    _, goal = made("loss.default.class_weight=balanced")
    weight = goal.losses["density"].class_weight
    assert weight is not None
    assert weight.tolist() == pytest.approx([10 / 24, 10 / 12, 10 / 4, 10 / 4])  # the absent class as if it came once


def test_no_weights_unless_asked_for_and_none_without_labels() -> None:
    assert made()[1].losses["density"].class_weight is None
    config = problem.config("loss.default.class_weight=complement")
    assert objective(config, spec_for(config), None, CPU).losses["density"].class_weight is None
    assert class_weights("none", DENSITY, 4) is None


def test_weights_of_one_task_leave_the_others_alone() -> None:
    _, goal = made("loss.tasks={density: {class_weight: balanced, weight: 3.0}}")
    assert goal.losses["density"].class_weight is not None
    assert goal.losses["density"].weight == 3.0
    assert goal.losses["risk1"].class_weight is None
    assert goal.losses["risk1"].weight == 1.0


def test_the_class_weight_reaches_the_loss() -> None:
    config, goal = made("loss.default.class_weight=complement")
    batch = problem.samples(spec_for(config), 8, seed=3)
    batch.label_mask[:] = True
    batch.labels["density"][:] = 2
    logits = torch.zeros(8, 4)
    loss = goal.generic("density", logits, batch.labels["density"], batch.label_mask[:, 0])
    assert float(loss.sum) == pytest.approx(8 * 0.9 * math.log(4))


def test_prior_of_the_data_set_is_the_share_of_its_labels() -> None:
    config, goal = made("loss.mutual_information.task_prior=dataset")
    prior = goal.information.task_prior
    assert prior is not None
    expected = {"density": 10 / 12, "risk1": 2 / 12}
    assert prior.tolist() == pytest.approx([expected.get(name, 0.0) for name in spec_for(config).task_names])
    assert float(prior.sum()) == pytest.approx(1.0)


def test_uniform_prior_and_prior_of_the_batch() -> None:
    config, goal = made("loss.mutual_information.task_prior=uniform")
    tasks = len(spec_for(config).tasks)
    assert goal.information.task_prior is not None
    assert goal.information.task_prior.tolist() == pytest.approx([1 / tasks] * tasks)
    assert made("loss.mutual_information.task_prior=batch")[1].information.task_prior is None
    assert task_prior("dataset", spec_for(config).tasks, None, CPU) is None


def information(goal: Objective, config: Config) -> float:
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():  # so that routing differs between samples by more than rounding
        for name, parameter in model.named_parameters():
            if name.endswith("router.scale"):
                parameter.fill_(30.0)
    batch = problem.samples(spec_for(config), 8, seed=5)
    term = goal.mutual_information(model(batch), batch)
    assert term is not None
    return float(term.detach())


def test_labels_mask_the_information_only_if_the_option_says_so() -> None:
    """With the option off every valid sample counts for every task, as if all labels were there."""
    config, masked = made()
    _, free = made("loss.mutual_information.mask_by_label=false")
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router.scale"):
                parameter.fill_(30.0)
    batch = problem.samples(spec_for(config), 8, seed=5)
    with torch.no_grad():
        output = model(batch)
    with torch.no_grad():
        values = [float(goal.mutual_information(output, batch)) for goal in (masked, free)]  # type: ignore[arg-type]
    batch.label_mask[:] = True
    everything = float(masked.mutual_information(output, batch))  # type: ignore[arg-type]
    assert values[1] == pytest.approx(everything, rel=1e-6)
    assert abs(values[0] - values[1]) > 1e-4 * abs(values[1])


def test_the_prior_changes_the_information() -> None:
    config, batch_prior = made()
    _, dataset = made("loss.mutual_information.task_prior=dataset")
    assert information(batch_prior, config) != pytest.approx(information(dataset, config), rel=1e-4)


def test_weight_and_kind_of_the_term_come_from_the_configuration() -> None:
    _, goal = made("loss.alpha=0.3", "loss.mutual_information.source=combine")
    assert goal.information.alpha == 0.3
    assert goal.information.source == "combine"


def test_a_loss_that_does_not_fit_its_task_is_refused() -> None:
    config = problem.config("loss.tasks={density: {kind: bce_dice}}")
    with pytest.raises(ConfigError, match=r"bce_dice does not fit the ordinal task density"):
        objective(config, spec_for(config), labels_of, CPU)
