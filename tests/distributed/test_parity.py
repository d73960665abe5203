"""Same seed, same data: losses and gradient norms do not depend on how ranks, experts and optimizer state are split."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

LAYOUTS = ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))
STAGES = (1, 2, 3)
ACCUMULATION = (1, 3)
CLIPPING = (0.0, 0.5)
STEPS = 20


def trajectories(rank: int, world: int, ep_sizes: list[int], steps: int) -> dict[str, Any]:
    """One start-up of ``world`` processes, all cases of these expert-parallel sizes."""
    results = {}
    for ep, stage, accumulation, clipping in itertools.product(ep_sizes, STAGES, ACCUMULATION, CLIPPING):
        cfg = problem.config(f"parallel.ep_size={ep}")
        ds = problem.deepspeed_config(stage, 8 * accumulation, accumulation, clipping)
        figures = problem.trajectory(cfg, ds, steps, rank, world)
        results[f"{world}/{ep}/{stage}/{accumulation}/{clipping}"] = [
            (f["loss"], f["grad_norm"], f["mi"]) for f in figures
        ]
    return results
