"""Volumes and tables in the analyses and the report: shares, maps, galleries, thumbnails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.attribution import recorded_attention, without
from m4oe_ds.analysis.collect import collect
from m4oe_ds.analysis.gallery import GalleryCollector, dispatch_map, grids
from m4oe_ds.evaluation.inference import predict_split
from m4oe_ds.models import build, spec_for
from m4oe_ds.report import figures, gallery_figures, pictures, tables
from m4oe_ds.report.patients import patients
from m4oe_ds.runs.objective import objective
from tests.distributed import kinds

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def problem_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Configuration, model and specification; the scan has two layers of 2 x 2 patches."""
    config = kinds.config(tmp_path_factory.mktemp("kinds"))
    return config, build(config).eval(), spec_for(config)


def test_shares_of_every_explanation(problem_of_kinds: tuple[Any, Any, Any]) -> None:
    _, model, spec = problem_of_kinds
    found = collect(model, [kinds.samples(spec, 4, seed) for seed in (0, 1)], ("grade",), CPU)
    for name in ("contribution", "saliency", "rollout"):
        values = getattr(found, name)[:, :2]  # rollout knows no masks
        np.testing.assert_allclose(values.sum(2), 1.0, rtol=1e-4, err_msg=name)
        assert np.abs(values[~found.present[:, None].repeat(2, 1)]).max() < 1e-6, name
    assert np.isfinite(found.saliency).all()
    assert (found.saliency[found.present[:, 2], :, 2] > 0).all()  # the table matters, categories included
    # absent with zeros, which mean unknown
    batch = without(kinds.samples(spec, 4, 0), "clinic")
    assert not batch.views["clinic"].any()
    assert not batch.present[:, 2].any()


def test_a_table_of_as_many_columns_as_the_fusion_has_tokens_is_not_taken_for_it(tmp_path: Path) -> None:
    """With one task and three modalities, fusion looks at four tokens, as the tower of four columns does."""
    config = kinds.config(tmp_path, "data.tasks=[grade]")
    model, spec = build(config).eval(), spec_for(config)
    with torch.no_grad(), recorded_attention(model) as found:
        model(kinds.samples(spec, 2, 0))
    assert [tuple(one.shape) for one in found] == [(2, 18, 18), (2, 4, 4)]  # MToE, fusion


def test_maps_of_volumes_are_means_over_the_depth_and_of_tables_rows(problem_of_kinds: tuple[Any, Any, Any]) -> None:
    _, model, spec = problem_of_kinds
    found = grids(model, spec, [5, 9, 4])
    assert [(g.start, g.prefix, g.layers, g.rows, g.columns) for g in found] == [
        (0, 1, 1, 2, 2),
        (5, 1, 2, 2, 2),
        (14, 0, 1, 1, 4),
    ]
    weights = torch.arange(18.0)
    torch.testing.assert_close(found[1].place(weights), torch.tensor([[8.0, 9.0], [10.0, 11.0]]))
    torch.testing.assert_close(found[2].place(weights), torch.tensor([[14.0, 15.0, 16.0, 17.0]]))


def gallery_of(model: Any, spec: Any, per_expert: int) -> tuple[dict[str, np.ndarray], Any, Any]:
    batch = kinds.samples(spec, 4, 0)
    batch = dataclasses.replace(batch, present=torch.ones_like(batch.present))
    with torch.no_grad():
        output = model(batch)
    collector = GalleryCollector(model, spec, num_examples=2, per_expert=per_expert)
    collector.add(batch, output)
    return collector.result(), batch, output


