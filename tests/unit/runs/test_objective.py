"""The seam between configuration and numerics: what the options of the objective do to the loss that trains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m4oe_ds.config import Config
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.errors import ConfigError
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models import build, spec_for
from m4oe_ds.runs.objective import class_weights, objective, task_prior
from tests.distributed import problem
from tests.integration import six_kinds

CPU = torch.device("cpu")


def statistics(config: Config) -> dict[str, TaskStatistics]:
    """Of the training labels: density as above, risk1 on two samples, nothing else labelled."""
    counts = {"density": (6, 3, 1, 0), "risk1": (1, 1)}
    return {
        task.name: TaskStatistics(sum(counts.get(task.name, ())), counts.get(task.name, (0,) * task.num_classes))
        for task in spec_for(config).tasks
    }


def made(*overrides: str) -> tuple[Config, Objective]:
    config = problem.config(*overrides)
    return config, objective(config, spec_for(config), statistics(config), CPU)


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
    assert class_weights("none", (6, 3, 1, 0)) is None


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


@pytest.mark.parametrize(
    ("kind", "loss", "fits"),
    [
        ("classes", "bce_dice", "cross_entropy or focal"),
        ("binary", "ranked_probability", "cross_entropy or focal"),
        ("ordinal", "huber", "cross_entropy or focal or ranked_probability"),
        ("number", "cross_entropy", "huber or mse"),
        ("survival", "mse", "hazard"),
        ("mask", "focal", "bce_dice"),
    ],
)
def test_a_loss_that_does_not_fit_its_task_is_refused(kind: str, loss: str, fits: str) -> None:
    config = problem.config()
    default = replace(config.loss.default, kind=loss)  # of a card that is not the configuration's
    config = replace(config, loss=replace(config.loss, default=default))
    task = TaskSpec("lamp", kind, 2, horizons=(1.0, 2.0) if kind == "survival" else ())
    spec = replace(spec_for(config), tasks=(task,))
    with pytest.raises(ConfigError, match=f"loss {loss} does not fit the {kind} task lamp.*use auto or {fits}$"):
        objective(config, spec, None, CPU)


def test_every_kind_of_task_gets_its_loss_and_what_the_loss_needs(tmp_path: Path) -> None:
    losses = "loss.tasks={grade: {kind: ranked_probability}, make: {kind: focal}}"
    config = problem.config(f"data.dataset={six_kinds.card(tmp_path)}", "data.modalities=[]", losses)
    spec = spec_for(config)
    known = {
        task.name: TaskStatistics(
            9,
            tuple(range(task.num_classes)) if task.coded else (),
            **({"centre": 80.0, "spread": 4.0} if task.name == "age" else {}),
        )
        for task in spec.tasks
    }
    goal = objective(config, spec, known, CPU)
    assert {name: loss.kind for name, loss in goal.losses.items()} == {
        "make": "focal",
        "lit": "cross_entropy",
        "grade": "ranked_probability",
        "age": "huber",
        "failure": "hazard",
        "parts": "bce_dice",
    }
    assert (goal.losses["age"].centre, goal.losses["age"].spread) == (80.0, 4.0)
    assert goal.losses["failure"].horizons == (1.0, 2.5, 5.0)
    on = torch.ones(3, dtype=torch.bool)
    at_scale = goal.generic("age", torch.zeros(3, 1), torch.tensor([80.0, 84.0, 72.0]), on)
    assert float(at_scale.sum) == pytest.approx(0.0 + 0.5 + 1.5)
    times = torch.tensor([[0.3, 1.0], [3.0, 1.0], [9.0, 1.0]])
    assert float(goal.generic("failure", torch.zeros(3, 3), times, on).sum) == pytest.approx(7 * math.log(2))
    plain = objective(config, spec, None, CPU).losses["age"]  # where only shapes matter
    assert (plain.centre, plain.spread) == (0.0, 1.0)
