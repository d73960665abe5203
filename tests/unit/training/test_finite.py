"""The first bad tensor is named: an input with its sample, a parameter, the innermost module, or the loss itself."""

from __future__ import annotations

import pytest
import torch

from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import UserError
from m4oe_ds.models import build, spec_for
from m4oe_ds.training.finite import first_bad_tensor, stop_if_bad, tensors_of
from tests.distributed import problem


@pytest.fixture
def setting() -> tuple[torch.nn.Module, Batch]:
    cfg = problem.config()
    torch.manual_seed(0)
    return build(cfg), problem.samples(spec_for(cfg), 4, seed=0)


def test_nothing_bad(setting: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = setting
    assert first_bad_tensor(model, batch) is None


def test_an_input_is_named_with_its_sample(setting: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = setting
    batch.views["syn_mlo"][2, 0, 3, 4] = float("inf")
    line = first_bad_tensor(model, batch)
    assert line is not None
    assert line.startswith("input syn_mlo of sample k2: 0 nan and 1 infinite of ")


def test_a_parameter_is_named(setting: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = setting
    name, parameter = list(model.named_parameters())[7]
    parameter.data.view(-1)[0] = float("nan")
    line = first_bad_tensor(model, batch)
    assert line is not None
    assert line.startswith(f"parameter {name}: 1 nan")


def test_the_innermost_module_is_named(setting: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = setting
    name, module = next((n, m) for n, m in model.named_modules() if n.startswith("fusion") and not list(m.children()))
    module.register_forward_hook(lambda _m, _i, output: output / 0.0, prepend=True)
    line = first_bad_tensor(model, batch)
    assert line is not None
    assert line.startswith(f"output of {name}: ")
    assert not module._forward_hooks or len(module._forward_hooks) == 1  # ours are gone


def test_a_bad_loss_stops_and_says_where(setting: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = setting
    stop_if_bad(model, [batch], [torch.tensor(1.0)], "step 3")
    with pytest.raises(UserError, match=r"step 3.*it is the loss that is not|it is the loss that is not.*step 3"):
        stop_if_bad(model, [batch], [torch.tensor(1.0), torch.tensor(float("nan"))], "step 3")


def test_tensors_of_nested_outputs() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    assert [t.numel() for t in tensors_of({"a": (one, [two]), "b": torch.zeros(3, dtype=torch.int64), "c": None})] == [
        1,
        2,
    ]
