"""Ablation, saliency and rollout against closed forms, loops, and a model whose answer is known to use one modality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.analysis.attribution import (
    ablation,
    confidence,
    recorded_attention,
    rollout,
    saliency,
    without,
)
from m4oe_ds.layers.block import Attention
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelOutput
from tests.distributed import problem

CONFIG = problem.config()
SPEC = spec_for(CONFIG)


class FirstOnly(nn.Module):
    """Answers every task from the mean of the first modality, the second counting ``share`` as much."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, batch: Any) -> ModelOutput:
        first, second = (batch.views[name].flatten(1).sum(1) for name in SPEC.modalities)
        score = first + self.share * second
        return ModelOutput(
            {task.name: torch.outer(score, torch.arange(task.num_classes, dtype=score.dtype)) for task in SPEC.tasks}
        )


def test_confidence_is_the_log_odds_of_the_predicted_class() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.5], [2.0, -1.0, 0.0]])
    p = logits.softmax(1).amax(1)
    torch.testing.assert_close(confidence(logits), (p / (1 - p)).log())
    torch.testing.assert_close(confidence(logits + 9.0), confidence(logits))
    masks = torch.tensor([[[[-2.0, 1.0]]]])
    assert float(confidence(masks)) == pytest.approx(1.5)


@pytest.mark.parametrize("share", [0.0, -0.5])
def test_saliency_follows_the_weights_of_a_linear_model(share: float) -> None:
    batch = problem.samples(SPEC, 6, seed=1)
    views = {name: view.requires_grad_() for name, view in batch.views.items()}
    found = saliency(views, FirstOnly(share)(batch), SPEC)
    size = torch.stack([batch.views[name].detach().abs().flatten(1).sum(1) for name in SPEC.modalities], 1)
    expected = size * torch.tensor([1.0, abs(share)])
    expected = expected / expected.sum(1, keepdim=True)
    for k in range(len(SPEC.tasks)):
        torch.testing.assert_close(found[:, k], expected, rtol=1e-4, atol=1e-6)


def test_saliency_of_a_sample_does_not_depend_on_the_others() -> None:
    model = build(CONFIG).eval()

    def shares(batch: Any) -> Tensor:
        views = {name: view.detach().requires_grad_() for name, view in batch.views.items()}
        batch.views.update(views)
        return saliency(views, model(batch), SPEC)

    whole = shares(problem.samples(SPEC, 4, seed=2))
    alone = shares(problem.part(problem.samples(SPEC, 4, seed=2), 1, 2))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.sum(2), torch.ones(4, len(SPEC.tasks)))


def test_ablation_sees_only_what_the_model_uses() -> None:
    model: Any = FirstOnly(0.0)
    batch = problem.samples(SPEC, 12, seed=3)
    batch.views[SPEC.modalities[0]].mul_(0.01)
    output = model(batch)
    found = ablation(model, batch, output, SPEC)
    both = batch.present.all(1)
    assert both.any()
    assert not both.all()
    assert (found.divergence[both][..., 1] == 0).all()
    assert (found.divergence[both][..., 0] > 0).all()
    assert torch.isnan(found.divergence[~both]).all()
    b, k = (int(v) for v in (both[:, None] & batch.label_mask).nonzero()[0])
    name = SPEC.tasks[k].name
    full = output.logits[name][b].log_softmax(0)
    less = torch.zeros_like(full).log_softmax(0)  # without the first modality all logits are 0
    label = int(batch.labels[name][b])
    assert float(found.divergence[b, k, 0]) == pytest.approx(float((full.exp() * (full - less)).sum()), rel=1e-4)
    assert float(found.loss_increase[b, k, 0]) == pytest.approx(float(full[label] - less[label]), rel=1e-4)
    assert torch.isnan(found.loss_increase[~batch.label_mask]).all()


def test_without_hides_both_breasts_and_leaves_the_batch_alone() -> None:
    batch = problem.samples(SPEC, 4, seed=0)
    before = batch.present.clone()
    less = without(batch, SPEC.modalities[0])
    assert not less.present[:, 0].any()
    assert not less.extras["contralateral_present"][:, 0].any()
    assert not less.extras[f"contralateral.{SPEC.modalities[0]}"].any()
    assert not less.views[SPEC.modalities[0]].any()
    assert torch.equal(batch.present, before)
    assert batch.views[SPEC.modalities[0]].any()


def test_recorded_attention_is_what_the_layer_computes() -> None:
    layer = Attention(8, num_heads=2, qkv_bias=True).eval()
    x = torch.randn(3, 5, 8)
    mask = torch.rand(3, 1, 1, 5) < 0.7
    mask[..., 0] = True
    with torch.no_grad():  # equal heads: the mean over the heads is then exact
        weight = layer.qkv.weight.view(3, 2, 4, 8)
        weight[2, 1], weight[1, 1], weight[0, 1] = weight[2, 0], weight[1, 0], weight[0, 0]
        bias = layer.qkv.bias.view(3, 2, 4)
        bias[:, 1] = bias[:, 0]
    value = layer.qkv(x).view(3, 5, 3, 2, 4)[:, :, 2, 0]
    with torch.no_grad(), recorded_attention(layer) as found:
        out = layer(x, attn_mask=mask)
    expected = layer.proj((found[0] @ value).repeat(1, 1, 2))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert (found[0].masked_select(~mask[:, 0].expand(3, 5, 5)) == 0).all()
    layer(x)
    assert len(found) == 1  # the hooks are gone


def test_rollout_multiplies_layers_and_reads_where_the_head_reads() -> None:
    classify = len(SPEC.tasks)
    lengths = [2, 1]
    present = torch.tensor([[True, True], [True, False]])
    joint = [torch.rand(2, 3, 3).softmax(2) for _ in range(2)]
    per_task = [torch.rand(2 * classify, 3, 3).softmax(2)]
    inside = torch.rand(2, 2, 2).softmax(2)  # attention within a modality is not in the way
    found = rollout([inside, *joint, *per_task], present, lengths, SPEC)
    assert found is not None
    eye = torch.eye(3)
    b, k = 0, 4
    rolled = ((joint[1][b] + eye) / 2) @ ((joint[0][b] + eye) / 2)
    share = torch.stack([rolled[:, :2].sum(1), rolled[:, 2]], 1).mean(0)
    first = ((per_task[0][b * classify + k] + eye) / 2)[0]
    torch.testing.assert_close(found[b, k], first[1:] + first[0] * share)
    torch.testing.assert_close(found.sum(2), torch.ones(2, classify))
    alone = rollout(joint, present, lengths, SPEC)
    assert alone is not None
    assert alone.shape == (2, 1, 2)
    rolled = ((joint[1][1] + eye) / 2) @ ((joint[0][1] + eye) / 2)
    expected = torch.stack([rolled[:2, :2].sum(1), rolled[:2, 2]], 1).mean(
        0
    )  # the absent modality's token asks nothing
    torch.testing.assert_close(alone[1, 0], expected)
    assert rollout([inside], present, lengths, SPEC) is None


def test_rollout_of_the_real_model_gives_absent_modalities_nothing() -> None:
    model = build(CONFIG).eval()
    batch = problem.samples(SPEC, 12, seed=4)
    with torch.no_grad(), recorded_attention(model) as attention:
        model(batch)
    found = rollout(attention, batch.present, [5, 5], SPEC)
    assert found is not None
    torch.testing.assert_close(found.sum(2), torch.ones(12, len(SPEC.tasks)))
    lacking = ~batch.present[:, 1]
    assert lacking.any()
    assert float(found[lacking][..., 1].abs().max()) < 1e-6
