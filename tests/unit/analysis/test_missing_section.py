"""``m4oe analyze --only missing``: the same samples with fewer and fewer modalities, and the split as it is."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m4oe_ds import config_loader
from m4oe_ds.analysis.analyze import analyze
from m4oe_ds.analysis.attribution import deprived
from m4oe_ds.analysis.missing_section import Variants, _plan
from m4oe_ds.analysis.options import AnalysisOptions
from m4oe_ds.config import to_dict
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.report.html import render
from m4oe_ds.runs.evaluate import evaluate_run
from m4oe_ds.runs.finished import open_run
from m4oe_ds.runs.folder import write_yaml
from tests.distributed import problem
from tests.integration import shards


def make_run(folder: Path, data: Path, *overrides: str) -> Path:
    """A run folder with random weights, as training would leave it."""
    config = config_loader.load(None, (*shards.SMALL, f"data.root={data}", *overrides))
    torch.manual_seed(3)
    model = build(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    (folder / "weights").mkdir(parents=True)
    write_yaml(folder / "config.yaml", to_dict(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(folder / "weights" / "model.safetensors"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the test samples lack half of the four modalities: 40 have all, 20 have two."""
    return shards.write(tmp_path_factory.mktemp("shards") / "demo", {"train": 24, "val": 8, "test": 60})


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "ours", data)
    analyze(AnalysisOptions(run=folder, only=("missing",), resamples=20))
    return folder


def test_the_rows_say_what_was_taken_from_whom(run: Path) -> None:
    found = json.loads((run / "analysis.json").read_text())["missing"]
    assert found["samples"] == 60
    assert found["cohort"] == {"at_least": 4, "samples": 40}
    lacking = {"ffdm_cc": 0, "ffdm_mlo": 0, "syn_cc": 20, "syn_mlo": 20}
    assert found["presence"] == {"samples": 60, "complete": 40, "lacking": lacking}
    assert found["not_judged"] == []
    of_density = [row for row in found["removed"] if row["task"] == "density" and row["metric"] == "auroc"]
    assert [(row["removed"], row["draws"]) for row in of_density] == [(0, 1), (1, 4), (2, 4), (3, 4)]
    assert len({row["n"] for row in of_density}) == 1  # the same samples throughout
    assert all(row["low"] <= row["value"] <= row["high"] and row["trivial"] == 0.5 for row in of_density)
    assert len({row["value"] for row in of_density}) == 4
    by_number = [row for row in found["observed"] if row["task"] == "density" and row["metric"] == "balanced_accuracy"]
    assert [row["present"] for row in by_number] == [2, 4]
    assert by_number[0]["value"] is None  # fewer than 20 labelled patients: counts alone
    assert "counts only" in by_number[0]["reason"]
    assert 0 < by_number[0]["n"] < 20 < by_number[1]["n"]
    assert by_number[1]["trivial"] == 0.25
    for name in ("missing_removed", "missing_observed"):
        with (run / "figures" / f"{name}.csv").open() as stream:
            assert {row["task"] for row in csv.DictReader(stream)} >= {"density", "risk1"}
        assert (run / "figures" / f"{name}.png").stat().st_size > 0


def test_nothing_taken_is_what_evaluation_says(run: Path, data: Path) -> None:
    """Balanced accuracy of the complete samples, from the model's own answers."""
    opened = open_run(run, "test")
    hits: dict[int, list[bool]] = {}
    with torch.no_grad():
        for batch in opened.batches("test"):
            answer = opened.model(batch).logits["density"].argmax(1)
            chosen = batch.valid & batch.present.all(1) & (batch.labels["density"] >= 0)
            for label, said in zip(batch.labels["density"][chosen].tolist(), answer[chosen].tolist(), strict=True):
                hits.setdefault(label, []).append(label == said)
    expected = float(np.mean([np.mean(one) for one in hits.values()]))
    rows = json.loads((run / "analysis.json").read_text())["missing"]["removed"]
    (whole,) = [r for r in rows if (r["task"], r["metric"], r["removed"]) == ("density", "balanced_accuracy", 0)]
    assert whole["value"] == pytest.approx(expected)
    assert whole["n"] == sum(map(len, hits.values()))


