"""Base of the compared systems: ``encode`` views to maps, ``combine`` them as the original did, one head per task.

``model.attach_mtoe: replace`` leaves the system's fusion out (it is not even built) and lets every head read the MToE's
g_k; ``append`` keeps it and lets the head read Linear([feature of the system's fusion; g_k]).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from m4oe_ds import free_options
from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import FEATURES
from m4oe_ds.models.baselines.attached import Attached, AttachedMToE
from m4oe_ds.models.baselines.decoder import MaskDecoder
from m4oe_ds.models.baselines.encoders import ViewEncoders
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, MultiModalModel, Tokens

T = TypeVar("T")


def parse_options(kind: type[T], options: Mapping[str, Any], model: str) -> T:
    """``model.options`` as the model's own dataclass.

    Raises:
        ConfigError: an unknown name, or a value that it cannot have.
    """
    for name, what in free_options.problems(kind, options):
        raise ConfigError(f"option {name} of {model} {what}", "model.options")
    return free_options.read(kind, options)


class ComparedModel(MultiModalModel):
    """What the compared systems share.

    A subclass calls ``super().__init__``, then builds its fusion if ``self.own_fusion`` (not under ``replace``), then
    calls :meth:`finish` with the width of the vector its fusion gives per task.

    Args:
        spec: modalities, tasks, image size.
        config: configuration of the model.
        experts_factory: factory of the experts of the attached MToE.
        native: timm name of the original's encoder, per modality or one for all.
        share: one encoder for all modalities.
        pictures_only: see :class:`ViewEncoders`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelConfig,
        experts_factory: ExpertsFactory,
        *,
        native: str | Mapping[str, str] = "resnet18",
        share: bool = True,
        pictures_only: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.encoders = ViewEncoders(spec, config, native, share, pictures_only)
        self.mode = config.attach_mtoe
        self.mtoe = None if self.mode == "none" else AttachedMToE(spec, config, self.encoders.widths, experts_factory)

    @property
    def own_fusion(self) -> bool:
        """Whether the system's own fusion exists."""
        return self.mode != "replace"

    @property
    def vector_tasks(self) -> tuple[TaskSpec, ...]:
        """Tasks whose logits are a vector: all but masks."""
        return tuple(task for task in self.spec.tasks if not task.dense)

    def owner(self, task: str) -> str:
        """The modality whose maps a mask is decoded from."""
        return self.spec.owner(task)

    def finish(self, width: int) -> None:
        """Builds merging layers, heads and mask decoders.

        Args:
            width: width of the feature vectors that the system's own fusion gives; not used under ``replace``.
        """
        self.feature_width = self.config.dim if self.mode == "replace" else width
        self.merge = (
            nn.ModuleDict({task.name: nn.Linear(width + self.config.dim, width) for task in self.spec.tasks})
            if self.mode == "append"
            else None
        )
        for task in self.spec.tasks:
            if task.dense and not self.spec.modality(self.owner(task.name)).flat:
                what = f"{self.config.name} decodes masks of images; {task.name} lies over {self.owner(task.name)}"
                raise ConfigError(what, "model.name", "use m4oe, or leave it out with data.tasks")
        self.heads = nn.ModuleDict({task.name: self.make_head(task, self.feature_width) for task in self.vector_tasks})
        self.decoders = nn.ModuleDict(
            {
                task.name: MaskDecoder(
                    self.encoders.pyramid_widths[self.owner(task.name)],
                    self.feature_width,
                    self.spec.image_size,
                    task.num_classes,
                )
                for task in self.spec.tasks
                if task.dense
            }
        )

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """Head of a task without masks, ``[B, width] -> [B, C]``: class logits, a number, or logits of hazards."""
        return nn.Linear(width, task.num_classes)

    def encode(self, batch: Batch) -> Tokens:
        """Maps of every view, and the last one as tokens ``[B, h*w, C]``."""
        maps = self.encoders(batch.views)
        return Tokens(
            {name: stages[-1].flatten(2).transpose(1, 2) for name, stages in maps.items()}, batch.present, maps
        )

    @abstractmethod
    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """The system's own fusion: ``features`` ``{task: [B, width]}`` for every task, its aux losses and extras.

        An absent modality (``tokens.present`` False) must leave no trace.
        """

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """One feature vector per task from the system's own fusion, the attached MToE, or both."""
        fused = self.combine(tokens, batch) if self.own_fusion else Fused({})
        fused.maps = tokens.maps
        if self.mtoe is not None:
            attached = self.mtoe({name: stages[-1] for name, stages in tokens.maps.items()}, tokens.present)
            fused.routing["mtoe"], fused.modality_of_token = attached.routing, attached.modality_of_token
            self.take(fused, attached)
            for task, g in attached.features.items():
                if self.merge is None:
                    fused.features[task] = g
                else:
                    fused.features[task] = self.merge[task](torch.cat([fused.features[task], g], 1))
        return fused

    def take(self, fused: Fused, attached: Attached) -> None:
        """What else a system reads from an attached MToE; nothing by default."""

    def predict(self, fused: Fused) -> ModelOutput:
        """Logits of every task."""
        logits: dict[str, Tensor] = {}
        for task in self.spec.tasks:
            feature = fused.features[task.name]
            if task.dense:
                logits[task.name] = self.decoders[task.name](fused.maps[self.owner(task.name)], feature)
            else:
                logits[task.name] = self.heads[task.name](feature)
        return ModelOutput(logits, fused.routing, fused.aux, fused.modality_of_token, fused.extras)


def masked_mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean over present modalities: ``[B, m, F]`` and ``[B, m]`` to ``[B, F]``; zeros where none is present."""
    weight = present.to(values.dtype)[..., None]
    return (values * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def note_maps(fused: Fused, tokens: Tokens) -> None:
    """Adds the maps that enter the fusion to the extras, for those who measure or scale their gradients."""
    fused.extras |= FEATURES.write({name: stages[-1] for name, stages in tokens.maps.items()})
