"""What every embedder has in common, and networks of timm by name, from random, local or hub weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from m4oe_ds.compat import import_torchvision
from m4oe_ds.config import EmbedderConfig
from m4oe_ds.errors import ConfigError

import_torchvision()
import timm  # noqa: E402  (needs the operators declared first)


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

    def freeze(self) -> None:
        """Excludes from training what weights can be loaded for; nothing by default."""


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
        near = timm.list_models(f"*{config.backbone.split('_')[0]}*")[:5]
        raise ConfigError(
            f"timm has no model {config.backbone!r}",
            "model.embedder.backbone",
            f"near: {', '.join(near)}" if near else "see timm.list_models()",
        )
    options = dict(config.options, num_classes=0, global_pool="", in_chans=channels)
    known = timm.get_pretrained_cfg(config.backbone)
    if known is not None and known.fixed_input_size:
        options["img_size"] = tuple(image_size)
    if config.weights and config.weights != "hub":
        if not Path(config.weights).is_file():
            raise ConfigError(f"no such weights file {config.weights}", "model.embedder.weights")
        options["pretrained_cfg_overlay"] = {"file": config.weights}
    try:
        return timm.create_model(config.backbone, pretrained=bool(config.weights), **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"timm refuses these options: {error}", "model.embedder.options") from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        if not config.weights:
            raise
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        fix = (
            "the hub needs a network: download the weights elsewhere and give their path"
            if config.weights == "hub"
            else "the file must hold a state dict of this backbone (safetensors or weights-only .pth)"
        )
        raise ConfigError(
            f"cannot load {config.weights} for {config.backbone}: {cause}", "model.embedder.weights", fix
        ) from error
