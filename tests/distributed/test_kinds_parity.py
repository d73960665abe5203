"""Images, volumes and tables together: two ranks that share the experts train as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import kinds
from tests.distributed.ranks import run_ranks

STEPS = 3
TOLERANCE = 1e-5  # relative, as for images alone

pytestmark = pytest.mark.distributed


def trajectories(rank: int, world: int, folder: str, overrides: list[str]) -> dict[str, list[tuple[float, float]]]:
    """By ZeRO stage, with the experts over all ranks."""
    cfg = kinds.config(Path(folder), f"parallel.ep_size={world}", *overrides)
    return {str(stage): kinds.trajectory(cfg, stage, STEPS, rank, world) for stage in (1, 3)}


def difference(one: Any, other: Any) -> float:
    """Largest relative difference of loss and gradient norm over the steps."""
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) / abs(b) for x, y in pairs for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("overrides", [[], ["model.missing_modality=bank"]], ids=["mask", "bank"])
def test_two_ranks_train_as_one_does(overrides: list[str], tmp_path: Path) -> None:
    kinds.config(tmp_path)  # writes the card
    expected = run_ranks(trajectories, 1, str(tmp_path), overrides, folder=tmp_path / "one")[0]
    assert abs(expected["1"][-1][0] - expected["1"][0][0]) > 1e-3  # it moves
    for found in run_ranks(trajectories, 2, str(tmp_path), overrides, folder=tmp_path / "two"):
        for stage, values in found.items():
            assert difference(values, expected["1"]) < TOLERANCE, f"ZeRO {stage}"
