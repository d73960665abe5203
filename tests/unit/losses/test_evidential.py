"""Evidence, its fusion and its losses, against scipy, torch's distributions and numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.nn import functional

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.layers import evidence
from m4oe_ds.layers.evidence import NIG, EvidentialOptions, StudentT
from m4oe_ds.losses import evidential
from m4oe_ds.losses.evidential import EvidentialLoss

WHOLE = torch.ones(1, 2, dtype=torch.bool)


def scalar(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def random_nig(*shape: int, seed: int = 0) -> NIG:
    generator = torch.Generator().manual_seed(seed)
    raw = 3 * torch.randn(*shape[:-1], 4, shape[-1], generator=generator)
    return evidence.nig_from_logits(raw)


def t_of(location: Any, scale2: Any, nu: Any) -> StudentT:
    return StudentT(*(torch.tensor(value, dtype=torch.float64) for value in (location, scale2, nu)))


def test_both_likelihoods_are_the_worked_number() -> None:
    nig = NIG(*scalar(0.3, 2.0, 3.0, 0.7))
    y = torch.tensor(1.0, dtype=torch.float64)
    assert evidential.nig_negative_log_likelihood(nig, y).item() == pytest.approx(1.1695290519, abs=1e-10)
    t = evidence.student_t(nig)
    assert evidential.t_negative_log_likelihood(t, y).item() == pytest.approx(1.1695290519, abs=1e-10)


def test_both_likelihoods_are_those_of_scipy() -> None:
    nig = NIG(*(part.double() for part in random_nig(50, 3)))
    t = evidence.student_t(nig)
    expected = -stats.t.logpdf(
        0.4, df=2 * nig.alpha, loc=nig.gamma, scale=torch.sqrt(nig.beta * (1 + nig.v) / (nig.v * nig.alpha))
    )
    y = torch.full_like(nig.gamma, 0.4)
    np.testing.assert_allclose(evidential.nig_negative_log_likelihood(nig, y), expected, rtol=1e-8)
    np.testing.assert_allclose(evidential.t_negative_log_likelihood(t, y), expected, rtol=1e-8)
    squared = -stats.t.logpdf(0.4, df=t.nu, loc=t.location, scale=t.scale2)
    np.testing.assert_allclose(evidential.t_negative_log_likelihood(t, y, squared_scale=True), squared, rtol=1e-8)


def test_evidence_stays_in_its_ranges_for_extreme_outputs() -> None:
    raw = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4]).expand(1, 4, 5)
    nig = evidence.nig_from_logits(raw)
    t = evidence.student_t(nig)
    assert (t.nu > 2).all()
    assert (t.nu <= 40).all()
    assert (nig.v <= 20).all()
    assert (nig.beta >= 0.2).all()
    assert nig.v[0, 2].item() == pytest.approx(np.log(2))
    assert nig.alpha[0, 2].item() == pytest.approx(1 + np.log(2))
    assert nig.beta[0, 2].item() == pytest.approx(0.2 + np.log(2))
    for part in (*t, evidence.t_variance(t), evidential.nig_negative_log_likelihood(nig, torch.ones(1, 5))):
        assert torch.isfinite(part).all()


def test_the_variance_is_that_of_scipy() -> None:
    t = t_of([0.0, 1.0], [3.0, 0.5], [10.0, 2.5])
    np.testing.assert_allclose(evidence.t_variance(t), stats.t.var(df=t.nu, scale=t.scale2.sqrt()), rtol=1e-10)


def test_variance_matching_by_hand() -> None:
    t = t_of([[[0.0], [1.0]]], [[[2.0], [3.0]]], [[[6.0], [10.0]]])
    fused = evidence.fuse_student_t(t, WHOLE)
    assert fused.nu.item() == 6.0
    assert fused.scale2.item() == pytest.approx(2.25)  # (2 + 2.5) / 2: variance 3.75 before and after
    assert fused.location.item() == pytest.approx(1 - 0.375)


def test_the_reference_has_the_smaller_nu_in_most_classes() -> None:
    nu = torch.tensor([[[5.0, 5.0, 9.0], [6.0, 6.0, 3.0]]])
    assert evidence.reference_source(nu, WHOLE).item() == 0
    even = torch.tensor([[[5.0, 9.0], [6.0, 3.0]]])
    assert evidence.reference_source(even, WHOLE).item() == 1  # one class each: the smallest nu decides
    three = torch.tensor([[[5.0, 9.0, 9.0], [6.0, 3.0, 3.5], [3.0, 8.0, 9.0]]])
    assert evidence.reference_source(three, torch.tensor([[True, True, True]])).item() == 1
    assert evidence.reference_source(three, torch.tensor([[True, False, True]])).item() == 2


def test_identical_sources_fuse_to_either() -> None:
    t = evidence.student_t(random_nig(6, 1, 3))
    for count in (2, 3, 4):
        fused = evidence.fuse_student_t(
            StudentT(*(part.expand(-1, count, -1) for part in t)), torch.ones(6, count, dtype=torch.bool)
        )
        for found, expected in zip(fused, t, strict=True):
            torch.testing.assert_close(found, expected[:, 0])


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_the_fused_location_lies_between_those_of_the_sources(sources: int) -> None:
    t = evidence.student_t(random_nig(40, sources, 3))
    fused = evidence.fuse_student_t(t, torch.ones(40, sources, dtype=torch.bool))
    assert (fused.location >= t.location.amin(1) - 1e-5).all()
    assert (fused.location <= t.location.amax(1) + 1e-5).all()
    assert (fused.nu > 2).all()
    assert (fused.nu <= 40).all()
    assert (fused.scale2 > 0).all()


def test_an_absent_source_leaves_no_trace_in_the_mixture() -> None:
    t = evidence.student_t(random_nig(8, 3, 4))
    present = torch.tensor([True, False, True]).expand(8, 3)
    spoiled = StudentT(*(part.index_fill(1, torch.tensor([1]), float("nan")) for part in t))
    alone = StudentT(*(part[:, [0, 2]] for part in t))
    expected = evidence.fuse_student_t(alone, torch.ones(8, 2, dtype=torch.bool))
    for found, value in zip(evidence.fuse_student_t(spoiled, present), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_without_any_source_the_mixture_is_standard() -> None:
    fused = evidence.fuse_student_t(evidence.student_t(random_nig(1, 2, 3)), ~WHOLE)
    assert [part.unique().tolist() for part in fused] == [[0.0], [1.0], [4.0]]


def dirichlets(count: int, sources: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + 5 * torch.rand(count, sources, classes, generator=generator, dtype=torch.float64)


def test_dirichlet_combination_by_hand() -> None:
    alpha = torch.tensor([[[3.0, 1.0, 1.0], [1.0, 2.0, 1.0]]], dtype=torch.float64)
    fused = evidence.fuse_dirichlet(alpha, WHOLE)
    torch.testing.assert_close(fused, torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64))
    belief, uncertainty = evidence.opinion(fused)
    torch.testing.assert_close(belief, torch.tensor([[1 / 3, 1 / 6, 0.0]], dtype=torch.float64))
    assert uncertainty.item() == pytest.approx(0.5)


def test_dirichlet_combination_is_commutative_associative_and_reduces_uncertainty() -> None:
    alpha = dirichlets(20, 3, 4)
    everything = torch.ones(20, 3, dtype=torch.bool)
    fused = evidence.fuse_dirichlet(alpha, everything)
    torch.testing.assert_close(evidence.fuse_dirichlet(alpha[:, [2, 0, 1]], everything), fused)
    a, b, c = (evidence.opinion(alpha[:, s]) for s in range(3))
    left = evidence.dempster(evidence.dempster(a, b), c)
    right = evidence.dempster(a, evidence.dempster(b, c))
    torch.testing.assert_close(left.belief, right.belief)
    torch.testing.assert_close(left.belief.sum(1) + left.uncertainty, torch.ones(20, dtype=torch.float64))
    assert (left.uncertainty <= torch.stack([a.uncertainty, b.uncertainty, c.uncertainty]).amin(0)).all()
    torch.testing.assert_close(evidence.opinion(fused).uncertainty, left.uncertainty)


def test_a_vacuous_or_absent_source_returns_the_other() -> None:
    alpha = dirichlets(5, 2, 3)
    vacuous = torch.stack([alpha[:, 0], torch.ones(5, 3, dtype=torch.float64)], 1)
    torch.testing.assert_close(evidence.fuse_dirichlet(vacuous, WHOLE.expand(5, 2)), alpha[:, 0])
    present = torch.tensor([[True, False]]).expand(5, 2)
    torch.testing.assert_close(evidence.fuse_dirichlet(alpha, present), alpha[:, 0])


def test_the_dirichlet_loss_is_expected_cross_entropy_plus_torchs_divergence() -> None:
    alpha = torch.tensor([2.5, 1.2, 4.0], dtype=torch.float64)
    one_hot = functional.one_hot(torch.tensor(1), 3).double()
    marginal = stats.beta(1.2, 6.5)  # of p_1 under the Dirichlet
    expected, _ = integrate.quad(lambda p: -np.log(p) * marginal.pdf(p), 0, 1)
    assert evidential.dirichlet_loss(alpha, one_hot, kl=0.0).item() == pytest.approx(expected, rel=1e-6)
    wrong = torch.distributions.Dirichlet(torch.tensor([2.5, 1.0, 4.0], dtype=torch.float64))
    flat = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64))
    expected += 0.7 * torch.distributions.kl_divergence(wrong, flat).item()
    assert evidential.dirichlet_loss(alpha, one_hot, kl=0.7).item() == pytest.approx(expected, rel=1e-6)


def test_confidence_ranking_by_hand() -> None:
    def two(p: float) -> list[float]:
        return [float(np.log(p)), float(np.log(1 - p))]

    sources = torch.tensor([[two(0.9), two(0.7), two(0.2)]])
    fused = torch.tensor([two(0.6)])
    everything = torch.ones(1, 3, dtype=torch.bool)
    ranking = evidential.confidence_ranking
    assert ranking(sources, fused, torch.tensor([0]), everything).item() == pytest.approx(0.3 + 0.1, abs=1e-6)
    assert ranking(sources, fused, torch.tensor([1]), everything).item() == pytest.approx(0.2, abs=1e-6)
    absent = torch.tensor([[False, True, True]])
    assert ranking(sources, fused, torch.tensor([0]), absent).item() == pytest.approx(0.1, abs=1e-6)
    assert ranking(sources, torch.tensor([two(0.95)]), torch.tensor([0]), everything).item() == 0.0


def by_hand(nig: NIG, present: Tensor, label: int, classes: int) -> float:
    """Loss of one sample from its definition, with scipy's t."""
    y = np.eye(classes)[label]
    gamma, v, alpha, beta = (part.double().numpy() for part in nig)

    def entropy(logits: np.ndarray) -> float:
        return float(np.log(np.exp(logits).sum()) - logits[label])

    total, here = 0.0, [s for s in range(len(present)) if present[s]]
    scale2, nu = beta * (1 + v) / (v * alpha), 2 * alpha
    for s in here:
        likelihood = -stats.t.logpdf(y, df=nu[s], loc=gamma[s], scale=np.sqrt(scale2[s]))
        total += float(np.mean(likelihood + 0.01 * entropy(gamma[s]) * (v[s] + alpha[s] + 1 / beta[s])))
    votes = [sum(int(nu[s, c] == min(nu[r, c] for r in here)) for c in range(classes)) for s in here]
    best = [s for s, vote in zip(here, votes, strict=True) if vote == max(votes)]
    a = min(best, key=lambda s: nu[s].min())
    location = sum(nu[s] * gamma[s] for s in here) / sum(nu[s] for s in here)
    variance = np.mean([scale2[s] * nu[s] / (nu[s] - 2) for s in here], axis=0)
    scale = np.sqrt(variance * (nu[a] - 2) / nu[a])
    fused = -stats.t.logpdf(y, df=nu[a], loc=location, scale=scale)
    return total + float(np.mean(fused)) + 0.5 * entropy(location)


