"""Parts of a model by name, for rates, weight decay and freezing: the same for every system.

``backbone``: the networks of the embedders, for which weights can be loaded. ``experts``: the MLPs of mixture layers.
``router``: their routers. ``heads``: what makes the logits of a task from its features. ``other``: all the rest, such
as attention, projections and embeddings of modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from m4oe_ds.config import PARTS
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertWeights
from m4oe_ds.layers.routing import Router
from m4oe_ds.models.backbones import TokenEmbedder
from m4oe_ds.models.interface import MultiModalModel

BACKBONE, ROUTER, EXPERTS, HEADS, OTHER = PARTS
_SCALES = ("scale", "gamma", "temperature", "logit_scale")
_EMBEDDINGS = ("embed", "token", "position", "prefix", "missing")  # in the name of a parameter


def part_of(model: MultiModalModel) -> dict[str, str]:
    """``{parameter: part}`` of every parameter of a model."""
    found = {id(parameter): part for part, module in _modules(model) for parameter in module.parameters()}
    return {name: found.get(id(parameter), OTHER) for name, parameter in model.named_parameters()}


def _modules(model: MultiModalModel) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose parameters are all of one part; what comes later wins."""
    for name in model.head_modules:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            yield HEADS, head
    for module in model.modules():
        if isinstance(module, TokenEmbedder):
            for network in module.networks():
                yield BACKBONE, network
    for module in model.modules():
        if isinstance(module, Router):
            yield ROUTER, module
        if isinstance(module, ExpertWeights):
            yield EXPERTS, module


def layer_name(path: str) -> str:
    """The name of a mixture layer in logs and figures, from the path of its module: that of its routing.

    ``msoe.<modality>.blocks.0.mlp`` is called ``msoe.<modality>.0``; the layer with slots for tasks ``mtoe``.
    """
    parts = [part for part in path.split(".") if part not in ("blocks", "mlp")]
    return "mtoe" if parts[-1] == "mtoe" else ".".join(parts)


def kind_of(model: nn.Module) -> dict[str, str]:
    """``{parameter: norms, biases, scales or embeddings}``; weights are left out."""
    kinds = {}
    for path, module in model.named_modules():
        named = set(module.no_weight_decay()) if callable(getattr(module, "no_weight_decay", None)) else set()
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            size = getattr(parameter, "ds_numel", parameter.numel())
            if kind := _kind(module, name, leaf, size):
                kinds[name] = kind
        for inner in named:  # timm says so of its positions and prefix tokens
            kinds.setdefault(f"{path}.{inner}" if path else inner, "embeddings")
    known = {name for name, _ in model.named_parameters()}
    return {name: kind for name, kind in kinds.items() if name in known}


def _kind(module: nn.Module, name: str, leaf: str, size: int) -> str:
    if "norm" in type(module).__name__.lower():
        return "norms"
    if leaf == "bias" or leaf.endswith("_bias") or (isinstance(module, ExpertWeights) and leaf == "w3"):
        return "biases"  # w3 of experts packs their two biases
    if leaf in _SCALES or size == 1 or type(module).__name__ == "LayerScale":
        return "scales"
    owner = name.rsplit(".", 2)[-2] if isinstance(module, nn.ParameterDict) else leaf
    if isinstance(module, nn.Embedding) or any(word in owner for word in _EMBEDDINGS):
        return "embeddings"
    return ""


def freeze(model: MultiModalModel, parts: Sequence[str]) -> None:
    """Excludes parts from training.

    Args:
        model: of any system, before an optimizer is made.
        parts: their names.

    Raises:
        ConfigError: the model has nothing of a part, or nothing else.
    """
    owner = part_of(model)
    present = set(owner.values())
    for part in parts:
        if part not in present:
            has = ", ".join(name for name in PARTS if name in present)
            raise ConfigError(f"this model has no {part}", "model.freeze", f"it has {has}")
    for name, parameter in model.named_parameters():
        if owner[name] in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("nothing is left to train", "model.freeze", "leave a part out of it")


def frozen_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """The largest modules that have parameters, none of which is trained."""
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return (model,)
    return tuple(module for child in model.children() for module in frozen_modules(child))
