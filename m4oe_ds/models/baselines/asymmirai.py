"""AsymMirai: risk from the largest local difference between the two breasts, with the map that shows where it is.

Donnelly et al., "AsymMirai: interpretable mammography-based deep learning model for 1-5-year breast cancer risk
prediction", Radiology 2024. Fidelity: re-implemented from public facts about the released code; nothing copied.
Adapted: one channel matrix and one difference map per modality, so FFDM and synthesised views are compared with their
like; a threshold and a scale per risk horizon, trained by binary cross-entropy on the logit (the release applies a
cross-entropy to probabilities); density and BI-RADS read the content of both breasts. Shards store every breast with
the chest wall on the same side, so the views are aligned as the release assumes. Needs ``data.contralateral: true``.

For data without the other breast ``pairs: cross_type`` compares the FFDM with the synthesised image of the same view
instead. That is another method: its score says how the two image types differ, not how the breasts do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec, follow_ups
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import ASYMMETRY, BOX, HEATMAP, SCORE_LOGITS, WINDOW
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.baselines.encoders import max_pool
from m4oe_ds.models.fit import partner_of
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, Tokens
from m4oe_ds.models.options import AsymMiraiOptions as Options

CONTENT = 256  # width of the vector that density and BI-RADS read
SMALLEST_WINDOW = 3


def window_of(height: int, width: int) -> tuple[int, int]:
    """Window of the difference map: a fifth of each side, at least 3 (or the side itself)."""
    high, wide = (min(side, max(SMALLEST_WINDOW, side // 5)) for side in (height, width))
    return high, wide


def difference_map(own: Tensor, other: Tensor, flexible: bool = True) -> tuple[Tensor, Tensor]:
    """Where two aligned maps differ.

    Args:
        own: ``[B, C, h, w]`` of this side.
        other: ``[B, C, h, w]`` of the other.
        flexible: stride 1 instead of the window's size.

    Returns:
        The largest |own - other| of every channel and window ``[B, C, h', w']``, and its length over the channels, the
        heat-map ``[B, h', w']``.
    """
    window = window_of(*own.shape[2:])
    pooled = functional.max_pool2d((own - other).abs(), window, stride=1 if flexible else window)
    return pooled, pooled.float().square().sum(1).clamp_min(1e-12).sqrt()


class ChannelMatrix(nn.Module):
    """E <- A E at every position, A = I + N(0, 0.01^2) at first.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(width) + 0.01 * torch.randn(width, width))

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, C, h, w] -> [B, C, h, w]``."""
        return torch.einsum("oc,bchw->bohw", self.matrix, maps)


class EventScore(nn.Module):
    """Logits of the risk horizons from one score, (a - mu_k) / tau_k, in float32.

    Args:
        horizons: F.
        threshold: initial mu.
        temperature: initial tau.
    """

    def __init__(self, horizons: int, threshold: float, temperature: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((horizons,), threshold))
        self.temperature = nn.Parameter(torch.full((horizons,), temperature))

    def forward(self, score: Tensor) -> Tensor:
        """``[B] -> [B, F]``."""
        return (score[:, None].float() - self.threshold.float()) / self.temperature.float()


class AsymMirai(ComparedModel):
    """Encoder, channel matrices, difference maps, one score per horizon. See the module's first lines.

    Extras: ``heatmap.<modality> [B, h', w']``, ``window.<modality> [B, 2]`` (row, column of its largest value),
    ``box.<modality> [B, 4]`` (top, left, height, width of that window as shares of the view), ``asymmetry [B, m]``.

    Raises:
        ConfigError: another kind of pairs.
    """

    head_modules = ("heads", "decoders", "score")

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=True)
        self.options = parse_options(Options, config.options, "asymmirai")
        self.partners = [partner_of(name, spec.inputs) for name in spec.modalities]
        width = next(iter(self.encoders.widths.values()))
        self.channels = nn.ModuleDict({name: ChannelMatrix(width) for name in spec.modalities})
        self.event_tasks = tuple(task.name for several in follow_ups(spec.tasks).values() for task in several)
        self.other_tasks = tuple(task.name for task in spec.tasks if task.name not in self.event_tasks)
        # content is read where a task has no score of its own, or where a vector is merged with that of an MToE
        self.content: nn.Module | None = None
        if self.own_fusion and (self.other_tasks or self.mode == "append"):
            self.content = nn.Sequential(nn.Linear(2 * width * len(spec.modalities), CONTENT), nn.ReLU())
        self.score: EventScore | None = None
        if self.own_fusion and self.event_tasks:
            mu = self.options.threshold or 1.5 * width**0.5
            tau = self.options.temperature or 0.25 * width**0.5
            self.score = EventScore(len(self.event_tasks), mu, tau)
        self.finish(CONTENT)

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """A risk task without MToE is its score alone."""
        if self.mode == "none" and task.name in self.event_tasks:
            return nn.Identity()
        return super().make_head(task, width)

    def encode(self, batch: Batch) -> Tokens:
        """Difference map and mean map of the two sides of a pair, side by side as ``[B, C, 1, l]`` per modality.

        A modality without its counterpart has a difference of zero, and its own map as the mean.

        Raises:
            ConfigError: the batch has no contralateral views.
        """
        own = self.encoders(batch.views)
        pairs = self.pairs(batch)
        if self.options.pairs == "cross_type":
            other = {name: own[partner] for name, partner in zip(self.spec.modalities, self.partners, strict=True)}
        else:
            others = {name: batch.extras[f"contralateral.{name}"] for name in self.spec.modalities}
            other = self.encoders({name: view.to(batch.views[name]) for name, view in others.items()})
        maps = {}
        for i, name in enumerate(self.spec.modalities):
            a, b = (self.channels[name](side[name][-1]) for side in (own, other))
            b = torch.where(pairs[:, i, None, None, None], b, a)
            pooled, heat = difference_map(a, b, self.options.flexible)
            joint = torch.cat([pooled.flatten(2), ((a + b) / 2).flatten(2)], 2)[:, :, None]  # [B, C, 1, l]
            maps[name] = [a, heat[:, None], pooled, joint]
        by_modality = {name: stages[-1][:, :, 0].transpose(1, 2) for name, stages in maps.items()}
        return Tokens(by_modality, batch.present, maps)

    def pairs(self, batch: Batch) -> Tensor:
        """Which modalities have both sides of their pair ``[B, m]``.

        Raises:
            ConfigError: the batch has no contralateral views.
        """
        if self.options.pairs == "cross_type":
            places = [self.spec.modalities.index(name) for name in self.partners]
            return batch.present & batch.present[:, places]
        if "contralateral_present" not in batch.extras:
            raise ConfigError("asymmirai needs the other side", "data.contralateral", "set it to true")
        return batch.present & batch.extras["contralateral_present"]

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """Content of both sides for the tasks that read it; scores and heat-maps of the pairs."""
        pairs = self.pairs(batch)
        parts, scores = [], []
        extras: dict[str, Tensor] = {}
        for i, name in enumerate(self.spec.modalities):
            side, heat, pooled, joint = tokens.maps[name]
            here = tokens.present[:, i, None]
            split = pooled.shape[2] * pooled.shape[3]
            mean = joint[:, :, 0, split:].mean(2)
            parts += [torch.where(here, max_pool(pooled), 0.0), torch.where(here, mean, 0.0)]
            score, place = heat[:, 0].flatten(1).max(1)
            scores.append(score)
            columns = heat.shape[3]
            extras[HEATMAP.of(name)] = heat[:, 0]
            extras[WINDOW.of(name)] = torch.stack([place // columns, place % columns], 1)
            extras[BOX.of(name)] = self._box(extras[WINDOW.of(name)], side.shape[2], side.shape[3])
        extras[ASYMMETRY] = torch.stack(scores, 1)  # [B, m]
        features = {}
        if self.content is not None:
            vector = self.content(torch.cat(parts, 1))
            features = dict.fromkeys(self.spec.task_names, vector)
        if self.score is not None:
            weight = pairs.float()
            logit = self.score((extras[ASYMMETRY] * weight).sum(1) / weight.sum(1).clamp_min(1.0))  # [B, F]
            # without any pair there is nothing to say: even odds
            extras[SCORE_LOGITS] = torch.where(pairs.any(1, keepdim=True), logit, 0.0)
        return Fused(features, extras=extras)

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """A risk task's feature is its score; with an appended MToE the score is added to what its head says."""
        if self.mode == "append":
            return super().fuse(tokens, batch)
        if self.mode == "replace":
            fused = super().fuse(tokens, batch)
        else:
            fused = self.combine(tokens, batch)
            for k, name in enumerate(self.event_tasks):
                fused.features[name] = self._two(fused.extras[SCORE_LOGITS][:, k], tokens)
        return fused

    def predict(self, fused: Fused) -> ModelOutput:
        """Logits of every task."""
        output = super().predict(fused)
        if self.mode == "append":
            for k, name in enumerate(self.event_tasks):
                score = fused.extras[SCORE_LOGITS][:, k].to(output.logits[name].dtype)
                output.logits[name] = output.logits[name] + torch.stack([torch.zeros_like(score), score], 1)
        return output

    def _box(self, window: Tensor, height: int, width: int) -> Tensor:
        """``window [B, 2]`` of maps with this number of rows and columns to ``[B, 4]``."""
        size = window.new_tensor(window_of(height, width))
        first = window if self.options.flexible else window * size
        whole = window.new_tensor([height, width])
        return torch.cat([first / whole, (size / whole).expand(len(window), 2)], 1)

    @staticmethod
    def _two(logit: Tensor, tokens: Tokens) -> Tensor:
        """``[B]`` to two-class logits ``[0, logit]`` in the dtype of the features."""
        dtype = next(iter(tokens.by_modality.values())).dtype
        return torch.stack([torch.zeros_like(logit), logit], 1).to(dtype)

    def shared_layer(self) -> nn.Module:
        """The layer of the content, or the experts of the MToE that replaces it, or the encoder's last layer."""
        if isinstance(self.content, nn.Sequential):
            return self.content[0]
        if self.mtoe is not None:
            return self.mtoe.block.mtoe.experts
        return [module for module in self.encoders.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> AsymMirai:
    """Registry entry."""
    return AsymMirai(spec, config, experts_factory)
