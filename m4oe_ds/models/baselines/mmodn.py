"""MModN: a state that one encoder after another updates, read by every task's decoder after every step.

Swamy et al., "MultiModN: multimodal, multi-task, interpretable modular networks", NeurIPS 2023. Fidelity:
re-implemented from public facts about the released network; nothing copied. Adapted: decoders give logits instead of
sigmoids; a modality is skipped for the samples that lack it rather than for the batch; masks are decoded from the
fundus maps and the last state. ``replace`` leaves no state: each decoder reads g_k once; ``append`` merges g_k into the
last state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import STATES, STEP_LOGITS, STEP_ORDER, STEPS
from m4oe_ds.models.baselines.base import ComparedModel, note_maps, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, Tokens
from m4oe_ds.models.options import MModNOptions as Options


class StateSequence(nn.Module):
    """s_0 learned, s_i = Linear([x_i; s_{i-1}]): no residual, no activation.

    Args:
        widths: widths of the modalities' features, in order.
        options: options of MModN.
    """

    CHANGE = 0.01
    drawn: Tensor

    def __init__(self, widths: tuple[int, ...], options: Options) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.randn(options.state))
        self.updates = nn.ModuleList([nn.Linear(width + options.state, options.state) for width in widths])
        self.shuffle = options.shuffle
        if self.shuffle:  # counts the orders drawn: the same on every rank and after a resume
            self.register_buffer("drawn", torch.zeros((), dtype=torch.long))

    def order(self) -> list[int]:
        """Order of the modalities for this batch, equal on all ranks that have seen equally many."""
        count = len(self.updates)
        if not (self.shuffle and self.training):
            return list(range(count))
        generator = torch.Generator().manual_seed(int(self.drawn))
        self.drawn += 1
        return [int(i) for i in torch.randperm(count, generator=generator)]

    def forward(self, features: list[Tensor], present: Tensor, order: list[int]) -> Tensor:
        """``m x [B, F_i]``, ``present [B, m]`` to states ``[m+1, B, S]``; a step without its view changes nothing."""
        state = self.initial.to(features[0].dtype).expand(len(present), -1)
        states = [state]
        for i in order:
            x = torch.where(present[:, i, None], features[i], 0.0)
            state = torch.where(present[:, i, None], self.updates[i](torch.cat([x, state], 1)), state)
            states.append(state)
        return torch.stack(states)

    @classmethod
    def change(cls, states: Tensor, taken: Tensor, valid: Tensor) -> Tensor:
        """0.01 * mean over valid samples and their steps of mean((s_i - s_{i-1})^2); scalar.

        Args:
            states: ``[m+1, B, S]``.
            taken: ``[m, B]`` bool.
            valid: ``[B]`` bool.
        """
        square = (states[1:] - states[:-1]).float().square().mean(2)  # [m, B]
        weight = (taken & valid).to(square.dtype)
        sample = (square * weight).sum(0) / weight.sum(0).clamp_min(1.0)
        return cls.CHANGE * sample.sum() / valid.sum().clamp_min(1)


class MModN(ComparedModel):
    """State sequence and decoders. See the module's first lines.

    Extras: ``step_logits.<task> [m+1, B, C]``, the answers after every step, the last row final; ``steps [m+1, B]``,
    True where a step was taken; ``step_order [m]``, the modality of each step; ``features.<modality>``: the maps that
    enter the fusion.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=False)
        self.options = parse_options(Options, config.options, "mmodn")
        widths = tuple(self.encoders.widths[name] for name in spec.modalities)
        self.sequence = StateSequence(widths, self.options) if self.own_fusion else None
        self.finish(self.options.state)

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """Decoder width -> 32 -> 32 -> C."""
        hidden = self.options.hidden
        return nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, task.num_classes),
        )

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """The last state for every task."""
        assert self.sequence is not None
        order = self.sequence.order()
        features = [mean_pool(tokens.maps[name][-1]) for name in self.spec.modalities]
        states = self.sequence(features, tokens.present, order)
        taken = tokens.present[:, order].T  # [m, B]
        fused = Fused(dict.fromkeys(self.spec.task_names, states[-1]))
        fused.extras[STATES] = states
        fused.extras[STEPS] = torch.cat([torch.ones_like(taken[:1]), taken])
        fused.extras[STEP_ORDER] = torch.tensor(order, device=states.device)
        if self.options.change > 0:
            fused.aux["state_change"] = self.options.change * self.sequence.change(states, taken, batch.valid)
        return fused

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """As the base class, with the maps that enter the fusion noted."""
        fused = super().fuse(tokens, batch)
        note_maps(fused, tokens)
        return fused

    def predict(self, fused: Fused) -> ModelOutput:
        """Logits after every step; the last row is the answer."""
        output = super().predict(fused)
        states = fused.extras.get(STATES)
        if states is not None:
            for task in self.vector_tasks:
                earlier = self.heads[task.name](states[:-1])  # [m, B, C]
                output.extras[STEP_LOGITS.of(task.name)] = torch.cat([earlier, output.logits[task.name][None]])
        return output

    def shared_layer(self) -> nn.Module:
        """The last update of the state, or the experts of the MToE that replaces it."""
        if self.sequence is not None:
            return self.sequence.updates[-1]
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> MModN:
    """Registry entry."""
    return MModN(spec, config, experts_factory)
