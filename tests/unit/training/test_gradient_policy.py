"""Gradient calibration: equal levels by construction, equal weights on any number of ranks, training undisturbed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.data.schema import ModalitySpec, TaskSpec
from m4oe_ds.errors import CheckpointError, ConfigError
from m4oe_ds.models.interface import ModelOutput, ModelSpec, MultiModalModel
from m4oe_ds.training.gradient_policy import (
    CalibratedPolicy,
    branch_scales,
    equal_projection_weights,
    policy,
)
from m4oe_ds.training.shared_gradients import gradient_conflict, shared_gradients
from tests.distributed.ranks import run_ranks

TASKS = ("a", "b", "c")
SCALES = {"a": 1.0, "b": 20.0, "c": 0.3}


class TwoBranches(MultiModalModel):
    """Two linear branches of very different size, a shared linear layer, one scalar head per task."""

    def __init__(self, tasks: tuple[str, ...] = TASKS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.spec = ModelSpec(
            (ModalitySpec("x"), ModalitySpec("y")), tuple(TaskSpec(t, "classes", 1) for t in tasks), (1, 1)
        )
        self.branches = nn.ModuleDict({name: nn.Linear(3, 4) for name in ("x", "y")})
        self.trunk = nn.Linear(8, 5)
        self.heads = nn.ModuleDict({name: nn.Linear(5, 1) for name in tasks})
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.trunk.weight.data[:, 4:] *= 3.0

    def forward(self, views: dict[str, Tensor]) -> ModelOutput:  # type: ignore[override]
        features = {name: self.branches[name](view) for name, view in views.items()}
        shared = torch.tanh(self.trunk(torch.cat(list(features.values()), 1)) / 5)
        logits = {name: head(shared) for name, head in self.heads.items()}
        return ModelOutput(logits, extras={f"features.{name}": value for name, value in features.items()})

    def shared_layer(self) -> nn.Module:
        return self.trunk


def data(count: int = 8) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Views, targets and label mask; the tasks' labels are spread unevenly over the samples."""
    generator = torch.Generator().manual_seed(1)
    views = {name: torch.randn(count, 3, generator=generator) for name in ("x", "y")}
    targets = {name: torch.randn(count, 1, generator=generator) for name in TASKS}
    mask = torch.ones(count, 3, dtype=torch.bool)
    mask[: count // 2, 1] = False
    mask[3:, 2] = False
    return views, targets, mask


def losses(
    model: TwoBranches, rows: slice = slice(None), world: int = 1, tasks: tuple[str, ...] = TASKS
) -> tuple[dict[str, Tensor], ModelOutput, Tensor]:
    views, targets, mask = data()
    output = model({name: view[rows] for name, view in views.items()})
    counts = mask.sum(0).float()[: len(tasks)]
    found = {
        name: SCALES[name]
        * ((output.logits[name] - targets[name][rows]).square()[:, 0] * mask[rows, k]).sum()
        * world
        / counts[k]
        for k, name in enumerate(tasks)
    }
    return found, output, counts


def gradient(loss: Tensor, model: TwoBranches) -> Tensor:
    found = torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in found])


def test_norm_brings_the_tasks_to_one_level() -> None:
    model = TwoBranches()
    task_losses, output, counts = losses(model)
    before = [float(gradient(loss, model).norm()) for loss in task_losses.values()]
    assert max(before) > 5 * min(before)
    weights = CalibratedPolicy("norm").weights(task_losses, model, output, counts)
    after = [float(gradient(weights[name] * loss, model).norm()) for name, loss in task_losses.items()]
    assert after == pytest.approx([after[0]] * 3, rel=1e-4)
    assert sum(weights.values()) == pytest.approx(3)


def test_imtl_g_equalises_the_projections() -> None:
    model = TwoBranches()
    task_losses, output, counts = losses(model)
    weights = CalibratedPolicy("imtl_g").weights(task_losses, model, output, counts)
    found = {name: gradient(loss, model).double() for name, loss in task_losses.items()}
    total = sum(weights[name] * value for name, value in found.items())
    projections = [float(total @ value / value.norm()) for value in found.values()]
    assert projections == pytest.approx([projections[0]] * 3, rel=1e-3)
    assert sum(weights.values()) == pytest.approx(1)


