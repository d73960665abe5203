"""Pure tensor maths of the mixture-of-experts layers. No process groups, no configuration, no modality or task names.

Letters used in shape comments and einsum strings everywhere in this package:

=====  ==================================  =====  =========================================
B b    batch                               n j    experts
M t    tokens of all modalities            p k    tasks, or slots of a plain Soft-MoE
l      tokens of one modality              d      width
m i    modalities                          h      hidden width of an expert
=====  ==================================  =====  =========================================

Router logits are always ``[B, M, n, p]``.
"""

from m4oe_ds.layers.block import Block, MToEBlock
from m4oe_ds.layers.experts import ExpertExecutor, ExpertWeights, LocalExperts, initialise_experts
from m4oe_ds.layers.mtoe import MToE
from m4oe_ds.layers.routing import Router, RouterOptions, Routing
from m4oe_ds.layers.soft_moe import SoftMoE

__all__ = [
    "Block",
    "ExpertExecutor",
    "ExpertWeights",
    "LocalExperts",
    "MToE",
    "MToEBlock",
    "Router",
    "RouterOptions",
    "Routing",
    "SoftMoE",
    "initialise_experts",
]
