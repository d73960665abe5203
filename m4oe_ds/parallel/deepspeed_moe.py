"""The one adapter to DeepSpeed's expert-parallel internals, written against deepspeed 0.19.8.

The engine recognises mixture layers by class only. Of its two classes, AutoEPMoELayer is the one whose experts also
work under ZeRO-3 and whose checkpoints can be re-sharded; we subclass it, skip its constructor (it would wrap a Hugging
Face block with a top-k router) and provide what the engine and its checkpoint code read. docs/decisions/0003 has the
alternatives. tests/distributed/test_deepspeed_contract.py fails when a new version reads something else.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import deepspeed
from deepspeed.checkpoint.autoep_affine import (
    autoep_placement_to_affine_map,
    legacy_uniform_autoep_placement_descriptor,
)
from deepspeed.checkpoint.constants import (
    AFFINE_MAP,
    AUTOEP_EXPERT_PLACEMENT,
    AUTOEP_PARAM_EP_RANK,
    AUTOEP_PARAM_LOCAL_EXPERTS,
    AUTOEP_PARAM_LOGICAL_SHAPE,
    DS_AUTOEP_UC_META,
)
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from m4oe_ds.errors import EnvironmentProblem, ShapeError
from m4oe_ds.layers.experts import ExpertsFactory, ExpertWeights
from m4oe_ds.parallel.exchange import run_on_owners
from m4oe_ds.parallel.topology import Topology

PINNED_VERSION = "0.19.8"
_logger = logging.getLogger(__name__)


class ExpertParallelExperts(AutoEPMoELayer):
    """Expert executor whose experts are sharded over the expert-parallel group.

    Args:
        num_experts: n, over all ranks.
        dim: d.
        hidden: h.
        topology: groups of this process.
    """

    def __init__(self, num_experts: int, dim: int, hidden: int, topology: Topology) -> None:
        nn.Module.__init__(self)  # not AutoEPMoELayer's: see the module docstring
        self.num_experts = num_experts
        self.num_local_experts = num_experts // topology.ep_size
        self.ep_size, self.ep_rank = topology.ep_size, topology.ep_rank
        self.ep_group_name = topology.group_name
        self.ep_group: Any = None  # bound by the engine through set_deepspeed_parallelism
        self.folding_group_handles = None
        self.tp_group = None
        self.combine_impl = "auto"
        self.comm_backend = "comm"
        self.hidden_size = dim
        self.expert_placement_descriptor = legacy_uniform_autoep_placement_descriptor(
            num_experts, self.num_local_experts, topology.ep_size
        )
        self.experts = ExpertWeights(topology.local_experts(num_experts), dim, hidden)
        self._tag_parameters()

    def _tag_parameters(self) -> None:
        """Marks which group reduces, partitions and re-shards each tensor."""
        parameter: Any  # DeepSpeed reads attributes that torch's parameters do not declare
        for parameter in self.experts.parameters():
            parameter.allreduce = False
            parameter.group_name = self.ep_group_name
            parameter.ds_zero_placement_family = "autoep_expert"
            parameter.ds_zero_partition_group_name = self.ep_group_name
            logical = [self.num_experts, *parameter.shape[1:]]
            affine = autoep_placement_to_affine_map(self.expert_placement_descriptor, logical)
            setattr(
                parameter,
                DS_AUTOEP_UC_META,
                {
                    AUTOEP_EXPERT_PLACEMENT: self.expert_placement_descriptor,
                    AFFINE_MAP: affine.to_dict(),
                    AUTOEP_PARAM_LOGICAL_SHAPE: logical,
                    AUTOEP_PARAM_EP_RANK: self.ep_rank,
                    AUTOEP_PARAM_LOCAL_EXPERTS: list(self.experts.expert_ids),
                },
            )

    def forward(self, slots: Tensor) -> Tensor:
        """``[B, n, s, d] -> [B, n, s, d]``; see :func:`m4oe_ds.parallel.exchange.run_on_owners`.

        Raises:
            ShapeError: the number of experts differs.
            EnvironmentProblem: called before ``deepspeed.initialize`` bound the group.
        """
        return self.run_together([self], [slots])[0]

    @staticmethod
    def run_together(layers: Sequence[ExpertParallelExperts], slots: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of several layers, per layer as :meth:`forward`, in one exchange; raises what it raises."""
        for layer, x in zip(layers, slots, strict=True):
            if x.ndim != 4 or x.shape[1] != layer.num_experts:
                raise ShapeError(f"{layer.num_experts} experts got slots of shape {tuple(x.shape)}")
            if layer.ep_size > 1 and layer.ep_group is None:
                raise EnvironmentProblem("expert-parallel layer used before deepspeed.initialize bound its group")
        first = layers[0]  # all layers are sharded over the same group
        return run_on_owners(slots, first.ep_size, first.ep_group, [layer.experts for layer in layers])


