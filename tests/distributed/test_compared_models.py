"""Every model trains under ZeRO stage 3 on two ranks as in one process: none keeps tensors that are not gathered."""

from __future__ import annotations

from pathlib import Path

import pytest

from m4oe_ds.models import available
from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.tasks=[glaucoma]", "data.image_size=[16, 16]")
OPTIONS = {
    "aide": ("model.options={dropout: 0.0, head_dropout: 0.0}",),  # ranks draw other dropout masks than one process
    "eyestar": GAMMA,
}
OURS = (
    ("model.use_mtoe=false",),
    ("model.missing_modality=bank",),
    ("model.name=soft_moe", "model.options={task_slots: true}"),
    ("model.name=mirai", "model.attach_mtoe=replace"),
    ("model.name=fuller", "model.attach_mtoe=append"),
    ("model.name=eyestar", *GAMMA, "model.attach_mtoe=append"),
)
VARIANTS = [(f"model.name={name}", *OPTIONS.get(name, ())) for name in available()] + [*OURS]
LOCAL = "model.name=evif"  # its contrastive losses compare the samples of one rank, so two ranks are not one process
STEPS = 2
TOLERANCE = 1e-4  # of float32 sums in another order, carried through a step of Adam


def losses(rank: int, world: int, stage: int) -> dict[str, list[float]]:
    """Loss and gradient norm of the first steps of every variant; ``reference`` is stage 1 of the local one."""
    found = {}
    cases = [(" ".join(overrides), overrides, stage) for overrides in VARIANTS] + [("reference", (LOCAL,), 1)]
    for name, overrides, level in cases:
        config = problem.config(*overrides, "parallel.ep_size=1")
        steps = problem.trajectory(config, problem.deepspeed_config(level, 8, 1, 0.5), STEPS, rank, world)
        found[name] = [step[key] for step in steps for key in ("loss", "grad_norm")]
    return found


@pytest.mark.timeout(400)
def test_stage_3_on_two_ranks_agrees_with_one_process(tmp_path: Path) -> None:
    one = run_ranks(losses, 1, 1, folder=tmp_path / "one")[0]
    two = run_ranks(losses, 2, 3, folder=tmp_path / "two")[0]
    one[LOCAL] = two.pop("reference")
    assert len(two) == len(VARIANTS)
    wrong = {}
    for name, found in two.items():
        if any(abs(a - b) > TOLERANCE * abs(b) for a, b in zip(found, one[name], strict=True)):
            wrong[name] = (found, one[name])
    assert not wrong