def test_the_report_shows_both_figures_and_the_table(run: Path) -> None:
    evaluate_run(run, "test", "")
    page = render(run).read_text(encoding="utf-8")
    assert "When modalities are missing: taken away" in page
    assert "When modalities are missing: as they are" in page
    assert "The 40 samples that have at least 4 modalities" in page
    rows = json.loads((run / "analysis.json").read_text())["missing"]["removed"]
    (one,) = [row for row in rows if (row["task"], row["metric"], row["removed"]) == ("density", "auroc", 3)]
    assert f"<td>{one['value']:.3f} [{one['low']:.2f}, {one['high']:.2f}] (n {one['n']})</td>" in page


def test_other_shards_do_not_take_the_place_of_the_runs_own(data: Path, tmp_path: Path) -> None:
    """A report is about its run: results on other shards are told apart, or not made in its folder."""
    other = shards.write(tmp_path / "other", {"train": 4, "test": 8})
    run = make_run(tmp_path / "run", data)
    asked = AnalysisOptions(run=run, data=str(other), only=("missing",))
    assert analyze(asked)["split"] == "test@other"
    assert analyze(asked)["split"] == "test@other"  # again
    (run / "analysis.json").unlink()
    evaluate_run(run, "test", "")
    with pytest.raises(ConfigError, match=r"are other shards than the run's own, .* m4oe export"):
        analyze(asked)
    assert analyze(AnalysisOptions(run=run, data=str(data), only=("missing",)))["split"] == "test"


def test_one_modality_is_nothing_to_take(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", data, "data.modalities=[ffdm_cc]")
    assert "missing" in analyze(AnalysisOptions(run=run, only=("missing",)))["skipped"]


def test_every_variant_has_every_sample_once_and_takes_what_it_says() -> None:
    spec = spec_for(problem.config("data.modalities=[]"))
    batch = problem.samples(spec, 6, seed=1)
    batch.valid[5] = False
    variants = Variants(_plan(4), spec)
    made = list(variants.batches([batch]))
    assert variants.count == 5
    assert [len(one.keys) for one in made] == [6] * (1 + 4 + 4 + 4)
    assert torch.equal(made[0].present, batch.present)
    before = batch.present.sum(1)
    for (number, _), one in zip(variants.plan, made, strict=True):
        after = one.present.sum(1)
        assert torch.equal(after, torch.where(before > number, before - number, before))
        for i, name in enumerate(one.modalities):
            assert not one.views[name][~one.present[:, i]].any()
    keys = Counter(key for one in made for key, valid in zip(one.keys, one.valid, strict=True) if valid)
    assert set(keys.values()) == {1}
    assert len(keys) == 5 * len(made)


def test_a_mask_is_not_asked_for_where_its_owner_was_taken() -> None:
    spec = spec_for(problem.config("data.dataset=gamma", "data.modalities=[]", "data.image_size=[32, 24]"))
    batch = problem.samples(spec, 8, seed=0)
    batch.present[:] = True
    batch.label_mask[:] = True
    variants = Variants(_plan(2), spec)
    cup, fundus = spec.task_names.index("cup"), spec.modalities.index("fundus")
    lost = 0
    for (number, _), one in zip(variants.plan, variants.batches([batch]), strict=True):
        assert torch.equal(one.label_mask[:, cup], one.present[:, fundus])
        assert one.label_mask.sum() == one.present[:, fundus].sum() + 8 * (len(spec.tasks) - 1)
        lost += number * int((~one.present[:, fundus]).sum())
    assert lost == 8  # two draws of one of two modalities: each sample lost either once


def test_few_numbers_of_many_modalities_are_taken() -> None:
    plan = _plan(21)
    assert sorted({number for number, _ in plan}) == [0, 4, 8, 12, 16, 20]
    assert Counter(number for number, _ in plan)[20] == 4
    assert _plan(2) == [(0, 0), (1, 0), (1, 1)]
    assert all(draw < math.comb(3, number) for number, draw in _plan(3))


def test_the_other_side_is_taken_too() -> None:
    spec = spec_for(problem.config())
    batch = problem.samples(spec, 4, seed=0)
    batch.present[:] = True
    for i, name in enumerate(spec.modalities):
        batch.extras[f"contralateral.{name}"] = torch.full_like(batch.views[name], 1.0 + i)
    batch.extras["contralateral_present"] = torch.ones_like(batch.present)
    gone = torch.tensor([[True, False], [False, True], [False, False], [True, False]])
    found = deprived(batch, gone)
    assert torch.equal(found.present, ~gone)
    assert torch.equal(found.extras["contralateral_present"], ~gone)
    for i, name in enumerate(spec.modalities):
        for view in (found.views[name], found.extras[f"contralateral.{name}"]):
            assert torch.equal(view.flatten(1).any(1), ~gone[:, i])
