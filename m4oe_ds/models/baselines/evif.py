"""EVIF: private and shared codes per modality, task queries that exchange what they found, two information bounds.

Geng et al., "Event-based visible and infrared fusion via multi-task collaboration", CVPR 2024. Fidelity: reconstructed
from the abstract; no code is public and the network here is our own: classification and masks instead of images from
events and infrared. The private codes of two modalities shall share little information (vCLUB), the fused code and each
shared code much (InfoNCE).

The original optimises in two levels, alternating. Here both levels move in one backward, on disjoint parameters: the
estimator q_theta of the upper bound is fitted by its likelihood on detached codes, which reaches theta alone, while the
bounds see theta detached and reach everything but theta. Neither level's gradient is touched by the other; what differs
from alternating steps is that theta is one step behind the codes, and has the optimizer's learning rate.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.contrastive import info_nce, negative_log_likelihood, vclub
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens


@dataclass(frozen=True)
class Options:
    """Options of EVIF.

    Attributes:
        heads: of the cross-attention. private, fused: weights of the upper and the lower bound.
        temperature: of InfoNCE. estimator: weight of q_theta's likelihood.
    """

    heads: int = 8
    private: float = 0.1
    fused: float = 0.1
    temperature: float = 0.07
    estimator: float = 1.0


class Gaussian(NamedTuple):
    """Mean and log variance ``[B, d]`` of q(y|x)."""

    mean: Tensor
    log_variance: Tensor


class Estimator(nn.Module):
    """q_theta(y|x) = N(mu(x), diag exp s(x)): one hidden layer, tanh on s.

    Parameters stand here and not in sub-modules: the bound uses them detached within the same call, so one gathering
    serves both uses where parameters are partitioned.

    Args:
        dim: width of x and y. hidden: of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        first, second = nn.Linear(dim, hidden), nn.Linear(hidden, 2 * dim)
        self.w1, self.b1, self.w2, self.b2 = first.weight, first.bias, second.weight, second.bias

    def forward(self, x: Tensor) -> tuple[Gaussian, Gaussian]:
        """Of ``x [B, d]``: q of the codes with theta constant, and q of the codes as constants with theta to be fitted."""
        constant = [parameter.detach() for parameter in (self.w1, self.b1, self.w2, self.b2)]
        return self._gaussian(x, *constant), self._gaussian(x.detach(), self.w1, self.b1, self.w2, self.b2)

    @staticmethod
    def _gaussian(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Gaussian:
        mean, spread = functional.linear(functional.relu(functional.linear(x, w1, b1)), w2, b2).chunk(2, -1)
        return Gaussian(mean, spread.tanh())


class CrossTask(nn.Module):
    """h_k + sum over k' != k of sigmoid(w_kk' . [h_k; h_k']) * V h_k'.

    Args:
        tasks: p > 1. dim: width of h_k.
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
        widths: of the modalities' vectors, in order. tasks: p. dim: width d of h_k; codes have d/2. options: of EVIF.
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
        self.estimators = nn.ModuleDict({f"{i}_{j}": Estimator(half, half) for i, j in self.pairs})
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
            private, shared: codes ``m x [B, d/2]``. fused: ``[B, d]``. rows: ``m x [B]`` bool, which codes exist.
        """
        lower, upper, fit = [], [], []
        code = self.fused_code(fused)
        for c, keep in zip(shared, rows, strict=True):
            lower.append(info_nce(code, c, keep, self.options.temperature))
        for i, j in self.pairs:
            keep = rows[i] & rows[j]
            outer, inner = self.estimators[f"{i}_{j}"](private[i])
            upper.append(vclub(private[j], outer.mean, outer.log_variance, keep))
            fit.append(negative_log_likelihood(private[j].detach(), inner.mean, inner.log_variance, keep))
        aux = {"shared_information": -self.options.fused * torch.stack(lower).mean()}
        if self.pairs:
            aux["private_information"] = self.options.private * torch.stack(upper).mean()
            aux["estimator_fit"] = self.options.estimator * torch.stack(fit).mean()
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

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """h_k per task, and the weighted bounds."""
        assert self.collaboration is not None
        x = [mean_pool(tokens.maps[name][-1]) for name in self.spec.modalities]
        h, aux, codes = self.collaboration(x, tokens.present, batch.valid)
        return Fused({name: h[:, k] for k, name in enumerate(self.spec.task_names)}, aux=aux, extras={"codes": codes})

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """As the base class, with the maps that enter the fusion noted."""
        fused = super().fuse(tokens, batch)
        fused.extras |= {f"features.{name}": stages[-1] for name, stages in tokens.maps.items()}
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