def experts_factory(topology: Topology) -> ExpertsFactory:
    """Factory for ``models.build`` that shards every mixture layer over ``topology``."""
    if deepspeed.__version__.split("+")[0] != PINNED_VERSION:
        raise EnvironmentProblem(
            f"deepspeed {deepspeed.__version__} is installed; expert parallelism uses internals of {PINNED_VERSION}",
            fix=f"pip install deepspeed=={PINNED_VERSION}",
        )
    return lambda num_experts, dim, hidden: ExpertParallelExperts(num_experts, dim, hidden, topology)


def with_experts_apart(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Optimizer groups with the experts in groups of their own, as ZeRO requires, and trainable parameters only.

    Args:
        groups: ``params``, a ``name`` that no other has, and options of the optimizer, which the experts keep.
    """
    trainable = [
        {**group, "params": [parameter for parameter in group["params"] if parameter.requires_grad]} for group in groups
    ]
    split: list[dict[str, Any]] = split_params_into_different_moe_groups_for_optimizer(trainable)
    return [group for group in split if group["params"]]


@contextlib.contextmanager
def experts_may_be_frozen(model: nn.Module) -> Iterator[None]:
    """Around the making of an engine: ZeRO 1 and 2 insist on a group of experts, and frozen ones have none.

    Without one their gradient norm has nothing to add up over the expert-parallel group, which is what they are told.
    """
    experts = [layer for layer in model.modules() if isinstance(layer, ExpertParallelExperts)]
    if not experts or any(parameter.requires_grad for layer in experts for parameter in layer.parameters()):
        yield
        return
    original = DeepSpeedZeroOptimizer._configure_moe_settings

    def without_groups(self: Any) -> None:
        self.is_moe_param_group = [False] * len(self.optimizer.param_groups)

    DeepSpeedZeroOptimizer._configure_moe_settings = without_groups
    try:
        yield
    finally:
        DeepSpeedZeroOptimizer._configure_moe_settings = original


def ep_size_of(model: nn.Module) -> int:
    """Ranks that share the experts of a model (or of an engine around it); 1 for a model without experts."""
    return next((module.ep_size for module in model.modules() if isinstance(module, ExpertParallelExperts)), 1)


def check_engine(engine: Any, model: nn.Module) -> None:
    """Asserts that the engine recognised every mixture layer and that no parameter sits in a wrong group.

    Unrecognised expert parameters would be averaged over ranks that hold different experts, without any error.

    Raises:
        EnvironmentProblem: recognised something else than what the model holds.
    """
    layers = [module for module in model.modules() if isinstance(module, ExpertParallelExperts)]
    if bool(layers) != bool(engine.has_moe_layers) or len(engine.num_experts) != len(layers):
        raise EnvironmentProblem(
            f"DeepSpeed recognised {len(engine.num_experts)} of {len(layers)} mixture layers",
            fix=f"use deepspeed=={PINNED_VERSION}",
        )
    if engine.zero_optimization_stage() == 0 and layers:
        raise EnvironmentProblem(
            "ZeRO stage 0 computes a wrong gradient norm for sharded experts", fix="use stage 1, 2 or 3"
        )
    for module in layers:
        for name, parameter in module.experts.named_parameters():
            if getattr(parameter, "allreduce", True) or getattr(parameter, "group_name", None) != module.ep_group_name:
                raise EnvironmentProblem(f"expert parameter {name} lost its group tag while the engine was built")
