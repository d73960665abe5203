"""Losses as sums and counts, and the conditional mutual information. No collectives, no logging, no models."""

from m4oe_ds.losses.discrete_time import cumulative_incidence, discrete_time_likelihood
from m4oe_ds.losses.mutual_information import conditional_mutual_information, official_token_task_information
from m4oe_ds.losses.number import huber, squared_error
from m4oe_ds.losses.tasks import LossParts, binary_cross_entropy_dice, cross_entropy, focal, ranked_probability

__all__ = [
    "LossParts",
    "binary_cross_entropy_dice",
    "conditional_mutual_information",
    "cross_entropy",
    "cumulative_incidence",
    "discrete_time_likelihood",
    "focal",
    "huber",
    "official_token_task_information",
    "ranked_probability",
    "squared_error",
]
