"""What a sample's answer owes to each modality, measured without its routing: ablation, gradient saliency, attention
rollout.

Every function is about a model in evaluation mode, whose samples do not influence each other, so one backward of a sum
over the batch gives every sample's own gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.compat import import_torchvision
from m4oe_ds.data.batch import Batch
from m4oe_ds.models.embedders import Embedders
from m4oe_ds.models.interface import ModelOutput, ModelSpec, MultiModalModel
from m4oe_ds.models.towers import ModalityTowers

import_torchvision()
from timm.layers import Attention  # type: ignore[attr-defined]  # noqa: E402  (no __all__; operators come first)


def confidence(logits: Tensor, kind: str = "classes") -> Tensor:
    """The answer of each sample as one number ``[B]``, by the kind of the task.

    Classes: log-odds of the predicted one, which does not change when a constant is added to all logits, and does not
    saturate like a probability. A number: its standardised value. Survival: log-odds of the event within the longest
    horizon. Masks: mean magnitude of the logits.
    """
    if logits.ndim > 2:
        return logits.abs().flatten(1).mean(1)
    if kind == "number":
        return logits[:, 0]
    if kind == "survival":
        return _log_odds(logits)
    predicted = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, predicted, -torch.inf).logsumexp(1)
    return logits.gather(1, predicted).squeeze(1) - others


def _log_odds(logits: Tensor) -> Tensor:
    """Log-odds ``[B]`` of the event within the longest horizon from the logits of the hazards ``[B, H]``."""
    total = functional.softplus(logits).sum(1)  # -log P(no event)
    return total + torch.log(-torch.expm1(-total))


def saliency(views: Mapping[str, Tensor], output: ModelOutput, spec: ModelSpec) -> Tensor:
    """Input-times-gradient share of each modality ``[B, p, m]``: sum of |x dy/dx| over its pixels, rows sum to 1.

    y is :func:`confidence`; x is standardised, so 0 is the mean grey level, and of a table that a value is not known.
    NaN where no pixel matters.

    Args:
        views: ``{modality: [B, ...]}`` that require a gradient.
        output: the model's output for these views; its graph is kept afterwards.
    """
    inputs = [views[name] for name in spec.modalities]
    rows = []
    for task in spec.tasks:
        score = confidence(output.logits[task.name].float(), task.kind).sum()
        gradients = torch.autograd.grad(score, inputs, retain_graph=True, allow_unused=True)
        rows.append(
            torch.stack(
                [
                    x.new_zeros(len(x)) if g is None else (x.detach() * g).abs().flatten(1).sum(1)
                    for x, g in zip(inputs, gradients, strict=True)
                ],
                1,
            )
        )
    return shares(torch.stack(rows, 1))


def shares(values: Tensor) -> Tensor:
    """Non-negative values divided by their sum over the last axis; NaN where the sum is 0."""
    return values / values.sum(-1, keepdim=True)


def without(batch: Batch, modality: str) -> Batch:
    """The batch as if no sample had the modality."""
    gone = torch.zeros_like(batch.present)
    gone[:, batch.modalities.index(modality)] = True
    return deprived(batch, gone)


def deprived(batch: Batch, gone: Tensor) -> Batch:
    """The batch as if its samples did not have some modalities, nor their other side.

    Args:
        batch: the samples.
        gone: ``[B, m]`` bool, what is taken away.
    """

    def blank(view: Tensor, column: int) -> Tensor:
        return view.masked_fill(gone[:, column].view(-1, *[1] * (view.ndim - 1)), 0)

    views = {name: blank(batch.views[name], i) for i, name in enumerate(batch.modalities)}
    extras = dict(batch.extras)
    for i, name in enumerate(batch.modalities):
        if f"contralateral.{name}" in extras:
            extras[f"contralateral.{name}"] = blank(extras[f"contralateral.{name}"], i)
    if "contralateral_present" in extras:
        extras["contralateral_present"] = extras["contralateral_present"] & ~gone
    return replace(batch, views=views, present=batch.present & ~gone, extras=extras)


@dataclass(frozen=True)
class Ablation:
    """Effect of leaving out one modality at a time.

    Attributes:
        divergence: ``[B, p, m]`` KL(answer with all || answer without i) in nats (for masks: mean over the pixels; for
            a number that of normal distributions of standard deviation 1 on the standardised scale; for survival that
            of the event within the longest horizon); NaN where the sample lacks i or has nothing else.
        loss_increase: ``[B, p, m]`` cross-entropy without i minus with all; NaN also where the label is missing, and
            for tasks without classes.
    """

    divergence: Tensor
    loss_increase: Tensor


@torch.no_grad()
def ablation(model: MultiModalModel, batch: Batch, output: ModelOutput, spec: ModelSpec) -> Ablation:
    """Leaves out each modality in turn: m forwards.

    Args:
        output: output of ``model`` for ``batch``.
    """
    shape = (len(batch), len(spec.tasks), len(spec.modalities))
    divergence = torch.full(shape, torch.nan, device=batch.present.device)
    increase = divergence.clone()
    for i, name in enumerate(spec.modalities):
        usable = batch.present[:, i] & (batch.present.sum(1) > 1)  # [B]
        if not usable.any():
            continue
        reduced = model(without(batch, name)).logits
        for k, task in enumerate(spec.tasks):
            full, less = output.logits[task.name].detach().float(), reduced[task.name].float()
            if task.kind == "number":
                divergence[usable, k, i] = ((full - less)[:, 0].square() / 2)[usable]
                continue
            if not task.coded:
                if task.kind == "survival":
                    full, less = _log_odds(full)[:, None], _log_odds(less)[:, None]
                p = full.sigmoid()
                value = p * (functional.logsigmoid(full) - functional.logsigmoid(less))
                value = value + (1 - p) * (functional.logsigmoid(-full) - functional.logsigmoid(-less))
                divergence[usable, k, i] = value.flatten(1).mean(1)[usable]
                continue
            log_p, log_q = full.log_softmax(1), less.log_softmax(1)
            divergence[usable, k, i] = (log_p.exp() * (log_p - log_q)).sum(1).clamp_min(0)[usable]
            labels = batch.labels[task.name]
            known = usable & batch.label_mask[:, k]
            index = labels.clamp_min(0)[:, None]
            increase[known, k, i] = (log_p - log_q).gather(1, index).squeeze(1)[known]
    return Ablation(divergence, increase)


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the attention probabilities ``[rows, N, N]`` (mean over the heads) of every forward within, in call
    order.

    They are computed a second time from the inputs, because the fused kernel does not give them. Embedders and MSoE
    towers are left out: they look at one modality, and by its number of tokens alone a table could be taken for more.
    """
    found: list[Tensor] = []
    apart = [part for part in model.modules() if isinstance(part, (Embedders, ModalityTowers))]
    single = {id(module) for part in apart for module in part.modules()}

    @torch.no_grad()
    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer: Any = module
        x = args[0]
        mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
        rows, length, _ = x.shape
        qkv = layer.qkv(x).reshape(rows, length, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
        q, k = layer.q_norm(qkv[0]), layer.k_norm(qkv[1])
        scores = (q * layer.scale) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        found.append(scores.float().softmax(-1).mean(1))

    handles = [
        module.register_forward_pre_hook(look, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, Attention) and id(module) not in single
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rollout(attention: Sequence[Tensor], present: Tensor, lengths: Sequence[int], spec: ModelSpec) -> Tensor | None:
    """Attention-rollout share of each modality ``[B, p, m]`` (``[B, 1, m]`` if it is the same for all tasks), or None.

    Abnar and Zuidema (2020): R = product over the layers of (A + 1) / 2, read where the answer is read. Layers over the
    tokens of all modalities give a share s_i, the mean over the tokens taking part; layers over [task token; one token
    per modality], applied to each task, give w_0 and w_i of the token that the head reads. The share is w_i + w_0 s_i;
    without joint layers w_i / (1 - w_0). Attention within one modality, as in a vision-transformer embedder or an
    MSoE tower, has rows that sum to 1 over that modality and so leaves these shares as they are.

    Args:
        attention: probabilities in call order, of :func:`recorded_attention`.
        present: ``[B, m]``.
        lengths: tokens of each modality.
    """
    batch, count = present.shape
    tasks = sum(not task.dense for task in spec.tasks)
    joint = [a for a in attention if a.shape[0] == batch and a.shape[1] == sum(lengths)]
    per_task = [a for a in attention if a.shape[0] == batch * tasks and a.shape[1] == count + 1]
    share: Tensor | None = None
    if joint:
        of_token = torch.repeat_interleave(torch.arange(count), torch.tensor(list(lengths))).to(present.device)
        takes_part = present[:, of_token].float()  # [B, M]
        rows = torch.einsum("bt,btu->bu", takes_part / takes_part.sum(1, keepdim=True).clamp_min(1), _rolled(joint))
        share = rows.new_zeros(batch, count).index_add(1, of_token, rows)[:, None]  # [B, 1, m]
    if per_task:
        first = _rolled(per_task)[:, 0].unflatten(0, (batch, tasks))  # [B, p, m+1]
        own, others = first[..., :1], first[..., 1:]
        found = others / (1 - own) if share is None else others + own * share
        return _all_tasks(found, spec)
    return share


def _rolled(attention: Sequence[Tensor]) -> Tensor:
    """Product of (A + 1) / 2, the last layer leftmost."""
    identity = torch.eye(attention[0].shape[1], device=attention[0].device)
    total = (attention[0] + identity) / 2
    for layer in attention[1:]:
        total = (layer + identity) / 2 @ total
    return total


def _all_tasks(share: Tensor, spec: ModelSpec) -> Tensor:
    """Rows of the tasks without masks at their places; NaN for the others."""
    found = share.new_full((len(share), len(spec.tasks), share.shape[2]), torch.nan)
    columns = [k for k, task in enumerate(spec.tasks) if not task.dense]
    found[:, columns] = share
    return found
