"""Maps add up to contributions and lie where the token lies; the gallery holds the patches of largest weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.gallery import GalleryCollector, dispatch_map, grids
from m4oe_ds.errors import DataError
from m4oe_ds.layers.routing import Routing, modality_contribution
from m4oe_ds.models import build, spec_for
from tests.distributed import problem


def test_maps_add_up_to_the_contribution() -> None:
    generator = torch.Generator().manual_seed(0)
    routing = Routing(2 * torch.randn(3, 7, 4, 2, generator=generator))
    of_token = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    weights = dispatch_map(routing)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 2))
    expected = modality_contribution(routing, of_token, 3)  # [B, p, m]
    found = torch.zeros(3, 2, 3).index_add(2, of_token, weights)
    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def collected() -> tuple[GalleryCollector, list[object], list[object]]:
    cfg = problem.config()
    torch.manual_seed(0)
    model, spec = build(cfg).eval(), spec_for(cfg)
    collector = GalleryCollector(model, spec, num_examples=5, per_expert=3)
    batches, outputs = [], []
    for seed in range(3):
        batch = problem.samples(spec, 4, seed=seed)
        batch.valid[3] = False
        with torch.no_grad():
            output = model(batch)
        collector.add(batch, output)
        batches.append(batch)
        outputs.append(output)
    return collector, batches, outputs


def test_tokens_lie_where_the_patches_are() -> None:
    cfg = problem.config()
    model, spec = build(cfg), spec_for(cfg)
    found = grids(model, spec, [5, 5])  # 16 x 16 pixels, patches of 8: class token and 2 x 2
    assert [(g.start, g.prefix, g.rows, g.columns) for g in found] == [(0, 1, 2, 2), (5, 1, 2, 2)]
    torch.testing.assert_close(found[1].place(torch.arange(10.0)), torch.tensor([[6.0, 7.0], [8.0, 9.0]]))
    with pytest.raises(DataError, match="not a 2 x 2 grid"):
        grids(model, spec, [6, 5])


def test_examples_may_be_chosen() -> None:
    cfg = problem.config()
    model, spec = build(cfg).eval(), spec_for(cfg)
    batch = problem.samples(spec, 4, seed=0)
    with torch.no_grad():
        output = model(batch)
    collector = GalleryCollector(model, spec, num_examples=2, keys=["k3", "k1", "absent"])
    collector.add(batch, output)
    arrays = collector.result()
    assert arrays["keys"].tolist() == ["k1", "k3"]
    expected = dispatch_map(output.routing["mtoe"])[[1, 3]]
    np.testing.assert_allclose(arrays["map_0"].sum((2, 3)), expected[..., 1:5].sum(2).numpy(), rtol=1e-5)
    nothing = GalleryCollector(model, spec, keys=["absent"])
    nothing.add(batch, output)
    with pytest.raises(DataError, match="none of the chosen samples"):
        nothing.result()


def test_examples_are_the_first_valid_samples(collected: tuple) -> None:
    collector, batches, outputs = collected
    arrays = collector.result()
    assert arrays["keys"].tolist() == ["k0", "k1", "k2", "k0", "k1"]
    assert arrays["map_0"].shape == (5, 7, 2, 2)
    assert arrays["view_1"].shape == (5, 16, 16)
    weights = dispatch_map(outputs[1].routing["mtoe"])[1]
    np.testing.assert_allclose(arrays["map_1"][4].reshape(7, 4), weights[:, 6:].numpy(), rtol=1e-6)
    assert arrays["present"].tolist()[3] == batches[1].present[0].tolist()


def test_gallery_holds_the_largest_weights(collected: tuple) -> None:
    collector, batches, outputs = collected
    arrays = collector.result()
    for expert in range(8):
        everything = [
            (float(output.routing["mtoe"].dispatch[b, token, expert].max()), number, b, token)
            for number, output in enumerate(outputs)
            for b in range(3)
            for token in (1, 2, 3, 4, 6, 7, 8, 9)
        ]
        everything.sort(reverse=True)
        np.testing.assert_allclose(arrays["expert_weight"][expert], [entry[0] for entry in everything[:3]], rtol=1e-6)
        _, number, b, token = everything[0]
        modality, task, column = arrays["expert_source"][expert, 0]
        assert column == -1  # not of a table
        assert modality == (token > 5)
        assert task == int(outputs[number].routing["mtoe"].dispatch[b, token, expert].argmax())
        view = batches[number].views[("ffdm_cc", "syn_mlo")[modality]][b, 0]
        grey = ((view - view.min()) / (view.max() - view.min()) * 255).to(torch.uint8).numpy()
        place = token - (6 if modality else 1)
        row, column = 8 * (place // 2), 8 * (place % 2)
        patch = arrays["expert_patch"][expert, 0]
        assert patch.shape == (24, 24)
        np.testing.assert_array_equal(patch[8:16, 8:16], grey[row : row + 8, column : column + 8])


def test_usage_is_the_mean_combine_share(collected: tuple) -> None:
    collector, _, outputs = collected
    shares = []
    for output in outputs:
        share = output.routing["mtoe"].combine[:3].sum((1, 3))
        shares.append(share / share.sum(1, keepdim=True))
    np.testing.assert_allclose(collector.result()["expert_usage"], torch.cat(shares).mean(0).numpy(), rtol=1e-5)


def test_models_without_maps_say_so() -> None:
    cfg = problem.config("model.use_mtoe=false")
    model, spec = build(cfg).eval(), spec_for(cfg)
    batch = problem.samples(spec, 2, seed=0)
    with pytest.raises(DataError, match="no MToE"), torch.no_grad():
        GalleryCollector(model, spec).add(batch, model(batch))
    with pytest.raises(DataError, match="no sample"):
        GalleryCollector(model, spec).result()