def test_the_loss_of_a_sample_is_its_definition() -> None:
    nig = random_nig(12, 3, 3, seed=4)
    labels = torch.arange(12) % 3
    present = torch.rand(12, 3, generator=torch.Generator().manual_seed(1)) < 0.7
    present[:, 1] = True
    found = evidential.nig_loss(nig, present, labels, EvidentialOptions())
    for row in range(12):
        single = NIG(*(part[row] for part in nig))
        assert found[row].item() == pytest.approx(by_hand(single, present[row], int(labels[row]), 3), rel=1e-4), row


TASKS = (
    TaskSpec("grade", "classes", 3),
    TaskSpec("cup", "mask", 1),
    TaskSpec("side", "classes", 2),
)


def case(dirichlet: bool = False) -> tuple[SimpleNamespace, SimpleNamespace, Tensor]:
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    shown = {}
    for name, classes in (("grade", 3), ("side", 2)):
        value = dirichlets(4, 2, classes).float() if dirichlet else torch.stack(list(random_nig(4, 2, classes)), 2)
        shown[f"evidence.{name}"] = value.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, False], [False, True, False], [True, True, False]])
    labels = {"grade": torch.tensor([0, 2, -1, 1]), "cup": torch.zeros(4, 1, 2, 2), "side": torch.full((4,), -1)}
    output = SimpleNamespace(logits={}, extras={**shown, "sources": present})
    return output, SimpleNamespace(labels=labels, label_mask=mask, valid=torch.ones(4, dtype=torch.bool)), mask


