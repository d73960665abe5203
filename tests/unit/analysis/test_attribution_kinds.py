"""Attribution of answers without classes: one number per sample, and what leaving out a modality does to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from m4oe_ds.analysis.attribution import ablation, confidence, saliency, without
from m4oe_ds.losses import cumulative_incidence
from m4oe_ds.models import build, spec_for
from tests.distributed import problem
from tests.integration import six_kinds


def test_every_kind_has_one_number_per_sample() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    risk = cumulative_incidence(logits.double())[:, -1]
    torch.testing.assert_close(confidence(logits.double(), "survival"), torch.logit(risk))
    torch.testing.assert_close(confidence(logits[:, :1], "number"), logits[:, 0])
    assert confidence(torch.randn(2, 3, 4, 5, 6), "mask").shape == (2,)


def test_shares_and_ablation_of_every_kind(tmp_path: Path) -> None:
    cfg = problem.config("data.modalities=[]", f"data.dataset={six_kinds.card(tmp_path)}")
    spec = spec_for(cfg)
    model, batch = build(cfg).eval(), problem.samples(spec, 6, seed=1)
    for view in batch.views.values():
        view.requires_grad_()
    output = model(batch)
    shares = saliency(batch.views, output, spec)
    assert shares.shape == (6, 6, 2)
    np.testing.assert_allclose(shares.sum(2), 1, atol=1e-5)
    found = ablation(model, batch, output, spec)
    both = batch.present.all(1)
    assert both.any()
    assert (found.divergence[both] >= 0).all()
    assert found.divergence[both].gt(0).all()
    with torch.no_grad():
        less = model(without(batch, "back")).logits
    age = spec.task_names.index("age")
    expected = (output.logits["age"] - less["age"]).detach()[:, 0].square() / 2
    torch.testing.assert_close(found.divergence[both][:, age, 1], expected[both])
    risk = [cumulative_incidence(one["failure"])[:, -1].detach().double() for one in (output.logits, less)]
    p, q = risk
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    failure = spec.task_names.index("failure")
    np.testing.assert_allclose(found.divergence[both][:, failure, 1], kl[both], atol=1e-6)
    assert found.loss_increase[:, [age, failure]].isnan().all()