def test_the_gallery_names_columns_and_cuts_patches_from_their_own_slice(
    problem_of_kinds: tuple[Any, Any, Any],
) -> None:
    _, model, spec = problem_of_kinds
    arrays, batch, output = gallery_of(model, spec, 18 * 4)
    weights = dispatch_map(output.routing["mtoe"])[0]
    np.testing.assert_allclose(arrays["map_1"][0].reshape(3, 4) * 2, weights[:, 6:10] + weights[:, 10:14], rtol=1e-5)
    np.testing.assert_allclose(arrays["map_2"][0][:, 0], weights[:, 14:], rtol=1e-6)
    assert arrays["columns_2"].tolist() == ["age", "sex", "marker", "ward"]
    middle = batch.views["scan"][0, 0, 4]
    np.testing.assert_array_equal(arrays["view_1"][0], (stretched(middle)))
    # every token of an expert is kept: the largest of them all, by hand
    dispatch = output.routing["mtoe"].dispatch[:, :, 0].amax(2)  # [B, M]
    order = [int(token) for token in dispatch.flatten().argsort(descending=True) if token % 18 not in (0, 5)]
    for place, number in enumerate(order[:20]):
        sample, token = divmod(number, 18)
        modality, _, column = arrays["expert_source"][0, place]
        assert column == (token - 14 if token >= 14 else -1)
        assert modality == (2 if token >= 14 else 1 if token > 5 else 0)
        if modality == 1:
            layer, patch = divmod(token - 6, 4)
            grey = stretched(batch.views["scan"][sample, 0, (2, 6)[layer]])
            row, left = 8 * (patch // 2), 4 * (patch % 2)
            shown = arrays["expert_patch"][0, place]
            np.testing.assert_array_equal(shown[8:16, 4:8], grey[row : row + 8, left : left + 4])


def stretched(view: torch.Tensor) -> np.ndarray:
    return ((view - view.min()) / (view.max() - view.min()) * 255).to(torch.uint8).numpy()


def test_the_report_draws_bars_and_says_how_to_read_them(
    problem_of_kinds: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    _, model, spec = problem_of_kinds
    arrays, _, _ = gallery_of(model, spec, 2)
    made = pictures.dispatch_maps(tmp_path, arrays)["k0"]
    assert made.header == ("task", "Clinic: age", "Clinic: sex", "Clinic: marker", "Clinic: ward")
    assert [float(cell) for cell in made.rows[1][1:]] == pytest.approx(arrays["map_2"][0, 1, 0].tolist(), abs=6e-4)
    assert "middle slice" in made.note
    assert "each column" in made.note
    rows = tables.dispatch_map(arrays, 0)
    assert {row["column"] for row in rows if row["modality"] == "clinic"} == {"age", "sex", "marker", "ward"}
    figure = gallery_figures.dispatch_maps(arrays, 0)
    bars = figure.axes[2]
    assert [patch.get_width() for patch in bars.patches] == pytest.approx(arrays["map_2"][0, 0, 0].tolist())
    assert [text.get_text() for text in bars.texts] == ["age", "sex", "marker", "ward"]
    figures.save(gallery_figures.expert_patches(arrays), tmp_path, "experts", tables.experts(arrays))


def test_samples_of_the_report_show_a_slice_and_no_picture_of_a_table(problem_of_kinds: tuple[Any, Any, Any]) -> None:
    config, model, spec = problem_of_kinds
    goal = objective(config, spec, None, CPU)
    batch = kinds.samples(spec, 4, 0)
    present = torch.ones_like(batch.present)
    present[1, 2] = False
    batch = dataclasses.replace(batch, present=present)
    found = predict_split(model, [batch], spec, goal, CPU, torch.float32, num_examples=2)
    shown = found.examples
    assert shown["kinds"].tolist() == ["image", "volume", "table"]
    assert shown["views"].shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(shown["views"][0, 0], stretched(batch.views["photo"][0].mean(0)))
    assert shown["views"][0, 1].std() > 0
    assert not shown["views"][:, 2].any()
    arrays = found.arrays() | {"tasks": np.array(spec.task_names), "modalities": np.array(spec.modalities)}
    pages = patients({**shown, "contribution": found.contribution[:2]}, arrays, {}, {}, None)
    first, second = (sample for page in pages for sample in page["samples"])
    assert [bool(view["image"]) for view in first["views"]] == [True, True, False]
    assert [view["note"] for view in first["views"]] == ["", ", middle slice", ""]
    assert first["views"][2]["instead"] == "table"
    assert second["views"][2]["instead"] == "absent"