def unused(*_: Any) -> Any:
    raise AssertionError("the configured loss is replaced")


@pytest.mark.parametrize("fusion", ["nig", "dirichlet"])
@pytest.mark.parametrize("plus", [False, True])
def test_labels_that_do_not_count_and_absent_sources_have_no_gradient(fusion: str, plus: bool) -> None:
    output, batch, mask = case(fusion == "dirichlet")
    loss = EvidentialLoss(TASKS, {"fusion": fusion, "plus": plus, "hidden": 8})
    parts = loss.parts(output, batch, mask, unused)
    assert set(parts) == {"grade", "side"}  # masks keep the configured loss
    assert [parts[name].count.item() for name in ("grade", "side")] == [3.0, 0.0]
    assert parts["side"].sum.item() == 0.0
    (parts["grade"].sum + parts["side"].sum).backward()
    reached = output.extras["evidence.grade"].grad.flatten(2).abs().amax(2) > 0
    assert torch.equal(reached, output.extras["sources"] & torch.tensor([[True], [True], [False], [True]]))
    assert output.extras["evidence.side"].grad.abs().max() == 0


def test_the_options_add_what_they_name() -> None:
    output, batch, mask = case()
    plain = EvidentialLoss(TASKS, {}).parts(output, batch, mask, unused)["grade"].sum
    plus = EvidentialLoss(TASKS, {"plus": True, "ranking": 2.0}).parts(output, batch, mask, unused)["grade"].sum
    nig = NIG(*output.extras["evidence.grade"].unbind(2))
    present, labels = output.extras["sources"], torch.tensor([0, 2, 0, 1])
    fused = evidence.fuse_student_t(evidence.student_t(nig), present).location
    ranking = evidential.confidence_ranking(nig.gamma, fused, labels, present)[[0, 1, 3]].sum()
    torch.testing.assert_close(plus - plain, 2.0 * ranking, rtol=1e-4, atol=1e-5)
    squared = EvidentialLoss(TASKS, {"squared_scale": True}).parts(output, batch, mask, unused)["grade"].sum
    assert abs((squared - plain).item()) > 1e-3


