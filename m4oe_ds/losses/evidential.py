"""Evidential losses: Normal-Inverse-Gamma evidence per class under a mixture of Student's t, Dirichlet evidence.

EyeMoSt (Zou et al., MICCAI 2023) and EyeMoSt+ (Zou et al., Medical Image Analysis 2024), with the Dirichlet evidence of
trusted multi-view classification (Han et al., ICLR 2021) as the other fusion. Sources are modalities, and the features
of an attached MToE where there is one. Everything is float32. Adapted: more than two sources; sums run over the sources
that are present; the confidence ranking is a mean over the samples, weighted by the original's weight times its batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.layers.evidence import (
    NIG,
    EvidentialOptions,
    StudentT,
    fuse_dirichlet,
    fuse_student_t,
    student_t,
)
from m4oe_ds.layers.extras import EVIDENCE, SOURCES
from m4oe_ds.losses.inputs import Labels, Output
from m4oe_ds.losses.model_loss import Generic, ModelLoss
from m4oe_ds.losses.tasks import LossParts


def nig_negative_log_likelihood(nig: NIG, y: Tensor) -> Tensor:
    """Element-wise 1/2 log(pi/v) - alpha log W + (alpha + 1/2) log(v (y - gamma)^2 + W) + log G(alpha) - log G(alpha +
    1/2).

    W = 2 beta (1 + v), G the gamma function; equal to the t likelihood of :func:`student_t`.
    """
    v = nig.v.clamp_min(torch.finfo(torch.float32).eps)
    omega = 2.0 * nig.beta * (1.0 + v)
    return (
        0.5 * torch.log(math.pi / v)
        - nig.alpha * torch.log(omega)
        + (nig.alpha + 0.5) * torch.log(v * (y - nig.gamma).square() + omega)
        + torch.lgamma(nig.alpha)
        - torch.lgamma(nig.alpha + 0.5)
    )


def t_negative_log_likelihood(t: StudentT, y: Tensor, squared_scale: bool = False) -> Tensor:
    """Element-wise log s + 1/2 log(pi nu) + (nu+1)/2 log(1 + (y-u)^2 / (nu s^2)) + log G(nu/2) - log G((nu+1)/2).

    Args:
        t: the distribution.
        y: target.
        squared_scale: s = sigma^2 as in the released code instead of s = sigma.
    """
    s2 = t.scale2.square() if squared_scale else t.scale2
    return (
        0.5 * torch.log(s2)
        + 0.5 * torch.log(math.pi * t.nu)
        + 0.5 * (t.nu + 1.0) * torch.log1p((y - t.location).square() / (t.nu * s2))
        + torch.lgamma(0.5 * t.nu)
        - torch.lgamma(0.5 * (t.nu + 1.0))
    )


def dirichlet_loss(alpha: Tensor, one_hot: Tensor, kl: float = 1.0) -> Tensor:
    """sum_c y_c (psi(S) - psi(alpha_c)) + kl * KL(Dir(y + (1 - y) alpha) || Dir(1)): ``[..., K]`` to ``[...]``."""
    fit = (one_hot * (torch.digamma(alpha.sum(-1, keepdim=True)) - torch.digamma(alpha))).sum(-1)
    wrong = one_hot + (1.0 - one_hot) * alpha
    strength = wrong.sum(-1)
    spread = (
        torch.lgamma(strength)
        - torch.lgamma(wrong).sum(-1)
        - math.lgamma(alpha.shape[-1])
        + ((wrong - 1.0) * (torch.digamma(wrong) - torch.digamma(strength)[..., None])).sum(-1)
    )
    return fit + kl * spread


def confidence_ranking(sources: Tensor, fused: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """sum_q ReLU(conf_q - conf_fused) over the present sources that are right, conf the largest soft-max value.

    Args:
        sources: logits ``[B, S, C]``.
        fused: ``[B, C]``.
        labels: ``[B]``.
        present: ``[B, S]`` bool.

    Returns:
        ``[B]``.
    """
    confidence, guess = sources.softmax(-1).max(-1)  # [B, S]
    excess = functional.relu(confidence - fused.softmax(-1).amax(-1, keepdim=True))
    counts = present & (guess == labels[:, None])
    return torch.where(counts, excess, 0.0).sum(1)


def nig_loss(nig: NIG, present: Tensor, labels: Tensor, options: EvidentialOptions) -> Tensor:
    """Loss per sample ``[B]``: every present source's, the fusion's, and the ranking of EyeMoSt+.

    Source: mean_c [NLL + 0.01 CE(gamma) (v + alpha + 1/beta)]; fusion: mean_c [t-NLL + 0.5 CE(u)].

    Args:
        nig: ``[B, S, C]`` each.
        present: ``[B, S]`` bool.
        labels: ``[B]``, classes.
    """
    classes = nig.gamma.shape[2]
    one_hot = functional.one_hot(labels, classes).to(nig.gamma.dtype)
    t = student_t(nig)
    fused = fuse_student_t(t, present)
    every = labels[:, None].expand(-1, nig.gamma.shape[1])
    entropy = functional.cross_entropy(nig.gamma.transpose(1, 2), every, reduction="none")  # [B, S]
    regulariser = entropy[..., None] * (nig.v + nig.alpha + 1.0 / nig.beta)
    own = (nig_negative_log_likelihood(nig, one_hot[:, None]) + options.source_entropy * regulariser).mean(2)
    loss = torch.where(present, own, 0.0).sum(1)
    joint = t_negative_log_likelihood(fused, one_hot, options.squared_scale).mean(1)
    loss = loss + joint + options.fused_entropy * functional.cross_entropy(fused.location, labels, reduction="none")
    if options.plus:
        loss = loss + options.ranking * confidence_ranking(nig.gamma, fused.location, labels, present)
    return loss


def dirichlet_fusion_loss(alpha: Tensor, present: Tensor, labels: Tensor, options: EvidentialOptions) -> Tensor:
    """Loss per sample ``[B]`` of the present sources' Dirichlet parameters ``[B, S, K]`` and of their fusion."""
    one_hot = functional.one_hot(labels, alpha.shape[-1]).to(alpha.dtype)
    fused = fuse_dirichlet(alpha, present)
    own = dirichlet_loss(alpha, one_hot[:, None].expand_as(alpha), options.kl)
    loss = torch.where(present, own, 0.0).sum(1) + dirichlet_loss(fused, one_hot, options.kl)
    if options.plus:
        loss = loss + options.ranking * confidence_ranking(alpha.log(), fused.log(), labels, present)
    return loss


