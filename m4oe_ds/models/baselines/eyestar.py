"""EyeStar: fundus and OCT branches, ordinal grading of their joint features, a U-Net decoder on the fundus branch.

A finalist of the GAMMA challenge (Wu et al., "GAMMA challenge: glaucoma grading from multi-modality images", Medical Image
Analysis 2023). Fidelity: reconstructed. Its architecture is not public; this is the challenge's public grading baseline
(two ResNet-34, the OCT's B-scans as channels, pooled and concatenated) with the ingredients the report names for the
leading teams: ordinal regression with a shared slope, and segmentation with skip connections. Grading reads the whole
fundus, not a crop around the disc, and one network does both tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.models.baselines.attached import Attached
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, Tokens


@dataclass(frozen=True)
class Options:
    """EyeStar has no options."""


class OrdinalHead(nn.Module):
    """Cumulative logits with one slope: w . f + b_c, b_1 >= b_2 >= ..

    Args:
        width: of f. classes: K.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.slope = nn.Linear(width, 1)  # its bias is b_1
        self.gaps = nn.Parameter(torch.zeros(classes - 2)) if classes > 2 else None

    def forward(self, f: Tensor) -> Tensor:
        """``[B, width]`` to logits of P(y >= 1) .. P(y >= K-1), ``[B, K-1]``, never increasing."""
        first = self.slope(f)
        if self.gaps is None:
            return first
        steps = functional.softplus(self.gaps.to(first.dtype)).cumsum(0)
        return torch.cat([first, first - steps], 1)


def class_logits(cumulative: Tensor) -> Tensor:
    """Log-probabilities of the classes ``[B, K]`` from cumulative logits ``[B, K-1]`` that never increase.

    P(y = 0) = 1 - P(y >= 1), P(y = c) = P(y >= c) - P(y >= c+1), P(y = K-1) = P(y >= K-1); at least 1e-6 each.
    """
    at_least = functional.pad(cumulative.float().sigmoid(), (0, 1))
    at_least = functional.pad(at_least, (1, 0), value=1.0)
    return (at_least[:, :-1] - at_least[:, 1:]).clamp_min(1e-6).log().to(cumulative.dtype)


class EyeStar(ComparedModel):
    """Two branches, ordinal heads, mask decoder. See the module's first lines.

    Extras: ``ordinal.<task> [B, K-1]``, the cumulative logits that the loss reads.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet34", share=False)
        parse_options(Options, config.options, "eyestar")
        width = sum(self.encoders.widths[name] for name in spec.modalities)
        self.finish(width)
        # with an attached MToE the decoder also gets the task's tokens at the places of the fundus
        dense = [task.name for task in spec.tasks if task.kind == "segmentation"]
        self.places = (
            nn.ModuleDict({name: nn.Linear(config.dim, self.encoders.widths[self.owner(name)]) for name in dense})
            if self.mtoe is not None
            else None
        )

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """Ordinal head."""
        return OrdinalHead(width, task.num_classes)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """Pooled features of the branches side by side; zeros for an absent one."""
        parts = [
            torch.where(tokens.present[:, i, None], mean_pool(tokens.maps[name][-1]), 0.0)
            for i, name in enumerate(self.spec.modalities)
        ]
        return Fused(dict.fromkeys(self.spec.task_names, torch.cat(parts, 1)))

    def take(self, fused: Fused, attached: Attached) -> None:
        """Adds the tokens of G_k at the places of the owner's last map to what the decoder of task k reads."""
        assert self.places is not None
        for task, place in self.places.items():
            owner = self.owner(task)
            last = fused.maps[owner][-1]
            added = place(attached.tokens[task][owner]).transpose(1, 2).unflatten(2, last.shape[2:])
            fused.maps = {**fused.maps, owner: [*fused.maps[owner][:-1], last + added]}

    def predict(self, fused: Fused) -> ModelOutput:
        """Class log-probabilities from the cumulative logits, masks from the decoders."""
        output = super().predict(fused)
        for task in self.classification_tasks:
            cumulative = output.logits[task.name]
            output.extras[f"ordinal.{task.name}"] = cumulative
            output.logits[task.name] = class_logits(cumulative)
        return output

    def shared_layer(self) -> nn.Module:
        """The first encoder's last stage, or the experts of the attached MToE."""
        if self.mtoe is not None:
            return self.mtoe.block.mtoe.experts
        last = [module for module in self.encoders.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        return last[-1]


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> EyeStar:
    """Registry entry."""
    return EyeStar(spec, config, experts_factory)
