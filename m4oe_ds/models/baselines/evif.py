"""EVIF: private and shared codes per modality, task queries that exchange what they found, two information bounds.

Geng et al., "Event-based visible and infrared fusion via multi-task collaboration", CVPR 2024. Fidelity: reconstructed
from the abstract; no code is public and the network here is our own: classification and masks instead of images from
events and infrared. The private codes of two modalities should share little information (vCLUB), the fused code and
each shared code much (InfoNCE).

Optimised in two levels that alternate (:meth:`Evif.inner_level`): in every forward that is trained the estimators
q_theta of the upper bound first take one step of Adam along their likelihood on the codes of all ranks, everything else
frozen; the outer step then minimises task losses and bounds with theta frozen. theta is not a parameter of the model,
so the outer optimizer cannot touch it, nor ZeRO partition it; its values and moments are buffers and part of every
checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.contrastive import info_nce, negative_log_likelihood, vclub
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import CODES
from m4oe_ds.layers.reduction import Reduce
from m4oe_ds.models.baselines.base import ComparedModel, note_maps, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens
from m4oe_ds.models.options import EvifOptions as Options


class Gaussian(NamedTuple):
    """Mean and log variance ``[P, B, d]`` of q(y|x), for every pair."""

    mean: Tensor
    log_variance: Tensor


class Estimators(nn.Module):
    """q_theta(y|x) = N(mu(x), diag exp s(x)) of P pairs: one hidden layer, tanh on s; and the inner optimizer of theta.

    Everything is float32 whatever the model is cast to: a step of 1e-3 would vanish in bf16.

    Args:
        pairs: P.
        dim: width of x and y.
        hidden: width of the hidden layer.
    """

    BETAS, EPSILON = (0.9, 0.999), 1e-8
    theta: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, pairs: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.shapes = ((hidden, dim), (hidden,), (2 * dim, hidden), (2 * dim,))
        rows = []
        for _ in range(pairs):
            layers = (nn.Linear(dim, hidden), nn.Linear(hidden, 2 * dim))
            rows.append(torch.cat([p.detach().flatten() for layer in layers for p in (layer.weight, layer.bias)]))
        self.register_buffer("theta", torch.stack(rows))  # [P, N]
        self.register_buffer("mean", torch.zeros_like(self.theta))
        self.register_buffer("square", torch.zeros_like(self.theta))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def forward(self, x: Tensor) -> Gaussian:
        """q of ``x [P, B, d]`` with theta constant."""
        return self._gaussian(x, self.theta.clone())  # the next step changes theta in place

    def fit(self, x: Tensor, y: Tensor, valid: Tensor, lr: float, reduce: Reduce) -> None:
        """One step of Adam on -log q(y|x), a mean over the valid rows of all ranks; x and y are constants.

        Args:
            x: ``[P, B, d]``.
            y: ``[P, B, d]``.
            valid: ``[P, B]`` bool.
            lr: learning rate.
            reduce: sum over the ranks.

        Collectives: one all-reduce of P * (N + 1) numbers if ``reduce`` has one. A gradient that is not finite (an
            overflow, which the outer level skips or stops at) counts as zero.
        """
        with torch.enable_grad():
            theta = self.theta.clone().requires_grad_()
            q = self._gaussian(x.detach(), theta)
            pairs = zip(y.detach(), q.mean, q.log_variance, valid, strict=True)
            # sums, so that the mean can be taken over the rows of all ranks
            sums = [negative_log_likelihood(*pair) * pair[3].sum() for pair in pairs]
            (gradient,) = torch.autograd.grad(torch.stack(sums).sum(), theta)
        total = reduce(torch.cat([gradient, valid.sum(1, keepdim=True).to(gradient.dtype)], 1))
        gradient = total[:, :-1] / total[:, -1:].clamp_min(1.0)
        gradient = torch.where(gradient.isfinite(), gradient, 0.0)
        first, second = self.BETAS
        self.steps += 1
        self.mean.lerp_(gradient, 1 - first)
        self.square.lerp_(gradient.square(), 1 - second)
        count = self.steps.to(gradient.dtype)
        scale = (self.square / (1 - second**count)).sqrt() + self.EPSILON
        self.theta -= lr * (self.mean / (1 - first**count)) / scale

    def _gaussian(self, x: Tensor, theta: Tensor) -> Gaussian:
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        parts = zip(theta.split(sizes, 1), self.shapes, strict=True)
        w1, b1, w2, b2 = (part.unflatten(1, shape) for part, shape in parts)
        with torch.autocast(x.device.type, enabled=False):
            hidden = functional.relu(torch.baddbmm(b1[:, None], x.float(), w1.transpose(1, 2)))
            mean, spread = torch.baddbmm(b2[:, None], hidden, w2.transpose(1, 2)).chunk(2, -1)
        return Gaussian(mean, spread.tanh())


class CrossTask(nn.Module):
    """h_k + sum over k' != k of sigmoid(w_kk' . [h_k; h_k']) * V h_k'.

    Args:
        tasks: p > 1.
        dim: width of h_k.
    """

    def __init__(self, tasks: int, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(tasks, tasks - 1, 2 * dim) / (2 * dim) ** 0.5)
        self.value = nn.Linear(dim, dim, bias=False)
        self.others = [[j for j in range(tasks) if j != k] for k in range(tasks)]

    def forward(self, h: Tensor) -> Tensor:
        """``[B, p, d] -> [B, p, d]``."""
        other = h[:, self.others]  # [B, p, p-1, d]
        pair = torch.cat([h[:, :, None].expand_as(other), other], -1)
        gate = (pair * self.gate).sum(-1, keepdim=True).sigmoid()
        return h + (gate * self.value(h)[:, self.others]).sum(2)


class Collaboration(nn.Module):
    """Codes of the modalities, task queries over them, exchange between the tasks, and the two bounds.

    Args:
        widths: widths of the modalities' vectors, in order.
        tasks: p.
        dim: width d of h_k; codes have d/2.
        options: options of EVIF.
    """

    def __init__(self, widths: tuple[int, ...], tasks: int, dim: int, options: Options) -> None:
        super().__init__()
        half, self.options = dim // 2, options
        self.private = nn.ModuleList([nn.Linear(width, half) for width in widths])
        self.shared = nn.Linear(widths[0], half)
        self.queries = nn.Parameter(torch.randn(tasks, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, options.heads, kdim=half, vdim=half, batch_first=True)
        self.exchange = CrossTask(tasks, dim) if tasks > 1 else None
        self.pairs = list(itertools.permutations(range(len(widths)), 2))
        self.estimators = Estimators(len(self.pairs), half, half) if self.pairs else None
        self.reduce: Reduce | None = None  # set while the inner level is to take its steps
        self.fused_code = nn.Linear(dim, half)

    def forward(self, x: list[Tensor], present: Tensor, valid: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """From vectors ``m x [B, F]``, ``present [B, m]``, ``valid [B]``.

        Returns:
            ``h [B, p, d]``, the weighted auxiliary losses, and the codes ``[B, 2m, d/2]``: private, then shared; zero
            where absent.
        """
        here = [present[:, i, None] for i in range(len(x))]
        x = [torch.where(keep, value, 0.0) for keep, value in zip(here, x, strict=True)]
        private = [project(value) for project, value in zip(self.private, x, strict=True)]
        shared = [self.shared(value) for value in x]
        codes = torch.stack([*private, *shared], 1)
        codes = torch.where(present.repeat(1, 2)[..., None], codes, 0.0)
        # a sample without any modality attends to zeros rather than to nothing, which would be NaN
        ignore = ~present & present.any(1, keepdim=True)
        queries = self.queries.expand(len(codes), -1, -1)
        h, _ = self.attention(queries, codes, codes, key_padding_mask=ignore.repeat(1, 2), need_weights=False)
        if self.exchange is not None:
            h = self.exchange(h)
        rows = [valid & present[:, i] for i in range(len(x))]
        return h, self.bounds(private, shared, h.mean(1), rows), codes

    def bounds(
        self, private: list[Tensor], shared: list[Tensor], fused: Tensor, rows: list[Tensor]
    ) -> dict[str, Tensor]:
        """Weighted auxiliary losses, means over pairs and modalities.

        Args:
            private: private codes ``m x [B, d/2]``.
            shared: shared codes ``m x [B, d/2]``.
            fused: ``[B, d]``.
            rows: ``m x [B]`` bool, which codes exist.
        """
        code = self.fused_code(fused)
        lower = [info_nce(code, c, keep, self.options.temperature) for c, keep in zip(shared, rows, strict=True)]
        aux = {"shared_information": -self.options.fused * torch.stack(lower).mean()}
        if self.estimators is not None:
            x, y = (torch.stack([private[pair[end]] for pair in self.pairs]) for end in (0, 1))  # [P, B, d/2]
            keep = torch.stack([rows[i] & rows[j] for i, j in self.pairs])
            if self.training and self.reduce is not None:
                self.estimators.fit(x, y, keep, self.options.estimator_lr, self.reduce)
            q = self.estimators(x)
            upper = [vclub(*pair) for pair in zip(y, q.mean, q.log_variance, keep, strict=True)]
            aux["private_information"] = self.options.private * torch.stack(upper).mean()
        return aux


class Evif(ComparedModel):
    """Encoders, collaboration of the tasks, one linear head per task. See the module's first lines.

    Extras: ``codes [B, 2m, d/2]``, private then shared; ``features.<modality>``: the maps that enter the fusion.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=False)
        options = parse_options(Options, config.options, "evif")
        if config.dim % 2 or config.dim % options.heads:
            raise ConfigError(
                f"model.dim {config.dim} must be even and a multiple of heads {options.heads}", "model.options"
            )
        widths = tuple(self.encoders.widths[name] for name in spec.modalities)
        self.collaboration = Collaboration(widths, len(spec.tasks), config.dim, options) if self.own_fusion else None
        self.finish(config.dim)

    @contextmanager
    def inner_level(self, reduce: Reduce) -> Iterator[None]:
        """Forwards in here, in training mode, first fit the estimators; see :meth:`MultiModalModel.inner_level`."""
        if self.collaboration is None:
            yield
            return
        self.collaboration.reduce = reduce
        try:
            yield
        finally:
            self.collaboration.reduce = None

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """h_k per task, and the weighted bounds."""
        assert self.collaboration is not None
        x = [mean_pool(tokens.maps[name][-1]) for name in self.spec.modalities]
        h, aux, codes = self.collaboration(x, tokens.present, batch.valid)
        return Fused({name: h[:, k] for k, name in enumerate(self.spec.task_names)}, aux=aux, extras={CODES: codes})

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """As the base class, with the maps that enter the fusion noted."""
        fused = super().fuse(tokens, batch)
        note_maps(fused, tokens)
        return fused

    def shared_layer(self) -> nn.Module:
        """The output layer of the cross-attention, or the experts of the MToE that replaces it."""
        if self.collaboration is not None:
            return self.collaboration.attention.out_proj
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> Evif:
    """Registry entry."""
    return Evif(spec, config, experts_factory)
