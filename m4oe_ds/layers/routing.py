"""Router logits and the two softmaxes made from them: dispatch (over tokens), combine (over the slots of a token)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers import mixing

CombineMode = Literal["joint", "per_task"]


class Routing:
    """Router logits of one layer and the weights derived from them, computed when first used.

    Args:
        logits: ``[B, M, n, p]`` float32 or float64, before masking; or a function that makes them, since the layers
            themselves do not keep them (:mod:`m4oe_ds.layers.mixing`).
        token_mask: ``[B, M]`` bool, True = token takes part; None = all do.
        combine_mode: ``joint`` normalises over all n*p slots of a token (M4oE eq. 2); ``per_task`` over the n experts
            of each task.
        detached_logits: the same values with a graph that ends at the tokens, for a router with
            ``detach_information``.
        modality_mass: ``[B, m, n, p]`` dispatch weight on the tokens of each modality, where the layer computed it.
    """

    def __init__(
        self,
        logits: Tensor | Callable[[], Tensor],
        token_mask: Tensor | None = None,
        combine_mode: CombineMode = "joint",
        detached_logits: Tensor | Callable[[], Tensor] | None = None,
        modality_mass: Tensor | None = None,
    ) -> None:
        self._logits, self._detached_logits = logits, detached_logits
        self.token_mask, self.combine_mode, self.modality_mass = token_mask, combine_mode, modality_mass

    @cached_property
    def logits(self) -> Tensor:
        """``[B, M, n, p]``, differentiable."""
        return self._logits if isinstance(self._logits, Tensor) else self._logits()

    @cached_property
    def information_logits(self) -> Tensor:
        """Logits that the mutual-information term differentiates (resolution A13)."""
        if self._detached_logits is None:
            return self.logits
        return self._detached_logits if isinstance(self._detached_logits, Tensor) else self._detached_logits()

    @property
    def information_mass(self) -> Tensor | None:
        """``modality_mass`` where it is what the mutual-information term differentiates."""
        return self.modality_mass if self._detached_logits is None else None

    @cached_property
    def dispatch(self) -> Tensor:
        """D ``[B, M, n, p]``: softmax of the logits over tokens, 0 for masked tokens (M4oE eq. 1)."""
        logits = self.logits
        if self.token_mask is not None:
            # The lowest finite value, not -inf: a sample without any token (padding) gets weights instead of NaN.
            logits = logits.masked_fill(~self.token_mask[:, :, None, None], torch.finfo(logits.dtype).min)
        return logits.softmax(dim=1)

    @cached_property
    def combine(self) -> Tensor:
        """C ``[B, M, n, p]``: softmax over the slots of a token, rows of masked tokens 0 (M4oE eq. 2)."""
        if self.combine_mode == "per_task":
            weights = self.logits.softmax(dim=2)
        else:
            weights = self.logits.flatten(2, 3).softmax(dim=2).view_as(self.logits)  # [B, M, n*p], expert-major
        if self.token_mask is not None:
            weights = weights * self.token_mask[:, :, None, None]
        return weights

    def detach(self) -> Routing:
        """The same routing without its autograd graph."""
        mass = None if self.modality_mass is None else self.modality_mass.detach()
        return Routing(self.logits.detach(), self.token_mask, self.combine_mode, modality_mass=mass)


@dataclass(frozen=True)
class RouterOptions:
    """How a router compares tokens with slots and what is made of the result.

    Attributes:
        norm: compare directions (unit vectors, epsilon 1e-6) times a learned scale.
        scale_init: initial value of that scale. At 1 and d = 768 the softmax is uniform within 20 %.
        dispatch_normalized: dispatch the unit-norm tokens instead of the raw ones; without effect where ``norm`` is
            off.
        detach_information: let the mutual-information term reach phi and scale, but not the layers below.
        combine: see :class:`Routing`.

    Raises:
        ValueError: unknown ``combine``.
    """

    norm: bool = True
    scale_init: float = 1.0
    dispatch_normalized: bool = False
    detach_information: bool = False
    combine: CombineMode = "joint"

    def __post_init__(self) -> None:
        if self.combine not in ("joint", "per_task"):
            raise ValueError(f"combine must be 'joint' or 'per_task', got {self.combine!r}")


DEFAULT_ROUTER = RouterOptions()


class Router(nn.Module):
    """Similarity of tokens to the slots of the experts.

    logits[b,t,j,k] = scale * unit(x[b,t]) . unit(phi[:,j,k])   (``options.norm``), or x[b,t] . phi[:,j,k]

    Source: M4oE section 3.2 with the normalisation of the authors' release (resolution A3 in docs/decisions/0001).

    Args:
        dim: token width d.
        num_experts: n.
        num_slots: slots per expert; tasks p for an MToE.
        options: normalisation, dispatch and combine.

    Numerics: logits are computed in float32 whatever the dtype of the tokens (float64 stays float64), because
    I(M;E|T) starts near 1e-5 nats and would drown in bfloat16.
    """

    def __init__(self, dim: int, num_experts: int, num_slots: int, options: RouterOptions = DEFAULT_ROUTER) -> None:
        super().__init__()
        self.options = options
        self.phi = nn.Parameter(torch.empty(dim, num_experts, num_slots))  # [d, n, p]
        if options.norm:
            self.scale = nn.Parameter(torch.empty(1))
        else:
            self.register_parameter("scale", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Phi from N(0, 1/d), scale to its initial value."""
        nn.init.normal_(self.phi, std=1.0 / math.sqrt(self.phi.shape[0]))
        if self.scale is not None:
            nn.init.constant_(self.scale, self.options.scale_init)

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> tuple[Routing, Tensor]:
        """Routing of tokens ``[B, M, d]`` and the tokens to dispatch (raw or unit-norm, dtype of the input).

        Raises:
            ShapeError: width differs from ``dim``, or the mask is not ``[B, M]``.
        """
        x, phi, dispatched = self._operands(tokens, token_mask)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self._logits(x, phi)
            detached = self._logits(x.detach(), phi) if self.options.detach_information else None
        return Routing(logits, token_mask, self.options.combine, detached), dispatched

    def mix(
        self,
        tokens: Tensor,
        token_mask: Tensor | None,
        segments: Sequence[int] | None,
        *,
        joint_streams: bool = False,
    ) -> tuple[Routing, Tensor, Callable[[Tensor], Tensor]]:
        """Slot inputs, and the function that combines expert outputs: what a layer needs, without weight tensors.

        Args:
            tokens: ``[B, M, d]``.
            token_mask: ``[B, M]`` bool.
            segments: tokens of each modality, adjacent, in order; None = all tokens are of one.
            joint_streams: sum the outputs over the p slots of an expert instead of keeping one stream per slot.

        Returns:
            The routing; ``slots [B, n, p, d]``; and the function ``outputs [B, n, p, d] -> [B, p, M, d]``, or
            ``[B, 1, M, d]`` with joint streams.

        Raises:
            ShapeError: as :meth:`forward`, or segments that do not add up to M.
        """
        segments = (tokens.shape[1],) if segments is None else tuple(segments)
        if sum(segments) != tokens.shape[1]:
            raise ShapeError(f"segments {segments} do not add up to {tokens.shape[1]} tokens")
        x, phi, dispatched = self._operands(tokens, token_mask)
        experts, tasks = phi.shape[1:]
        separate = self.options.combine == "per_task" or not joint_streams
        with torch.autocast(tokens.device.type, enabled=False):
            slots, mass, mixed = mixing.dispatch(
                x,
                phi.transpose(1, 2).flatten(1),  # [d, p*n], task-major
                dispatched,
                token_mask,
                segments,
                tasks if separate else 1,
                tasks if self.options.combine == "per_task" else 0,
            )
        routing = Routing(
            lambda: self._logits(x, phi),
            token_mask,
            self.options.combine,
            (lambda: self._logits(x.detach(), phi)) if self.options.detach_information else None,
            mass.unflatten(2, (tasks, experts)).transpose(2, 3),
        )

        def combine(outputs: Tensor) -> Tensor:
            outputs = outputs.transpose(1, 2)  # [B, p, n, d]
            if not separate:
                outputs = outputs.flatten(1, 2)[:, None]
            with torch.autocast(tokens.device.type, enabled=False):
                streams = mixing.combine(mixed, outputs)
            return streams.sum(1, keepdim=True) if separate and joint_streams else streams

        return routing, slots.unflatten(1, (tasks, experts)).transpose(1, 2), combine

    def _operands(self, tokens: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and phi as they are multiplied, in at least float32, and the tokens to dispatch."""
        if tokens.ndim != 3 or tokens.shape[2] != self.phi.shape[0]:
            raise ShapeError(f"router of width {self.phi.shape[0]} got tokens of shape {tuple(tokens.shape)}")
        if token_mask is not None and token_mask.shape != tokens.shape[:2]:
            raise ShapeError(f"token_mask {tuple(token_mask.shape)} does not match tokens {tuple(tokens.shape[:2])}")
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            x, phi = tokens.to(dtype), self.phi.to(dtype)
            if self.options.norm:
                x = functional.normalize(x, dim=-1, eps=1e-6)
                phi = functional.normalize(phi, dim=0, eps=1e-6)
            if self.scale is not None:
                phi = phi * self.scale.to(dtype)
        dispatched = x.to(tokens.dtype) if self.options.dispatch_normalized and self.options.norm else tokens
        return x, phi, dispatched

    @staticmethod
    def _logits(x: Tensor, phi: Tensor) -> Tensor:
        return torch.matmul(x, phi.flatten(1)).unflatten(2, phi.shape[1:])  # [B, M, n, p]


def modality_contribution(routing: Routing, modality_of_token: Tensor, num_modalities: int) -> Tensor:
    """Share of each modality in each task's answer, per sample: ``[B, p, m]``, rows sum to 1.

    c[b,k,i] = sum_j e[b,j,k] W[b,i,j,k];  W: dispatch mass on the tokens of modality i;
    e[b,j,k] = sum_t C[b,t,j,k] / sum_{t,j'} C[b,t,j',k]        (M4oE Fig. 5)

    Routing mass is not causal importance: see the caveat in docs/reference/architecture.md.

    Args:
        routing: routing of an MToE layer.
        modality_of_token: ``[M]`` integers below ``num_modalities``.
    """
    dispatch, combine = routing.dispatch, routing.combine
    batch, _, experts, tasks = dispatch.shape
    mass = dispatch.new_zeros(batch, num_modalities, experts, tasks).index_add(1, modality_of_token, dispatch)
    weight = combine.sum(1)  # [B, n, p]
    weight = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return torch.einsum("bjk,bijk->bki", weight, mass)
