"""EyeMoSt and EyeMoSt+: Normal-Inverse-Gamma evidence per modality, fused as a mixture of Student's t distributions.

Zou et al., "Reliable multimodality eye disease screening via mixture of Student's t distributions", MICCAI 2023; Zou et
al., "Confidence-aware multi-modality learning for eye disease screening", Medical Image Analysis 2024 (option
``plus``). Fidelity: re-implemented from public facts about the released network; nothing copied. Adapted: one set of
evidential heads per task over encoders that all tasks share; two to four modalities; a mask is decoded from the fundus
maps and a mean of projected modality vectors, since the original has no fused vector; Res2Net-50d of timm stands for
Res2Net-50-v1b; the 3-D map becomes the published 8192 features by a mean over 2 x 4 x 2 places, which their number and
the size of the published volume imply. ``append`` lets the features g_k join the fusion as one more source, ``replace``
leaves them as the only one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.evidence import (
    NIG,
    EvidentialOptions,
    fuse_dirichlet,
    fuse_student_t,
    nig_from_logits,
    student_t,
    t_variance,
)
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import EVIDENCE, SOURCES, UNCERTAINTY
from m4oe_ds.models.baselines.base import ComparedModel, masked_mean, note_maps, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.baselines.volumes import flatten_grid, is_volume
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, Tokens
from m4oe_ds.models.options import EyemostOptions

ATTACHED = "mtoe"  # name of the source that an attached MToE is


@dataclass(frozen=True)
class Options(EvidentialOptions):
    """Options of EyeMoSt: those of its loss, and ``hidden``, the width of an evidential head."""

    hidden: int = 64


class EvidentialHeads(nn.Module):
    """Evidence of every source about one task.

    Args:
        widths: widths of the sources' features.
        classes: K.
        options: options of the model.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, options: Options) -> None:
        super().__init__()
        self.dirichlet = options.fusion == "dirichlet"
        parameters = ("evidence",) if self.dirichlet else NIG._fields
        self.sources = nn.ModuleDict(
            {
                source: nn.ModuleDict(
                    {
                        name: nn.Sequential(
                            nn.ReLU(), nn.Linear(width, options.hidden), nn.ReLU(), nn.Linear(options.hidden, classes)
                        )
                        for name in parameters
                    }
                )
                for source, width in widths.items()
            }
        )

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Evidence of the sources, constant where absent.

        Args:
            features: ``{source: [B, F]}``.
            present: ``[B, S]`` bool, in the order of the sources.

        Returns:
            ``[B, S, 4, C]`` NIG parameters, or ``[B, S, C]`` Dirichlet parameters; float32.
        """
        raw = torch.stack(
            [
                torch.stack([head(features[s]) for head in cast(nn.ModuleDict, heads).values()], 1)
                for s, heads in self.sources.items()
            ],
            1,
        )  # [B, S, 4 or 1, C]
        raw = torch.where(present[:, :, None, None], raw, 0.0).float()
        if self.dirichlet:
            return nn.functional.softplus(raw.squeeze(2)) + 1.0
        return torch.stack(nig_from_logits(raw), 2)


class EyeMoSt(ComparedModel):
    """Per-modality evidence, fused by how sure each modality is. See the module's first lines.

    Extras: ``evidence.<task>`` and ``sources`` (see :class:`m4oe_ds.losses.evidential.EvidentialLoss`),
    ``uncertainty.<task> [B]``: variance of the predicted class's t distribution, or K / S of the Dirichlet,
    ``features.<modality>``: the maps that enter the fusion.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        native = {
            name: "volume_resnet10" if is_volume(channels) else "res2net50d"
            for name, channels in zip(spec.modalities, spec.channels, strict=True)
        }
        super().__init__(spec, config, experts_factory, native=native, share=False)
        self.options = Options(**dataclasses.asdict(parse_options(EyemostOptions, config.options, "eyemost")))
        self.volumes = {
            name for name, backbone in native.items() if config.regime == "native" and backbone == "volume_resnet10"
        }
        positions = {name: 16 if name in self.volumes else 1 for name in spec.modalities}
        self.source_widths: dict[str, int] = {}
        if self.own_fusion:
            self.source_widths |= {name: positions[name] * self.encoders.widths[name] for name in spec.modalities}
        modality_widths = dict(self.source_widths)
        if self.mtoe is not None:
            self.source_widths[ATTACHED] = config.dim
        masks = any(task.dense for task in spec.tasks)
        self.project = (
            nn.ModuleDict({name: nn.Linear(width, config.dim) for name, width in modality_widths.items()})
            if masks and self.own_fusion
            else None
        )
        self.finish(config.dim)
        if self.merge is not None:  # g_k is a source of evidence, not merged; masks have no evidence
            for task in self.vector_tasks:
                del self.merge[task.name]

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """One set of evidential heads per source.

        Raises:
            ConfigError: the task has no classes.
        """
        if not task.coded:
            raise ConfigError(
                f"eyemost weighs evidence for classes, it does not answer the {task.kind} task {task.name}",
                "model.name",
            )
        return EvidentialHeads(self.source_widths, task.num_classes, self.options)

    def _vectors(self, tokens: Tokens) -> dict[str, Tensor]:
        """One vector per modality ``[B, F]``, zero where absent."""
        vectors = {}
        for i, name in enumerate(self.spec.modalities):
            maps = tokens.maps[name][-1]
            vector = flatten_grid(maps) if name in self.volumes else mean_pool(maps)
            vectors[name] = torch.where(tokens.present[:, i, None], vector, 0.0)
        return vectors

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """What mask decoders read; classification fuses evidence, not vectors."""
        if self.project is None:
            return Fused({})
        vectors = self._vectors(tokens)
        each = torch.stack([self.project[name](vectors[name]) for name in self.spec.modalities], 1)  # [B, m, d]
        return Fused(dict.fromkeys(self.spec.task_names, masked_mean(each, tokens.present)))

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """Features of a classification task become the location of its fused distribution (or log Dirichlet
        parameters).
        """
        fused = self.combine(tokens, batch) if self.own_fusion else Fused({})
        fused.maps = tokens.maps
        sources: dict[str, Tensor] = self._vectors(tokens) if self.own_fusion else {}
        present = [tokens.present] if self.own_fusion else []
        attached: dict[str, Tensor] = {}
        if self.mtoe is not None:
            found = self.mtoe({name: stages[-1] for name, stages in tokens.maps.items()}, tokens.present)
            fused.routing["mtoe"], fused.modality_of_token = found.routing, found.modality_of_token
            attached = found.features
            present.append(tokens.present.any(1, keepdim=True))
        fused.extras[SOURCES] = torch.cat(present, 1)
        note_maps(fused, tokens)
        for task in self.spec.tasks:
            g = attached.get(task.name)
            if task.coded:
                fused.features[task.name] = self._answer(task.name, sources, g, fused.extras)
            elif g is not None:
                own = fused.features.get(task.name)
                fused.features[task.name] = (
                    g if self.merge is None or own is None else self.merge[task.name](torch.cat([own, g], 1))
                )
        return fused

    def _answer(self, task: str, sources: dict[str, Tensor], g: Tensor | None, extras: dict[str, Tensor]) -> Tensor:
        """Fuses the sources' evidence about a task, notes it and its uncertainty, returns logits ``[B, C]``."""
        present = extras[SOURCES]
        if g is not None:
            sources = {**sources, ATTACHED: g}
        evidence: Tensor = self.heads[task](sources, present)
        extras[EVIDENCE.of(task)] = evidence
        if self.options.fusion == "dirichlet":
            alpha = fuse_dirichlet(evidence, present)
            extras[UNCERTAINTY.of(task)] = alpha.shape[1] / alpha.sum(1)
            return alpha.log()  # soft-max gives the expected probabilities alpha / S
        t = fuse_student_t(student_t(NIG(*evidence.unbind(2))), present)
        extras[UNCERTAINTY.of(task)] = t_variance(t).gather(1, t.location.argmax(1, keepdim=True)).squeeze(1)
        return t.location

    def predict(self, fused: Fused) -> ModelOutput:
        """Logits: the fused location as it is, masks from their decoders."""
        logits = {
            task.name: fused.features[task.name]
            if task.coded
            else self.decoders[task.name](fused.maps[self.owner(task.name)], fused.features[task.name])
            for task in self.spec.tasks
        }
        return ModelOutput(logits, fused.routing, fused.aux, fused.modality_of_token, fused.extras)

    def shared_layer(self) -> nn.Module:
        """The first modality's encoder, where all tasks part, or the experts of the MToE that takes part in all of
        them.
        """
        if self.mtoe is not None:
            return self.mtoe.block.mtoe.experts
        name = self.spec.modalities[0]
        if self.config.regime == "native":
            return _last_with_parameters(self.encoders.encoder(name).backbone)
        return _last_with_parameters(self.encoders.encoder(name))


def _last_with_parameters(module: nn.Module) -> nn.Module:
    """The last leaf that has weights of two or more dimensions: a linear layer or a convolution."""
    layers = [leaf for leaf in module.modules() if any(p.ndim > 1 for p in leaf.parameters(recurse=False))]
    return layers[-1]


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> EyeMoSt:
    """Registry entry."""
    return EyeMoSt(spec, config, experts_factory)
