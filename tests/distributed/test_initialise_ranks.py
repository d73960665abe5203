"""A run of RSNA's modalities and tasks started from a model of EMBED's, by ranks that share the experts.

What counts is what DeepSpeed trains: the fp32 masters of every rank, after the engine was built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

RSNA = ("data.dataset=rsna", "data.modalities=[]", "run.seed=5")
TASKS = [6, 0]  # density and birads in EMBED's order


def masters(rank: int, world: int, source: str, cases: list[tuple[int, int, bool]]) -> Any:
    """Per case (ep_size, ZeRO stage, whether it starts from the source) how many values differ from the source's."""
    from safetensors.torch import load_file

    from m4oe_ds import deepspeed_json
    from m4oe_ds.parallel import engine_state
    from m4oe_ds.runs.folder import RunFolder
    from m4oe_ds.runs.initial_source import open_source
    from m4oe_ds.runs.initialise import initialise
    from m4oe_ds.training import engine as engines

    wanted = load_file(str(RunFolder(Path(source)).weights))
    wanted["mtoe.mtoe.router.phi"] = wanted["mtoe.mtoe.router.phi"][:, :, TASKS]
    wanted["mtoe.mtoe.task_embed"] = wanted["mtoe.mtoe.task_embed"][TASKS]
    found = []
    for ep, stage, starts in cases:
        cfg = problem.config(*RSNA, f"parallel.ep_size={ep}")
        ds = problem.deepspeed_config(stage, 8, 1, 0.0)
        taken: list[Any] = []

        def fill(model: Any, cfg: Any = cfg, taken: list[Any] = taken) -> None:
            taken.append(initialise(model, model.spec, open_source(Path(source)), cfg.model.init_map))

        engine, _ = engines.create(
            cfg, ds, deepspeed_json.batch_sizes(ds, world, "test"), world, fill if starts else None
        )
        differing: dict[str, int] = {}
        held = 0
        for piece in engine_state.pieces(engine):
            if piece.kind == engine_state.MASTER:
                there = wanted[piece.name].flatten()[piece.start : piece.start + piece.values.numel()]
                differing[piece.name] = differing.get(piece.name, 0) + int((piece.values != there).sum())
                held += piece.values.numel()
        found.append([differing, held, [taken[0].values, taken[0].total, len(taken[0].new)] if starts else None])
    return found


def test_masters_are_those_of_the_source(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from m4oe_ds.config import to_dict
    from m4oe_ds.models import build
    from m4oe_ds.runs.folder import RunFolder, write_yaml

    cfg = problem.config("data.modalities=[]", "run.seed=4")
    files = RunFolder(tmp_path / "embed")
    files.weights.parent.mkdir(parents=True)
    write_yaml(files.config, to_dict(cfg))
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in build(cfg).state_dict().items()}
    save_file(state, str(files.weights))
    cases = [(2, 2, True), (1, 2, True), (2, 3, True), (2, 2, False)]
    ranks = run_ranks(masters, 2, str(files.path), cases, folder=tmp_path / "ranks")
    size = sum(value.numel() for value in build(problem.config(*RSNA)).state_dict().values())
    for case, *by_rank in zip(cases, *ranks, strict=True):
        differing = {name: count for found, _, _ in by_rank for name, count in found.items() if count}
        if not case[2]:
            experts = [name for name in differing if name.endswith("experts.experts.w1")]
            assert len(experts) == 4, "without it nothing is as in the source: this test would show it"
            continue
        assert not differing, case
        # every value is held by one rank: experts that one rank held twice would be as many differing ones elsewhere
        assert sum(held for _, held, _ in by_rank) == size, case
        assert [counts for _, _, counts in by_rank] == [[size, size, 0]] * 2, case
