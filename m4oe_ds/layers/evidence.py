"""Evidence of several sources and its fusion: Normal-Inverse-Gamma and mixtures of Student's t, Dirichlet and Dempster.

EyeMoSt (Zou et al., MICCAI 2023); trusted multi-view classification (Han et al., ICLR 2021). Adapted: any number of
sources, of which some may be absent. Losses: :mod:`m4oe_ds.losses.evidential`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CEILING = 20.0  # of v and alpha, hence nu <= 40
BETA_FLOOR = 0.2


class NIG(NamedTuple):
    """Normal-Inverse-Gamma parameters, any equal shapes: location, evidence of the location, shape and scale."""

    gamma: Tensor
    v: Tensor
    alpha: Tensor
    beta: Tensor


class StudentT(NamedTuple):
    """Student's t, any equal shapes: location u, squared scale, degrees of freedom nu."""

    location: Tensor
    scale2: Tensor
    nu: Tensor


class Opinion(NamedTuple):
    """Subjective opinion: belief of every class ``[..., K]`` and uncertainty ``[...]``; they sum to 1."""

    belief: Tensor
    uncertainty: Tensor


@dataclass(frozen=True)
class EvidentialOptions:
    """Options of the evidential loss.

    Attributes:
        fusion: ``nig`` or ``dirichlet``.
        plus: add the confidence ranking of EyeMoSt+.
        squared_scale: put the squared scale where the t likelihood has the scale, as the released code does.
        source_entropy: weight of the cross-entropy of every source.
        fused_entropy: weight of the cross-entropy of the fused answer.
        ranking: weight of the confidence ranking per sample: the original's 10 for the sum over its batch of 16, where
            every other term is a mean.
        kl: weight of the KL divergence of the Dirichlet loss.
        kl_epochs: epochs in which it rises from 0 to that.
    """

    fusion: str = "nig"
    plus: bool = False
    squared_scale: bool = False
    source_entropy: float = 0.01
    fused_entropy: float = 0.5
    ranking: float = 160.0
    kl: float = 1.0
    kl_epochs: int = 50


def nig_from_logits(raw: Tensor) -> NIG:
    """Free outputs ``[..., 4, C]`` to evidence: v = min(softplus, 20), alpha = min(1 + softplus, 20), beta = softplus +
    0.2.
    """
    gamma, v, alpha, beta = raw.float().unbind(-2)
    return NIG(
        gamma,
        functional.softplus(v).clamp_max(CEILING),
        # the smallest step above 1 that float32 holds well: nu stays above 2, its variance finite
        (1.0 + functional.softplus(alpha)).clamp(1.0 + 1e-4, CEILING),
        functional.softplus(beta) + BETA_FLOOR,
    )


def student_t(nig: NIG) -> StudentT:
    """Predictive distribution: nu = 2 alpha, u = gamma, sigma^2 = beta (1 + v) / (v alpha)."""
    v = nig.v.clamp_min(torch.finfo(torch.float32).eps)
    return StudentT(nig.gamma, nig.beta * (1.0 + v) / (v * nig.alpha), 2.0 * nig.alpha)


def reference_source(nu: Tensor, present: Tensor) -> Tensor:
    """The source with the smallest nu in most classes; of equals, the one that holds the smallest nu.

    Args:
        nu: ``[B, S, C]``.
        present: ``[B, S]`` bool.

    Returns:
        ``[B]`` index; 0 where no source is present.
    """
    nu = nu.masked_fill(~present[..., None], math.inf)
    votes = functional.one_hot(nu.argmin(1), nu.shape[1]).sum(1)  # [B, S]
    smallest = nu.amin(2).masked_fill(votes < votes.amax(1, keepdim=True), math.inf)
    return smallest.argmin(1)


def fuse_student_t(t: StudentT, present: Tensor) -> StudentT:
    """Mixture of t distributions: nu of the reference, nu-weighted location, mean of the variance-matched squared
    scales.

    A squared scale is matched so that the variance sigma^2 nu / (nu - 2) is the same under the reference's nu.

    Args:
        t: ``[B, S, C]`` each, nu > 2.
        present: ``[B, S]`` bool.

    Returns:
        ``[B, C]`` each; the standard values (0, 1, 4) where no source is present.
    """
    keep = present[..., None]
    nu = torch.where(keep, t.nu, 4.0)
    scale2 = torch.where(keep, t.scale2, 1.0)
    location = torch.where(keep, t.location, 0.0)
    weight = keep.to(nu.dtype)
    chosen = reference_source(nu.detach(), present)
    reference = nu.gather(1, chosen[:, None, None].expand(-1, 1, nu.shape[2]))  # [B, 1, C]
    matched = scale2 * (nu * (reference - 2.0)) / ((nu - 2.0) * reference)
    total = (nu * weight).sum(1)
    fused_scale2 = (matched * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    return StudentT(
        (nu * weight * location).sum(1) / torch.where(total > 0, total, 1.0),
        torch.where(present.any(1, keepdim=True), fused_scale2, 1.0),
        reference.squeeze(1),
    )


def t_variance(t: StudentT) -> Tensor:
    """Epistemic and aleatoric uncertainty sigma^2 (1 + 2 / (nu - 2)), the variance of the distribution."""
    return t.scale2 * (1.0 + 2.0 / (t.nu - 2.0))


def opinion(alpha: Tensor) -> Opinion:
    """Dirichlet parameters ``[..., K]`` to belief (alpha - 1) / S and uncertainty K / S."""
    strength = alpha.sum(-1)
    return Opinion((alpha - 1.0) / strength[..., None], alpha.shape[-1] / strength)


def dempster(first: Opinion, second: Opinion) -> Opinion:
    """Dempster's combination of two opinions over the same classes."""
    agreement = first.belief * second.belief
    conflict = first.belief.sum(-1) * second.belief.sum(-1) - agreement.sum(-1)
    rest = (1.0 - conflict).clamp_min(torch.finfo(torch.float32).eps)
    belief = agreement + first.belief * second.uncertainty[..., None] + second.belief * first.uncertainty[..., None]
    return Opinion(belief / rest[..., None], first.uncertainty * second.uncertainty / rest)


def fuse_dirichlet(alpha: Tensor, present: Tensor) -> Tensor:
    """Combination of the sources' Dirichlet parameters ``[B, S, K]``, ``present [B, S]``, to ``[B, K]``.

    An absent source is vacuous (all ones), which Dempster's rule ignores.
    """
    alpha = torch.where(present[..., None], alpha, 1.0)
    sources = [opinion(alpha[:, s]) for s in range(alpha.shape[1])]
    fused = sources[0]
    for source in sources[1:]:
        fused = dempster(fused, source)
    strength = alpha.shape[-1] / fused.uncertainty.clamp_min(torch.finfo(torch.float32).tiny)
    return fused.belief * strength[..., None] + 1.0
