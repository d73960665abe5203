"""Options of the estimator for continuous sources, and what they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from m4oe_ds.errors import ConfigError

Anchor = Literal["x1", "x2", "mean"]
MAX_LOGIT = 40.0  # exp(-40) summed over a batch is still far from underflow in float32
_LEAST = {
    "hidden": 1,
    "depth": 1,
    "discriminator_steps": 1,
    "check_every": 1,
    "patience": 1,
    "batch_size": 2,
    "alignment_steps": 1,
    "embedding": 2,
    "evaluation_batch": 2,
    "sinkhorn_rounds": 1,
    "permutations": 0,
    "bootstrap": 0,
}


@dataclass(frozen=True)
class BatchSettings:
    """Options of :func:`m4oe_ds.analysis.pid.estimator.batch`.

    The defaults suit a few thousand cached features on a CPU core.

    Attributes:
        hidden: width of the hidden layers of every network.
        depth: number of hidden layers of every network.
        discriminator_steps: most Adam steps per discriminator; early stopping usually ends before.
        check_every: steps between two validations.
        patience: checks without improvement after which training stops.
        weight_decay: weight decay of the discriminators (decoupled).
        temperature_scaling: divide the logits by the temperature that minimises the validation cross-entropy.
        learning_rate: learning rate of discriminators and alignment networks.
        batch_size: batch size of discriminators and alignment networks.
        alignment_steps: Adam steps of the alignment networks.
        embedding: entries ``e`` of the vectors whose inner product is the log coupling.
        logit_scale: factor of that inner product, default ``1/sqrt(e)``; ``|logit| <= logit_scale (e - 1)`` or so.
        evaluation_batch: samples coupled at once at evaluation (memory: its square times the number of classes).
        sinkhorn_rounds: most rounds of Sinkhorn scaling.
        sinkhorn_tolerance: largest marginal error at which to stop in training, relative to the mass 1 of a sample.
        evaluation_tolerance: the same at evaluation.
        balance_mass: rescale both marginals of a label to their mean mass (see :mod:`m4oe_ds.analysis.pid.estimator`).
        anchor: source from which the coupling is read: ``x1`` (as published), ``x2`` or ``mean`` of both.
        mi: ``soft`` (Kullback-Leibler divergence of p(y|x) from p(y)) or ``heldout_ce`` (log p(y) minus held-out
            cross-entropy; may become negative) for the three ordinary informations.
        held_out: fraction of the patients for the estimate.
        validation: fraction of the rest for early stopping.
        permutations: runs with permuted labels for the null (0 = none).
        bootstrap: resamples of the held-out patients (0 = none), with the trained networks kept fixed.
        seed: seed of everything random.
        device: torch device of the networks.
    """

    hidden: int = 32
    depth: int = 4
    discriminator_steps: int = 640
    check_every: int = 10
    patience: int = 15
    weight_decay: float = 1e-2
    temperature_scaling: bool = True
    learning_rate: float = 1e-3
    batch_size: int = 256
    alignment_steps: int = 160
    embedding: int = 10
    logit_scale: float | None = None
    evaluation_batch: int = 1024
    sinkhorn_rounds: int = 50
    sinkhorn_tolerance: float = 0.01
    evaluation_tolerance: float = 1e-3
    balance_mass: bool = True
    anchor: Anchor = "mean"
    mi: Literal["soft", "heldout_ce"] = "soft"
    held_out: float = 0.33
    validation: float = 0.25
    permutations: int = 0
    bootstrap: int = 200
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value in _LEAST.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} = {getattr(self, name)}", "BatchSettings", f"give at least {value}")
        if not (0 < self.held_out < 1 and 0 < self.validation < 1):
            raise ConfigError(
                f"held_out = {self.held_out}, validation = {self.validation}",
                "BatchSettings",
                "give fractions between 0 and 1",
            )
        if self.anchor not in ("x1", "x2", "mean") or self.mi not in ("soft", "heldout_ce"):
            raise ConfigError(
                f"anchor = {self.anchor!r}, mi = {self.mi!r}",
                "BatchSettings",
                "anchor is x1, x2 or mean; mi is soft or heldout_ce",
            )
        if self.scale * self.embedding > MAX_LOGIT:
            raise ConfigError(
                f"logit_scale = {self.scale:.3g}", "BatchSettings", f"keep logit_scale * embedding below {MAX_LOGIT:g}"
            )

    @property
    def scale(self) -> float:
        """The factor of the inner product in use."""
        return 1.0 / math.sqrt(self.embedding) if self.logit_scale is None else self.logit_scale