def test_imtl_g_of_orthogonal_gradients_by_hand() -> None:
    # g_1 = 1, g_2 = 3 on two axes: w_1 * 1 = w_2 * 3 and w_1 + w_2 = 1
    found = equal_projection_weights(torch.diag(torch.tensor([1.0, 9.0])))
    assert found.tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("rule", ["norm", "imtl_g"])
def test_one_task_is_plain_training(rule: Any) -> None:
    model = TwoBranches(("b",))
    views, targets, _ = data()
    output = model(views)
    loss = (output.logits["b"] - targets["b"]).square().mean()
    assert CalibratedPolicy(rule).weights({"b": loss}, model, output, torch.tensor([8.0])) == pytest.approx({"b": 1.0})


def test_one_branch_is_plain_training() -> None:
    assert branch_scales([0.37]) == [1.0]


def test_branch_gradients_come_to_one_level_in_the_real_backward() -> None:
    model = TwoBranches()
    task_losses, output, _ = losses(model)
    received: dict[str, float] = {}
    loss = sum(task_losses.values())
    plain = torch.autograd.grad(loss, list(output.extras.values()), retain_graph=True)
    plain_heads = torch.autograd.grad(loss, list(model.heads.parameters()), retain_graph=True)
    norms = [float(value.norm()) for value in plain]
    assert norms[1] > 1.5 * norms[0]
    scales = CalibratedPolicy().calibrate(loss, output)
    for name, feature in output.extras.items():
        feature.register_hook(lambda g, name=name: received.__setitem__(name, float(g.norm())))
    loss.backward()
    assert list(received.values()) == pytest.approx([sum(norms) / 2] * 2, rel=1e-4)
    assert scales == pytest.approx({"x": sum(norms) / 2 / norms[0], "y": sum(norms) / 2 / norms[1]}, rel=1e-4)
    for parameter, expected in zip(model.heads.parameters(), plain_heads, strict=True):
        torch.testing.assert_close(parameter.grad, expected)  # above the branches nothing changes


def test_branch_scales_are_clamped_and_leave_out_dead_branches() -> None:
    assert branch_scales([1.0, 1000.0]) == [10.0, pytest.approx(0.5005)]
    assert branch_scales([0.0, 2.0, 4.0]) == [1.0, 1.5, 0.75]
    assert branch_scales([0.0, 0.0]) == [1.0, 1.0]


@pytest.mark.parametrize("rule", ["norm", "imtl_g"])
def test_a_task_without_labels_is_left_out(rule: Any) -> None:
    model = TwoBranches()
    task_losses, output, counts = losses(model)
    task_losses["b"] = task_losses["b"] * 0
    counts = counts.clone()  # the losses were scaled by these: changing them in place would break their graph
    counts[1] = 0
    found = CalibratedPolicy(rule).weights(task_losses, model, output, counts)
    two = {name: task_losses[name] for name in ("a", "c")}
    expected = CalibratedPolicy(rule).weights(two, model, output, counts[[0, 2]])
    assert found == pytest.approx({**expected, "b": 1.0})


def test_no_label_at_all_is_no_error() -> None:
    model = TwoBranches()
    task_losses, output, _ = losses(model)
    zero = torch.zeros(3)
    assert CalibratedPolicy().weights(task_losses, model, output, zero) == dict.fromkeys(TASKS, 1.0)
    assert math.isnan(gradient_conflict(task_losses, model, zero).conflict)


def test_smoothing_is_kept_and_restored() -> None:
    first, model = CalibratedPolicy("norm", normalise=False), TwoBranches()
    task_losses, output, counts = losses(model)
    first.weights(task_losses, model, output, counts)
    level = first.mean_norm
    assert level is not None
    tenfold = {name: 10 * loss for name, loss in task_losses.items()}
    second = CalibratedPolicy("norm", normalise=False)
    second.load_state_dict(first.state_dict())
    weights = second.weights(tenfold, model, output, counts)
    assert second.mean_norm == pytest.approx(0.9 * level + 0.1 * 10 * level, rel=1e-5)
    norms = [weights[name] * float(gradient(loss, model).norm()) for name, loss in tenfold.items()]
    assert norms == pytest.approx([1.9 * level] * 3, rel=1e-4)
    with pytest.raises(CheckpointError):
        CalibratedPolicy("imtl_g").load_state_dict(first.state_dict())
    with pytest.raises(CheckpointError):
        policy("sum").load_state_dict(first.state_dict())


