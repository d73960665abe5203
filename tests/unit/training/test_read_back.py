"""What a dry run compares after reading a checkpoint back: bytes, so that what is not a number equals itself."""

from __future__ import annotations

import pytest
import torch

from m4oe_ds.training.dry_run import checksum


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_equal_bytes_are_equal_whatever_they_stand_for(kind: torch.dtype) -> None:
    values = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]).to(kind)
    assert checksum(values) == checksum(values.clone())
    assert checksum(values.T) == checksum(values.T.contiguous())
    changed = values.clone()
    changed[1, 1] = 0
    assert checksum(changed) != checksum(values)
    assert checksum(values[:, :0]) == checksum(torch.zeros(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_equals_itself_and_hides_no_change(value: float) -> None:
    values = torch.tensor([value, 1.0, 2.0])
    assert checksum(values) == checksum(values.clone())
    assert checksum(values) != checksum(torch.tensor([value, 1.0, 3.0]))
    assert checksum(values) != checksum(torch.tensor([value, 2.0, 1.0]))


def test_a_single_number() -> None:
    assert checksum(torch.tensor(float("nan"))) == checksum(torch.tensor([float("nan")]))
    assert checksum(torch.tensor(1.0, requires_grad=True)) == checksum(torch.tensor(1.0))
