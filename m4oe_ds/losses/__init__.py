"""Losses as sums and counts, and the conditional mutual information. No collectives, no logging, no models."""

from m4oe_ds.losses.mutual_information import conditional_mutual_information, official_token_task_information
from m4oe_ds.losses.tasks import LossParts, binary_cross_entropy_dice, cross_entropy, focal

__all__ = [
    "LossParts",
    "binary_cross_entropy_dice",
    "conditional_mutual_information",
    "cross_entropy",
    "focal",
    "official_token_task_information",
]