def test_conflict_of_hand_made_gradients() -> None:
    model = TwoBranches()
    vectors = {"a": (1.0, 0.0), "b": (-1.0, 0.0), "c": (0.0, 1.0)}
    bias = model.trunk.bias
    task_losses = {name: bias[0] * x + bias[1] * y for name, (x, y) in vectors.items()}
    found = gradient_conflict(task_losses, model, torch.ones(3), threshold=0.05)
    expected = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.cosines, expected)
    assert (found.conflict, found.neutral, found.enhance) == pytest.approx((1 / 3, 2 / 3, 0.0))
    assert found.tasks == TASKS


def test_measuring_disturbs_nothing() -> None:
    model = TwoBranches()
    task_losses, _, counts = losses(model)
    gradient_conflict(task_losses, model, counts)
    assert all(parameter.grad is None for parameter in model.parameters())
    sum(task_losses.values()).backward()  # type: ignore[union-attr]  # the graph is still there
    with_measure = [parameter.grad for parameter in model.parameters()]
    fresh = TwoBranches()
    sum(losses(fresh)[0].values()).backward()  # type: ignore[union-attr]
    for found, parameter in zip(with_measure, fresh.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=0, atol=0)


def test_partitioned_parameters_are_refused() -> None:
    model = TwoBranches()
    task_losses, output, counts = losses(model)
    model.trunk.weight.ds_id = 0  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="ZeRO stage 0, 1 or 2"):
        CalibratedPolicy().weights(task_losses, model, output, counts)


@pytest.mark.parametrize(
    ("name", "options"),
    [("nosuch", {}), ("sum", {"rule": "norm"}), ("calibrated", {"rul": "norm"}), ("calibrated", {"rule": "pcgrad"})],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        policy(name, **options)


def on_ranks(rank: int, world: int) -> dict[str, Any]:
    """Weights, scales and cosines on this rank's half of the samples; then an expert layer sharded by hand."""
    model = TwoBranches()
    task_losses, output, counts = losses(model, slice(rank * 4, rank * 4 + 4), world)
    result: dict[str, Any] = {
        rule: CalibratedPolicy(rule).weights(task_losses, model, output, counts)  # type: ignore[arg-type]
        for rule in ("norm", "imtl_g")
    }
    result["cosines"] = gradient_conflict(task_losses, model, counts).cosines.tolist()
    result["scales"] = CalibratedPolicy().calibrate(sum(task_losses.values()), output)  # type: ignore[arg-type]
    return result


@pytest.mark.distributed
def test_two_ranks_form_the_weights_of_the_full_batch(tmp_path: Path) -> None:
    model = TwoBranches()
    task_losses, output, counts = losses(model)
    found = run_ranks(on_ranks, 2, folder=tmp_path)
    for result in found:
        for rule in ("norm", "imtl_g"):
            expected = CalibratedPolicy(rule).weights(task_losses, model, output, counts)  # type: ignore[arg-type]
            assert result[rule] == pytest.approx(expected, rel=1e-4)
        cosines = gradient_conflict(task_losses, model, counts).cosines
        torch.testing.assert_close(torch.tensor(result["cosines"], dtype=torch.float64), cosines, rtol=1e-4, atol=1e-6)
    # the ranks' losses are twice the share of the full batch, so the scales, a ratio, agree
    scales = CalibratedPolicy().calibrate(sum(task_losses.values()), output)  # type: ignore[arg-type]
    assert all(result["scales"] == pytest.approx(scales, rel=1e-4) for result in found)
    assert found[0] == found[1]  # bit for bit: a weight that differs would train diverging replicas


def test_the_gradients_of_one_rank_are_those_of_autograd() -> None:
    model = TwoBranches()
    task_losses, _, counts = losses(model)
    names, found = shared_gradients(task_losses, model, counts)
    assert names == list(TASKS)
    for k, name in enumerate(TASKS):
        torch.testing.assert_close(found[k], gradient(task_losses[name], model))
