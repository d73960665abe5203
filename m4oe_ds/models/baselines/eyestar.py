"""EyeStar: fundus and OCT branches, ordinal grading of their joint features, a U-Net decoder on the fundus branch.

A finalist of the GAMMA challenge (Wu et al., "GAMMA challenge: glaucoma grading from multi-modality images", Medical
Image Analysis 2023). Fidelity: reconstructed. Its architecture is not public; this is the challenge's public grading
baseline (two ResNet-34, the OCT's B-scans as channels, pooled and concatenated) with the ingredients the report names
for the leading teams: ordinal regression with a shared slope, segmentation with skip connections, and, as an option,
grading of a crop around what was segmented. One network does both tasks; by default grading reads the whole fundus.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import CROP, ORDINAL
from m4oe_ds.models.baselines.attached import Attached
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, Tokens
from m4oe_ds.models.options import EyeStarOptions as Options

SMALLEST_CROP = 0.125  # of the image's side


class OrdinalHead(nn.Module):
    """Cumulative logits with one slope: w . f + b_c, b_1 >= b_2 >= ..

    Args:
        width: width of f.
        classes: K.
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


def crop_around(image: Tensor, mask: Tensor, multiple: float) -> tuple[Tensor, Tensor]:
    """A crop of the image's own shape around a mask, resampled to the image's size; all of it where the mask is empty.

    Args:
        image: ``[B, C, H, W]``.
        mask: ``[B, 1, H, W]`` bool.
        multiple: side of the crop as a multiple of the mask's larger extent, both relative to the image.

    Returns:
        The crop ``[B, C, H, W]``, which never leaves the image, and its centre (x, y from -1 to 1) and side (share of
        the image's, at least ``SMALLEST_CROP``) ``[B, 3]``.
    """
    ends = []
    for hit in (mask[:, 0].any(1), mask[:, 0].any(2)):  # columns [B, W], rows [B, H]
        size = hit.shape[1]
        place = torch.arange(size, device=hit.device)
        low, high = torch.where(hit, place, size).amin(1), torch.where(hit, place, -1).amax(1) + 1
        ends.append(((low + high) / size - 1.0, (high - low) / size))  # centre, extent
    (x, wide), (y, tall) = ends
    side = (multiple * torch.maximum(wide, tall)).clamp(SMALLEST_CROP, 1.0)
    side = torch.where(mask.flatten(1).any(1), side, 1.0)
    x, y = (torch.minimum(torch.maximum(centre, side - 1.0), 1.0 - side) for centre in (x, y))
    zero = torch.zeros_like(side)
    theta = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)  # [B, 2, 3]
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    crop = functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
    return crop.to(image.dtype), torch.stack([x, y, side], 1)


class EyeStar(ComparedModel):
    """Two branches, ordinal heads, mask decoder. See the module's first lines.

    Extras: ``ordinal.<task> [B, K-1]``, the cumulative logits that the loss reads; ``crop [B, 3]``, see
    :func:`crop_around`, with that option.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet34", share=False)
        self.options = parse_options(Options, config.options, "eyestar")
        width = sum(self.encoders.widths[name] for name in spec.modalities)
        self.finish(width)
        # with an attached MToE the decoder also gets the task's tokens at the places of the fundus
        dense = [task.name for task in spec.tasks if task.dense]
        if self.options.crop and (not dense or not self.own_fusion):
            what = (
                "a crop needs a mask to be predicted" if not dense else "a crop is part of the fusion that is replaced"
            )
            raise ConfigError(what, "model.options", "set crop: 0")
        self.cropped_by = dense[0] if self.options.crop else ""
        self.places = (
            nn.ModuleDict({name: nn.Linear(config.dim, self.encoders.widths[self.owner(name)]) for name in dense})
            if self.mtoe is not None
            else None
        )

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """Ordinal head.

        Raises:
            ConfigError: the task has no classes.
        """
        if not task.coded:
            raise ConfigError(f"eyestar grades, it does not answer the {task.kind} task {task.name}", "model.name")
        return OrdinalHead(width, task.num_classes)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """Pooled features of the branches side by side; zeros for an absent one.

        Grades read the crop if there is one.
        """
        whole = self._side_by_side(tokens.maps, tokens.present)
        fused = Fused(dict.fromkeys(self.spec.task_names, whole))
        if self.cropped_by:
            owner = self.owner(self.cropped_by)
            with torch.no_grad():  # where to look; the decoder learns from its own loss
                mask = self.decoders[self.cropped_by](tokens.maps[owner], whole) > 0
            image, fused.extras[CROP] = crop_around(batch.views[owner], mask, self.options.crop)
            graded = self._side_by_side({**tokens.maps, owner: self.encoders.one(owner, image)}, tokens.present)
            fused.features |= {task.name: graded for task in self.vector_tasks}
        return fused

    def _side_by_side(self, maps: Mapping[str, list[Tensor]], present: Tensor) -> Tensor:
        parts = [
            torch.where(present[:, i, None], mean_pool(maps[name][-1]), 0.0)
            for i, name in enumerate(self.spec.modalities)
        ]
        return torch.cat(parts, 1)

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
        for task in self.vector_tasks:
            cumulative = output.logits[task.name]
            output.extras[ORDINAL.of(task.name)] = cumulative
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