def test_the_ranking_weighs_as_in_the_original_batch() -> None:
    """10 times the sum over a batch of 16, next to means: 160 times the mean."""
    nig = random_nig(16, 2, 3, seed=2)
    labels, present = torch.arange(16) % 3, torch.ones(16, 2, dtype=torch.bool)
    fused = evidence.fuse_student_t(evidence.student_t(nig), present).location
    summed = evidential.confidence_ranking(nig.gamma, fused, labels, present).sum()
    assert summed > 0
    plain = evidential.nig_loss(nig, present, labels, EvidentialOptions()).mean()
    plus = evidential.nig_loss(nig, present, labels, EvidentialOptions(plus=True)).mean()
    torch.testing.assert_close(plus - plain, 10 * summed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.0), (25, 0.5), (50, 1.0), (80, 1.0)])
def test_the_dirichlet_divergence_rises_over_fifty_epochs(epoch: int, weight: float) -> None:
    output, batch, mask = case(dirichlet=True)
    loss = EvidentialLoss(TASKS, {"fusion": "dirichlet"})
    loss.epoch = epoch
    found = loss.parts(output, batch, mask, unused)["grade"].sum
    rows = evidential.dirichlet_fusion_loss(
        output.extras["evidence.grade"],
        output.extras["sources"],
        torch.tensor([0, 2, 0, 1]),
        EvidentialOptions(fusion="dirichlet", kl=weight),
    )
    torch.testing.assert_close(found, rows[[0, 1, 3]].sum())
