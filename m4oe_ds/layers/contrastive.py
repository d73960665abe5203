"""Variational bounds on the mutual information of two codes: vCLUB from above, InfoNCE from below. In nats.

Both compare every sample with every other valid sample of the same micro-batch on the same rank; nothing is exchanged
between ranks. Rows that are not valid (padding, absent modality) neither contribute nor serve as comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_log_likelihood(target: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(target; mean, diag exp(log_variance)) without its constant, summed over the last dimension.

    The arguments broadcast; the constant -d/2 log(2 pi) is left out because it cancels in :func:`vclub`.
    """
    return (-0.5 * ((target - mean).square() * torch.exp(-log_variance) + log_variance)).sum(-1)


def negative_log_likelihood(target: Tensor, mean: Tensor, log_variance: Tensor, valid: Tensor) -> Tensor:
    """Mean of -log q(target | .) over the valid rows, per dimension of the code: what fits q_theta.

    Args:
        target: ``[B, d]``.
        mean: mean of the predicted normal ``[B, d]``.
        log_variance: ``[B, d]``.
        valid: ``[B]`` bool.

    Returns:
        scalar float32; 0 with a zero gradient if no row is valid.
    """
    rows = gaussian_log_likelihood(target.float(), mean.float(), log_variance.float())
    return -_masked_mean(rows, valid) / target.shape[-1]


def vclub(target: Tensor, mean: Tensor, log_variance: Tensor, valid: Tensor) -> Tensor:
    """Upper bound E_p(x,y)[log q(y|x)] - E_p(x)p(y)[log q(y|x)] on I(x; y) (vCLUB; Cheng et al., ICML 2020).

    The second expectation runs over all pairs of valid rows, which is the expectation of the random in-batch shuffle
    over its draws: the same value in the mean, without a random number.

    Args:
        target: y ``[B, d]``.
        mean: mean of q(y|x) ``[B, d]``.
        log_variance: log variance of q(y|x) ``[B, d]``.
        valid: ``[B]`` bool.

    Returns:
        scalar float32; a bound only as far as q fits p(y|x). 0 with a zero gradient if no row is valid.
    """
    target, mean, log_variance = target.float(), mean.float(), log_variance.float()
    positive = _masked_mean(gaussian_log_likelihood(target, mean, log_variance), valid)
    every = gaussian_log_likelihood(target[None], mean[:, None], log_variance[:, None])  # [B, B]: row x, column y
    return positive - _masked_mean(every.flatten(), (valid[:, None] & valid[None]).flatten())


def info_nce(query: Tensor, key: Tensor, valid: Tensor, temperature: float = 0.07) -> Tensor:
    """Lower bound log N - CE on I(query; key), N the number of valid rows (van den Oord et al., 2018).

    Args:
        query: ``[B, d]``, compared by cosine.
        key: ``[B, d]``; row b belongs to row b of the query.
        valid: ``[B]`` bool.
        temperature: divides the cosines.

    Returns:
        scalar float32, at most log N; 0 with a zero gradient if no row is valid.
    """
    query, key = functional.normalize(query.float(), dim=-1), functional.normalize(key.float(), dim=-1)
    logits = query @ key.T / temperature  # [B, B]
    # A valid row always has itself, so no row that counts is without a column.
    logits = logits.masked_fill(~valid[None], torch.finfo(logits.dtype).min)
    rows = logits.log_softmax(dim=1).diagonal()
    return _masked_mean(rows, valid) + torch.log(valid.sum().clamp_min(1).to(rows.dtype))


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    # where, not multiplication: an invalid row's inf must not turn into NaN
    kept = torch.where(valid, values, torch.zeros_like(values))
    return kept.sum() / valid.sum().clamp_min(1)
