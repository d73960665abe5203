"""Options that no shipped configuration sets do what their sentence says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m4oe_ds import config_loader
from m4oe_ds.errors import ConfigError, UserError
from m4oe_ds.models import build
from m4oe_ds.training.gradient_policy import CalibratedPolicy, policy
from m4oe_ds.training.loop import _anomalies
from tests.distributed import problem


@pytest.mark.parametrize("ratio", [4.0, 1.5])
def test_mlp_ratio_is_the_hidden_width_of_every_expert(ratio: float) -> None:
    model = build(problem.config(f"model.mlp_ratio={ratio}"))
    widths = {p.shape[-2:] for name, p in model.named_parameters() if name.endswith("experts.w1")}
    assert widths
    assert all(sorted(shape) == sorted((16, round(16 * ratio))) for shape in widths)


def test_gradient_options_reach_the_policy() -> None:
    loss = config_loader.load(
        None,
        ["loss.gradient_policy=calibrated", "loss.gradient_options={rule: imtl_g, momentum: 0.5, branches: false}"],
    ).loss
    made = policy(loss.gradient_policy, **loss.gradient_options)
    assert isinstance(made, CalibratedPolicy)
    assert (made.rule, made.momentum, made.branches, made.normalise) == ("imtl_g", 0.5, False, True)
    with pytest.raises(ConfigError, match="gradient policy sum has no options"):
        policy("sum", **loss.gradient_options)


@pytest.mark.filterwarnings("ignore:Error detected")
def test_detect_anomaly_names_the_operation() -> None:
    def backward() -> None:
        x = torch.zeros(1, requires_grad=True)
        (x.sqrt() * 0).sum().backward()  # 0 / 0

    with _anomalies(False):
        backward()
    with pytest.raises(UserError, match=r"SqrtBackward.*returned nan values"), _anomalies(True):
        backward()


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), _anomalies(True):
        raise RuntimeError("mine")
