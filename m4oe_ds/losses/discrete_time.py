"""Likelihood of times to an event under censoring, over the intervals between the horizons of a task.

Logits are those of the hazards h_j = P(event in interval j | none before), intervals (0, t_1], (t_1, t_2], ..
(t_{H-1}, t_H] (Gensheimer and Narasimhan 2019, PeerJ 7:e6257). A case adds log h_j of the interval of its event and
log(1 - h_j) of every interval that it survived. Conventions:

- an event at exactly a horizon lies in the interval that ends there; one at time 0 in the first;
- an event after the last horizon is a case free of the event up to it;
- a censored case survived the intervals whose middle it reached (the source's rule, which makes up for intervals left
  early by those left late); censored before the middle of the first it says nothing, adds 0 and still counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.losses.tasks import LossParts, at_least_float32, masked_sum


def survived_intervals(times: Tensor, events: Tensor, horizons: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Which intervals a case survived, and in which its event came.

    Args:
        times: ``[B]`` times to the event or to the end of follow-up.
        events: ``[B]`` bool or 0/1.
        horizons: ``[H]`` ascending times, above 0.

    Returns:
        ``[B, H]`` bool each; at most one event per case, after all intervals it survived.
    """
    ends = torch.tensor(horizons, dtype=torch.float64, device=times.device)
    starts = functional.pad(ends[:-1], (1, 0))
    # a horizon such as 0.1 is another number in float32, the type of the times: compare as the labels are stored
    starts, middles, ends = (edge.to(times.dtype) for edge in (starts, (starts + ends) / 2, ends))
    time, event = times[:, None], (events > 0)[:, None]
    came = event & (time <= ends) & ((time > starts) | (starts == 0))
    survived = torch.where(event, time > ends, time >= middles)
    return survived, came


def discrete_time_likelihood(logits: Tensor, labels: Tensor, mask: Tensor, horizons: Sequence[float]) -> LossParts:
    """Negative log-likelihood per case, summed over its intervals.

    Args:
        logits: ``[B, H]`` of the hazards.
        labels: ``[B, 2]`` time and event (1 seen, 0 censored).
        mask: ``[B]`` bool, True = the label exists.
        horizons: ``[H]`` ascending times in the unit of the labels.
    """
    hazard = torch.where(mask[:, None], at_least_float32(logits), 0.0)
    survived, came = survived_intervals(labels[:, 0], labels[:, 1], horizons)
    # -log h = softplus(-logit), -log(1 - h) = softplus(logit)
    lost = torch.where(came, functional.softplus(-hazard), 0.0) + torch.where(
        survived, functional.softplus(hazard), 0.0
    )
    return masked_sum(lost.sum(1), mask)


def cumulative_incidence(logits: Tensor) -> Tensor:
    """P(event within each horizon) ``[B, H]``: 1 - prod_{i <= j} (1 - h_i), never falling with the horizon."""
    return -torch.expm1(-functional.softplus(at_least_float32(logits)).cumsum(1))
