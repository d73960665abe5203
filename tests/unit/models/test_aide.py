"""AIDE's fusions: weights sum to one over the present views, lie in the hull, do not depend on the views' order."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.aide import AdaptiveFusion, CrossAttentionFusion
from tests.distributed import problem

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def test_weights_sum_to_one_over_what_is_there() -> None:
    torch.manual_seed(0)
    fused, w = AdaptiveFusion(8)(torch.randn(4, 3, 8), PRESENT)
    torch.testing.assert_close(w.sum(1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert (w[~PRESENT] == 0).all()
    assert (fused[3] == 0).all()


def test_equal_features_get_equal_weights_and_the_result_lies_in_the_hull() -> None:
    torch.manual_seed(0)
    fusion = AdaptiveFusion(8)
    _, w = fusion(torch.randn(4, 1, 8).expand(-1, 3, -1), PRESENT)
    torch.testing.assert_close(w[0], torch.full((3,), 1 / 3))
    torch.testing.assert_close(w[1], torch.tensor([0.5, 0.0, 0.5]))
    f = torch.randn(4, 3, 8)
    fused, w = fusion(f, torch.ones(4, 3, dtype=torch.bool))
    # three points in general position: solve for the weights that make F, without looking at w
    system = torch.cat([f.transpose(1, 2), torch.ones(4, 1, 3)], 1)
    target = torch.cat([fused, torch.ones(4, 1)], 1)
    solved = torch.linalg.lstsq(system, target[..., None]).solution[..., 0]  # [B, 3]
    torch.testing.assert_close(torch.einsum("brc,bc->br", system, solved), target, rtol=1e-4, atol=1e-5)
    assert (solved > 0).all()
    torch.testing.assert_close(solved, w, rtol=1e-3, atol=1e-4)


def test_the_order_of_the_views_is_irrelevant() -> None:
    torch.manual_seed(0)
    f, order = torch.randn(4, 3, 8), torch.tensor([2, 0, 1])
    fusion = AdaptiveFusion(8)
    torch.testing.assert_close(fusion(f[:, order], PRESENT[:, order])[0], fusion(f, PRESENT)[0])
    types = ["ffdm", "ffdm", "syn"]
    torch.manual_seed(1)
    cross = CrossAttentionFusion(8, 2, types)
    torch.manual_seed(1)
    turned = CrossAttentionFusion(8, 2, [types[i] for i in order])
    torch.testing.assert_close(turned(f[:, order], PRESENT[:, order]), cross(f, PRESENT))


def test_a_view_and_its_embedding_may_take_another_place() -> None:
    """Exchange two modalities with their projections and embeddings: the adaptive F and its weights follow."""
    config = problem.config("model.name=aide", "model.options={hidden: 32}")
    model = build(config).eval()
    batch = problem.samples(spec_for(config), 4, 0)
    batch = dataclasses.replace(batch, present=torch.ones(4, 2, dtype=torch.bool))
    seen: list[torch.Tensor] = []
    model.fusion.register_forward_hook(lambda _m, _i, out: seen.extend(out))  # type: ignore[union-attr, operator]
    swap = {"ffdm_cc": "syn_mlo", "syn_mlo": "ffdm_cc"}
    turned = build(config).eval()
    turned.fusion.register_forward_hook(lambda _m, _i, out: seen.extend(out))  # type: ignore[union-attr, operator]
    state = {}
    for name, value in model.state_dict().items():
        other = next((name.replace(a, b) for a, b in swap.items() if f".{a}." in name), name)
        state[other] = value.flip(0) if name == "view_embedding.weight" else value
    turned.load_state_dict(state, strict=True)
    views = {swap[name]: view for name, view in batch.views.items()}
    with torch.no_grad():
        model(batch)
        turned(dataclasses.replace(batch, views=views))
    torch.testing.assert_close(seen[2], seen[0])  # F
    torch.testing.assert_close(seen[3], seen[1].flip(1))  # w
    assert not torch.allclose(seen[3], seen[1], atol=1e-5)


def test_queries_read_the_other_image_type_only() -> None:
    torch.manual_seed(0)
    cross = CrossAttentionFusion(8, 2, ["ffdm", "ffdm", "syn"])
    f = torch.randn(1, 3, 8)
    here = torch.ones(1, 3, dtype=torch.bool)
    seen: list[torch.Tensor] = []
    cross.attention.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    cross(f, here)
    changed = f.clone()
    changed[0, 1] += 5.0  # another view of the same type
    cross(changed, here)
    torch.testing.assert_close(seen[0][0, 0], seen[1][0, 0])
    assert not torch.allclose(seen[0][0, 2], seen[1][0, 2])


def test_a_view_without_anybody_to_ask_stays_as_it_is() -> None:
    torch.manual_seed(0)
    cross = CrossAttentionFusion(8, 2, ["ffdm", "ffdm", "syn"])
    f = torch.randn(1, 3, 8)
    alone = torch.tensor([[True, True, False]])
    torch.testing.assert_close(cross(f, alone), f[:, :2].mean(1))
    assert torch.isfinite(cross(f, torch.zeros(1, 3, dtype=torch.bool))).all()


@pytest.mark.parametrize("fusion", ["adaptive", "cross_attention"])
@pytest.mark.parametrize("dataset", ["embed", "gamma"])
def test_both_fusions_answer_every_task(fusion: str, dataset: str) -> None:
    extra = (
        ()
        if dataset == "embed"
        else ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
    )
    config = problem.config("model.name=aide", f"model.options={{fusion: {fusion}, hidden: 32}}", *extra)
    spec = spec_for(config)
    output = build(config).eval()(problem.samples(spec, 3, 0))
    assert set(output.logits) == set(spec.task_names)
    assert ("view_weights" in output.extras) == (fusion == "adaptive")
    assert all(torch.isfinite(value).all() for value in output.logits.values())


def test_unknown_fusions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fusion \(of aide\) must be one of adaptive, cross_attention"):
        build(problem.config("model.name=aide", "model.options={fusion: sum}"))
