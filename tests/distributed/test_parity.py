"""Same seed, same data: losses and gradient norms do not depend on how ranks, experts and optimizer state are split.

The reference is one process with all experts. Labels are missing unevenly: the first quarter of every global batch has
none, so at four ranks one rank has no label at all. The last test removes each collective in turn and shows that the
comparison then fails.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

LAYOUTS = {1: (1,), 2: (1, 2), 4: (2, 4)}  # world size -> expert-parallel sizes
CASES = tuple(itertools.product((1, 2, 3), (1, 3), (0.0, 0.5)))  # ZeRO stage, accumulation, clipping
STEPS = 20
# relative: sums in another order change the last of 24 bits per step, Adam carries that through 20 steps
TOLERANCE = 1e-5

pytestmark = pytest.mark.distributed

Trajectory = list[tuple[float, float, float]]


def trajectories(rank: int, world: int, ep_sizes: list[int], steps: int) -> dict[str, Trajectory]:
    """All cases at these expert-parallel sizes, in one start-up of ``world`` processes: loss, gradient norm, mi."""
    results = {}
    for ep in ep_sizes:
        for stage, accumulation, clipping in CASES:
            cfg = problem.config(f"parallel.ep_size={ep}")
            ds = problem.deepspeed_config(stage, 8 * accumulation, accumulation, clipping)
            figures = problem.trajectory(cfg, ds, steps, rank, world)
            results[f"{ep}/{stage}/{accumulation}/{clipping}"] = [(f["loss"], f["grad_norm"], f["mi"]) for f in figures]
    return results


def broken_trajectories(rank: int, world: int, steps: int) -> dict[str, Trajectory]:
    """The same problem with one collective at a time replaced by what a single rank would see."""
    from m4oe_ds.parallel import exchange, reduce
    from m4oe_ds.training import step

    results = {}
    originals = (exchange._all_to_all, reduce.sum_over_ranks, step.Objective.mutual_information)

    def own_counts(tensor: Any) -> Any:
        # only the label counts: float32 of length p; the logged figures are float64
        return tensor * world if tensor.numel() == 7 and tensor.dtype.itemsize == 4 else originals[1](tensor)

    def own_information(self: Any, output: Any, batch: Any, _reduce: Any, _world: int) -> Any:
        return originals[2](self, output, batch)

    for name in ("exchange", "label counts", "information"):
        if name == "exchange":
            exchange._all_to_all = lambda tensor, group: tensor.contiguous()
        elif name == "label counts":
            reduce.sum_over_ranks = own_counts
        else:
            step.Objective.mutual_information = own_information
        cfg = problem.config(f"parallel.ep_size={world}", "loss.alpha=1.0")
        figures = problem.trajectory(cfg, problem.deepspeed_config(2, 8, 1, 0.0), steps, rank, world)
        results[name] = [(f["loss"], f["grad_norm"], f["mi"]) for f in figures]
        exchange._all_to_all, reduce.sum_over_ranks, step.Objective.mutual_information = originals
    figures = problem.trajectory(cfg, problem.deepspeed_config(2, 8, 1, 0.0), steps, rank, world)
    results["nothing"] = [(f["loss"], f["grad_norm"], f["mi"]) for f in figures]
    return results


def difference(one: Trajectory, other: Trajectory) -> float:
    """Largest relative difference of loss and gradient norm over the steps."""
    assert len(one) == len(other)
    return max(abs(a[i] - b[i]) / abs(b[i]) for a, b in zip(one, other, strict=True) for i in (0, 1))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trajectory]:
    """One process, all cases."""
    return run_ranks(trajectories, 1, [1], STEPS, folder=tmp_path_factory.mktemp("world1"))[0]


def test_stages_agree_on_one_rank(reference: dict[str, Trajectory]) -> None:
    for stage, accumulation, clipping in CASES:
        one = reference[f"1/{stage}/{accumulation}/{clipping}"]
        assert difference(one, reference[f"1/1/{accumulation}/{clipping}"]) < TOLERANCE, (stage, accumulation, clipping)


def test_clipping_is_active_and_training_moves(reference: dict[str, Trajectory]) -> None:
    free, clipped = reference["1/2/1/0.0"], reference["1/2/1/0.5"]
    assert min(norm for _, norm, _ in free) > 0.5  # so that a threshold of 0.5 clips every step
    assert difference(free, clipped) > 1e-3
    assert abs(free[-1][0] - free[0][0]) > 1e-3


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("world", [2, 4])
def test_losses_do_not_depend_on_the_layout(world: int, reference: dict[str, Trajectory], tmp_path: Path) -> None:
    results = run_ranks(trajectories, world, list(LAYOUTS[world]), STEPS, folder=tmp_path)
    for ep in LAYOUTS[world]:
        for stage, accumulation, clipping in CASES:
            case = f"{stage}/{accumulation}/{clipping}"
            for rank in range(world):
                found = difference(results[rank][f"{ep}/{case}"], reference[f"1/{case}"])
                assert found < TOLERANCE, f"world {world}, ep {ep}, stage/accumulation/clipping {case}: {found:.1e}"


def test_comparison_fails_when_a_collective_is_removed(tmp_path: Path) -> None:
    steps = 3
    cfg = problem.config("loss.alpha=1.0")
    expected = run_ranks(single, 1, cfg_overrides(cfg), steps, folder=tmp_path / "one")[0]
    results = run_ranks(broken_trajectories, 2, steps, folder=tmp_path / "two")[0]
    assert difference(results["nothing"], expected) < TOLERANCE
    for name in ("exchange", "label counts", "information"):
        assert difference(results[name], expected) > 100 * TOLERANCE, f"removing the {name} went unnoticed"


def cfg_overrides(cfg: Any) -> list[str]:
    """What :func:`single` needs to rebuild the configuration in another process."""
    return [f"loss.alpha={cfg.loss.alpha}"]


def single(rank: int, world: int, overrides: list[str], steps: int) -> Trajectory:
    """Reference trajectory of :func:`test_comparison_fails_when_a_collective_is_removed`."""
    figures = problem.trajectory(problem.config(*overrides), problem.deepspeed_config(2, 8, 1, 0.0), steps, rank, world)
    return [(f["loss"], f["grad_norm"], f["mi"]) for f in figures]
