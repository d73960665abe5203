"""What every embedder has in common, and networks of timm by name, from random, local or hub weights."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from m4oe_ds.compat import import_torchvision
from m4oe_ds.config import EmbedderConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.backbone_names import FIXED
from m4oe_ds.models.pretrained import OPTION, judged, match, read_state
from m4oe_ds.yaml_tree import nearest

import_torchvision()
import timm  # noqa: E402  (needs the operators declared first)

OPTIONS = "model.embedder.options"


class TokenEmbedder(nn.Module):
    """One modality's tensor to tokens ``[B, l, d]``.

    Attributes:
        num_prefix_tokens: tokens without a place, such as the class token; they come first.
        is_transformer: whether the other tokens are patches of one size.
    """

    num_prefix_tokens: int = 0
    is_transformer: bool = False

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along every axis of an image or volume, whose tokens go row by row; empty for all others."""
        return ()

    def networks(self) -> tuple[nn.Module, ...]:
        """What weights can be loaded for; nothing by default."""
        return ()

    def freeze(self) -> None:
        """Excludes the networks from training."""
        for network in self.networks():
            network.requires_grad_(False)


def create_backbone(config: EmbedderConfig, channels: int, image_size: tuple[int, int]) -> Any:
    """A network of timm without its classifier; timm gives its networks no typed base.

    Args:
        config: name, options, weights.
        channels: input channels.
        image_size: height and width.

    Raises:
        ConfigError: unknown backbone, weights that do not exist, do not fit, or cannot be downloaded.
    """
    if not timm.is_model(config.backbone):
        name = config.backbone
        near = sorted(timm.list_models(), key=lambda known: -_alike(name, known))[:5]
        fix = f"near: {', '.join(near)}; timm.list_models() has all"
        raise ConfigError(f"timm has no model {config.backbone!r}", "model.embedder.backbone", fix)
    options = dict(config.options, num_classes=0, global_pool="", in_chans=channels)
    known = timm.get_pretrained_cfg(config.backbone)
    if known is not None and known.fixed_input_size:
        options["img_size"] = tuple(image_size)
    try:
        if not config.weights:
            return timm.create_model(config.backbone, **options)
        if config.weights == "hub":
            return _from_hub(config.backbone, options)
        return _from_file(config, options)
    except (TypeError, AssertionError, ValueError, ZeroDivisionError, IndexError, KeyError, AttributeError) as error:
        raise _refused(config, error) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        if not config.weights:
            if config.options:
                raise _refused(config, error) from error
            raise
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        fix = (
            f"the hub needs a network: download {_address(config.backbone)} elsewhere and give their path"
            if config.weights == "hub"
            else "the file must hold a state dict of this backbone (safetensors or weights-only .pth)"
        )
        raise ConfigError(f"cannot load {config.weights} for {config.backbone}: {cause}", OPTION, fix) from error


def _address(backbone: str) -> str:
    """Where timm finds the weights of a backbone."""
    known = timm.get_pretrained_cfg(backbone)
    if known is not None and known.hf_hub_id:
        return f"the weights (model.safetensors of https://huggingface.co/{known.hf_hub_id})"
    return f"the weights ({known.url})" if known is not None and known.url else "the weights"


def check_options(config: EmbedderConfig, image_size: tuple[int, int]) -> None:
    """Makes the network without memory for its values, which is quick.

    Raises:
        ConfigError: an option that it does not have (with those it has), or values that it refuses.
    """
    with torch.device("meta"):
        create_backbone(dataclasses.replace(config, weights=""), 1, image_size)


def _refused(config: EmbedderConfig, error: Exception) -> ConfigError:
    """What timm said of the options, with those that the network has where it does not know one."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None:
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        given = ", ".join(f"{name}: {value}" for name, value in config.options.items())
        return ConfigError(f"{config.backbone} cannot be made with {{{given}}}: {told}", OPTIONS)
    with torch.device("meta"):
        network = type(timm.create_model(config.backbone))
    known = [name for name in inspect.signature(network).parameters if name not in (*FIXED, "kwargs", "args")]
    what = f"{config.backbone} has no option {unknown[1]!r}{nearest(unknown[1], known)}"
    return ConfigError(what, f"{OPTIONS}.{unknown[1]}")


def _alike(name: str, known: str) -> float:
    """Likeness of a name to the beginning of a longer one."""
    return difflib.SequenceMatcher(None, name, known[: len(name)]).ratio()


def _from_hub(backbone: str, options: dict[str, Any]) -> Any:
    """A network with the values that timm downloads, of which none may be missing.

    timm does not say what it took: it loads without ``strict`` whatever is left once its own filter has renamed and
    resized the tensors, so the call that loads them is listened to.

    Raises:
        ConfigError: a tensor of the network is not among them, or timm loads them in a way that nobody can judge.
    """
    with torch.device("meta"):
        kind = type(timm.create_model(backbone, **options))
    taken: list[tuple[nn.Module, Any]] = []

    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = usual(self, *args, **kwargs)
        taken.append((self, result))
        return result

    usual, own = kind.load_state_dict, "load_state_dict" in vars(kind)
    kind.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        network: Any = timm.create_model(backbone, pretrained=True, **options)
    finally:
        if own:
            kind.load_state_dict = usual  # type: ignore[method-assign]
        else:
            del kind.load_state_dict
    results = [result for module, result in taken if module is network]
    if not results:
        fix = f"download {_address(backbone)} and give their path"
        raise ConfigError(f"timm has a loader of its own for {backbone}, which tells nothing", OPTION, fix)
    network.loaded = judged(network, results[-1].missing_keys, results[-1].unexpected_keys, backbone)
    return network


def _from_file(config: EmbedderConfig, options: dict[str, Any]) -> Any:
    """A network with the values of a file, which timm fits to its image size and channels."""
    path = Path(config.weights)
    state = read_state(path)
    named, loaded = match(state, timm.create_model(config.backbone, **options), path.name, config.backbone)
    network: Any = timm.create_model(
        config.backbone, pretrained=True, pretrained_cfg_overlay={"state_dict": named}, **options
    )
    for name, value in network.state_dict().items():
        given = named.get(name)
        if given is not None and given.shape == value.shape and not torch.equal(given.to(value.dtype), value):
            raise ConfigError(f"{name} of {path} did not arrive in {config.backbone}", OPTION, "report this")
    network.loaded = loaded
    return network