class EvidentialLoss(ModelLoss):
    """Evidential loss of every classification task; masks keep their configured loss.

    Reads ``extras["evidence.<task>"]``, ``[B, S, 4, C]`` NIG parameters or ``[B, S, C]`` Dirichlet parameters, and
    ``extras["sources"]``, ``[B, S]`` which of them are present. Class weights do not enter: evidence is not a
    cross-entropy. Options: :class:`EvidentialOptions`; other names belong to the model.
    """

    def __init__(self, tasks: Sequence[TaskSpec], options: Mapping[str, Any]) -> None:
        super().__init__(tasks, options)
        known = {field.name for field in dataclasses.fields(EvidentialOptions)}
        self.evidence = EvidentialOptions(**{name: value for name, value in options.items() if name in known})

    def parts(self, output: Output, batch: Labels, mask: Tensor, generic: Generic) -> dict[str, LossParts]:
        """See :class:`m4oe_ds.losses.model_loss.ModelLoss`."""
        found = {}
        for k, task in enumerate(self.tasks):
            if not task.coded:
                continue
            keep = mask[:, k]
            # a row without label takes class 0: its loss is finite and then left out
            labels = torch.where(keep, batch.labels[task.name], 0)
            evidence, present = output.extras[EVIDENCE.of(task.name)].float(), output.extras[SOURCES]
            if self.evidence.fusion == "dirichlet":
                kl = self.evidence.kl * min(1.0, self.epoch / max(self.evidence.kl_epochs, 1))
                rows = dirichlet_fusion_loss(evidence, present, labels, dataclasses.replace(self.evidence, kl=kl))
            else:
                rows = nig_loss(NIG(*evidence.unbind(2)), present, labels, self.evidence)
            found[task.name] = LossParts(torch.where(keep, rows, 0.0).sum(), keep.sum().to(rows.dtype))
        return found
