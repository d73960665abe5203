"""AIDE's fusions: weights sum to one over the present views, lie in the hull, do not depend on the views' order."""

from __future__ import annotations

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
    fused, _ = fusion(f, torch.ones(4, 3, dtype=torch.bool))
    assert (fused <= f.amax(1) + 1e-6).all()
    assert (fused >= f.amin(1) - 1e-6).all()


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
    with pytest.raises(ConfigError, match="fusion must be"):
        build(problem.config("model.name=aide", "model.options={fusion: sum}"))
