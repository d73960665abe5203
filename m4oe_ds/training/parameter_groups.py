"""Which parameters are trained with which learning rate and weight decay: ``optim`` and ``model.freeze`` as a table.

The DeepSpeed JSON owns the base values; the configuration names factors by part. Parameters with equal values share a
group, so a configuration that names none has the single group it always had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from m4oe_ds.config import PARTS, OptimConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.interface import MultiModalModel
from m4oe_ds.models.parts import kind_of, part_of
from m4oe_ds.parallel.deepspeed_moe import ep_size_of

_RATES: dict[bool | None, str] = {True: "muon_lr", False: "adam_lr", None: "lr"}


@dataclass
class Group:
    """Parameters with one rate and one decay.

    Attributes:
        lr: base rate, which the schedule multiplies; 0 of frozen parameters.
        weight_decay: weight decay.
        trained: False of frozen parameters.
        parameters: the parameters, in the order of the model; those of experts are this rank's.
        count: values over all experts.
        members: what is in it, such as ``backbone`` or ``norms of backbone``.
        factors: of rate and decay.
    """

    lr: float
    weight_decay: float
    trained: bool = True
    parameters: list[nn.Parameter] = field(default_factory=list)
    count: int = 0
    members: list[str] = field(default_factory=list)
    factors: tuple[float, float] = (1.0, 1.0)

    @property
    def name(self) -> str:
        """Such as ``backbone, heads``."""
        order = {part: number for number, part in enumerate(PARTS)}
        return ", ".join(sorted(self.members, key=lambda member: order[member.rsplit(" ", 1)[-1]]))

    def line(self) -> str:
        """Such as ``  86,000,000 values at rate 1e-05, weight decay 0.05: backbone``."""
        how = f"at rate {self.lr:.3g}, weight decay {self.weight_decay:.3g}" if self.trained else "frozen"
        return f"  {self.count:>13,} values {how}: {self.name}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "parameters": self.count,
            "trained": self.trained,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
        }


def parameter_groups(model: MultiModalModel, optim: OptimConfig, optimizer: Mapping[str, Any]) -> list[Group]:
    """Groups of a model, the frozen one last.

    Args:
        model: before any of its parameters is partitioned.
        optim: factors by part, and kinds of parameters that do not decay.
        optimizer: section of the DeepSpeed JSON, with the base values.

    Raises:
        ConfigError: a part is named that this model does not have.
    """
    parts, kinds, ep_size = part_of(model), kind_of(model), ep_size_of(model)
    if absent := [part for part in optim.parts if part not in parts.values()]:
        has = ", ".join(part for part in PARTS if part in parts.values())
        raise ConfigError(f"this model has no {absent[0]}", f"optim.parts.{absent[0]}", f"it has {has}")
    given = optimizer.get("params", {})
    groups: dict[Any, Group] = {}
    for name, parameter in model.named_parameters():
        part, kind = parts[name], kinds.get(name, "")
        rate, decay = _factors(part, kind, optim, float(given.get("weight_decay", 0.0)))
        muon = _muon(optimizer, name, parameter)
        base = float(given.get(_RATES[muon], given.get("lr", 0.0)))
        key = (rate, decay, muon if rate != 1 else None) if parameter.requires_grad else None
        if key not in groups:
            groups[key] = (
                Group(base * rate, float(given.get("weight_decay", 0.0)) * decay, factors=(rate, decay))
                if parameter.requires_grad
                else Group(0.0, 0.0, trained=False)
            )
        group = groups[key]
        group.parameters.append(parameter)
        group.count += parameter.numel() * (1 if getattr(parameter, "allreduce", True) else ep_size)
        member = f"{kind} of {part}" if kind in optim.no_decay and group.trained and decay == 0 else part
        if member not in group.members:
            group.members.append(member)
    return sorted(groups.values(), key=lambda group: not group.trained)


def _factors(part: str, kind: str, optim: OptimConfig, base_decay: float) -> tuple[float, float]:
    """Factors of rate and decay; where nothing decays, the factor of decay splits no group."""
    given = optim.parts.get(part)
    rate, decay = (1.0, 1.0) if given is None else (given.lr_factor, given.decay_factor)
    if kind in optim.no_decay:
        decay = 0.0
    return rate, decay if base_decay else 1.0


def _muon(optimizer: Mapping[str, Any], name: str, parameter: nn.Parameter) -> bool | None:
    """Whether Muon updates a parameter itself, or its Adam; None with other optimizers. DeepSpeed's own rule."""
    if str(optimizer.get("type", "")).lower() != "muon":
        return None
    return parameter.ndim >= 2 and not any(word in name.lower() for word in ("embed", "lm_head"))


def for_optimizer(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What DeepSpeed is given: values are named only where they differ from those of its JSON."""
    trained = [group for group in groups if group.trained]
    found = []
    for number, group in enumerate(trained):
        rate, decay = group.factors
        made: dict[str, Any] = {"params": group.parameters, "name": "dense" if len(trained) == 1 else f"dense-{number}"}
        if rate != 1:
            made["lr"] = group.lr
        if decay != 1:
            made["weight_decay"] = group.weight_decay
        found.append(made)
    return found


def table(groups: Sequence[Group]) -> str:
    """The groups for the person who starts the run."""
    if len(groups) == 1:
        return groups[0].line().strip()
    return "\n".join(["parameters by learning rate:", *(group.line() for group in groups)])
