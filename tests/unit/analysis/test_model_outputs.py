"""What a compared system shows of itself is written for every sample, samples first, padding left out."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.model_outputs import SHOWN, collect, own_outputs, span
from m4oe_ds.analysis.options import AnalysisOptions
from m4oe_ds.analysis.session import Session, Skip
from m4oe_ds.models import build, spec_for
from tests.distributed import problem

SIZE = ("data.image_size=[64, 56]",)


def run_of(name: str, folder: Path, *overrides: str, count: int = 7) -> Any:
    config = problem.config(f"model.name={name}", *overrides)
    spec, model = spec_for(config), build(config).eval()
    whole = problem.samples(spec, count + 1, seed=0)
    whole = dataclasses.replace(whole, valid=torch.tensor([True] * count + [False]))  # the last one is padding
    parts = [problem.part(whole, start, start + 4) for start in range(0, count + 1, 4)]
    return SimpleNamespace(
        model=model,
        spec=spec,
        device=torch.device("cpu"),
        batches=lambda split, limit: iter(parts),
        num_batches=lambda split, limit: len(parts),
        folder=folder,
        whole=whole,
    )


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("mirai", {"hazard_logits": (5,)}),
        ("mmodn", {"step_logits.density": (3, 4), "steps": (3,)}),
        ("aide", {"view_weights": (2,)}),
        ("eyemost", {"uncertainty.birads": ()}),
        ("asymmirai", {"asymmetry": (2,), "heatmap.ffdm_cc": (6, 5), "window.syn_mlo": (2,), "box.syn_mlo": (4,)}),
    ],
)
def test_outputs_of_every_sample_are_those_of_the_model(
    name: str, outputs: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    run = run_of(name, tmp_path, *SIZE)
    arrays, _ = collect(run, "test", 0)
    assert arrays["keys"].tolist() == [f"k{i}" for i in range(7)]
    with torch.no_grad():
        extras = run.model(run.whole).extras
    for key, shape in outputs.items():
        assert arrays[key].shape == (7, *shape)
        expected = extras[key].transpose(0, 1) if key.startswith("step") else extras[key]
        np.testing.assert_allclose(arrays[key], expected[:7].numpy(), rtol=1e-4, atol=1e-5)


def test_heatmaps_are_drawn_for_the_largest_differences(tmp_path: Path) -> None:
    run = run_of("asymmirai", tmp_path, *SIZE)
    result = own_outputs(Session(AnalysisOptions(tmp_path), run, "asymmirai", {}))
    with np.load(tmp_path / "analysis" / "own-test.npz") as arrays:
        score = (arrays["asymmetry"] * arrays["present"]).sum(1)
        assert arrays["shown"].tolist() == np.argsort(-score, kind="stable")[:SHOWN].tolist()
        assert result["samples"] == len(arrays["keys"]) == 7
        largest = arrays["keys"][arrays["shown"][0]]
    assert (tmp_path / "figures" / "own_heatmaps.png").stat().st_size > 5000
    with (tmp_path / "figures" / "own_heatmaps.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == SHOWN * 2
    assert rows[0]["sample"] == largest


def test_cells_of_a_heatmap_lie_at_the_centres_of_their_windows() -> None:
    assert span(2, 3 / 8) == pytest.approx((0, 6 / 8))  # side by side: rows 0 to 3 and 3 to 6 of 8
    assert span(6, 3 / 8) == pytest.approx((1 / 8, 7 / 8))  # at every row: centres 1.5 to 6.5
    assert span(1, 1.0) == (0.0, 1.0)


def test_a_system_without_outputs_of_its_own_is_left_out(tmp_path: Path) -> None:
    session = Session(AnalysisOptions(tmp_path), run_of("soft_moe", tmp_path), "soft_moe", {})
    with pytest.raises(Skip, match="no outputs of its own"):
        own_outputs(session)
