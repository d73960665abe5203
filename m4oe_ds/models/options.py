"""Options of the compared systems (``model.options``): type, default, meaning and bounds. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m4oe_ds.config_fields import option

_HEADS = "Attention heads."


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a system without options of its own."""


@dataclass(frozen=True, kw_only=True)
class AideOptions:
    """Options of AIDE."""

    fusion: Literal["adaptive", "cross_attention"] = option("adaptive", "How the views are fused.")
    hidden: int = option(512, "Width of view features and of the fused vector; a multiple of `heads`.", at_least=1)
    heads: int = option(8, _HEADS, at_least=1)
    feedforward: int = option(2048, "Hidden width of the transformer layer.", at_least=1)
    dropout: float = option(0.1, "Dropout of the transformer layer.", at_least=0, below=1)
    head_dropout: float = option(0.3, "Dropout before the heads.", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class AsymMiraiOptions:
    """Options of AsymMirai."""

    pairs: Literal["bilateral", "cross_type"] = option(
        "bilateral", "Compare the two sides of a view, or two types of image of one side."
    )
    flexible: bool = option(True, "Windows at every position (the released run) instead of side by side.")
    threshold: float = option(
        0.0,
        "Initial mu of the score; 0 = 1.5 times the root of the channels, which suits features of unit variance (the "
        "release starts at 2000 on its own, un-normalised features).",
        at_least=0,
    )
    temperature: float = option(
        0.0,
        "Initial tau of the score; 0 = 0.25 times the root of the channels (the release starts at 300).",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class EvifOptions:
    """Options of EVIF."""

    heads: int = option(8, "Heads of the cross-attention; must divide `model.dim`.", at_least=1)
    private: float = option(0.1, "Weight of the upper bound.", at_least=0)
    fused: float = option(0.1, "Weight of the lower bound.", at_least=0)
    temperature: float = option(0.07, "Temperature of InfoNCE.", above=0)
    estimator_lr: float = option(1e-3, "Learning rate of the inner level.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class EyemostOptions:
    """Options of EyeMoSt and its loss."""

    fusion: Literal["nig", "dirichlet"] = option("nig", "Mixture of Student's t, or of Dirichlet opinions.")
    plus: bool = option(False, "Add the confidence ranking of EyeMoSt+.")
    squared_scale: bool = option(
        False, "Put the squared scale where the t likelihood has the scale, as the released code does."
    )
    source_entropy: float = option(0.01, "Weight of the cross-entropy of every source.", at_least=0)
    fused_entropy: float = option(0.5, "Weight of the cross-entropy of the fused answer.", at_least=0)
    ranking: float = option(
        160.0,
        "Weight of the confidence ranking per sample: the original's 10 for the sum over its batch of 16, where every "
        "other term is a mean.",
        at_least=0,
    )
    kl: float = option(1.0, "Weight of the KL divergence of the Dirichlet loss.", at_least=0)
    kl_epochs: int = option(50, "Epochs in which it rises from 0 to that.", at_least=1)
    hidden: int = option(64, "Width of an evidential head.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class EyeStarOptions:
    """Options of EyeStar."""

    crop: float = option(
        0.0,
        "Side of the crop that grading reads, as a multiple of the box around the predicted mask (4 times the inner "
        "structure is about twice the outer one); 0 = the whole image. Needs a mask task, and the system's own fusion.",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class FullerOptions:
    """Options of FULLER."""

    heads: int = option(8, "Attention heads of the trunk; must divide `model.dim`.", at_least=1)
    mlp_ratio: float = option(4.0, "Hidden width of the trunk in units of `model.dim`.", above=0)


@dataclass(frozen=True, kw_only=True)
class MiraiOptions:
    """Options of Mirai."""

    hidden: int = option(512, "Width of the aggregator; a multiple of `heads`.", at_least=1)
    heads: int = option(8, "Attention heads of the aggregator.", at_least=1)
    dropout: float = option(0.0, "Dropout of the aggregator.", at_least=0, below=1)
    pool: Literal["max", "mean"] = option("max", "How a map becomes a vector.")


@dataclass(frozen=True, kw_only=True)
class MModNOptions:
    """Options of MModN."""

    state: int = option(50, "Width S of the state.", at_least=1)
    hidden: int = option(32, "Width of a decoder's two hidden layers.", at_least=1)
    change: float = option(
        0.0,
        "Weight of 0.01 * mean squared change of the state per step (the published recipe on clinical data: 0).",
        at_least=0,
    )
    shuffle: bool = option(
        False, "Another order of the encoders in every training batch; evaluation keeps the data set's order."
    )


@dataclass(frozen=True, kw_only=True)
class SoftMoEOptions:
    """Options of the multi-modal Soft-MoE."""

    depth: int = option(2, "Blocks.", at_least=1)
    task_slots: bool = option(False, "A slot per task in the last block.")


OPTIONS: dict[str, type] = {
    "m4oe": NoOptions,
    "aide": AideOptions,
    "asymmirai": AsymMiraiOptions,
    "evif": EvifOptions,
    "eyemost": EyemostOptions,
    "eyestar": EyeStarOptions,
    "fuller": FullerOptions,
    "mirai": MiraiOptions,
    "mmodn": MModNOptions,
    "soft_moe": SoftMoEOptions,
}
"""The options of every registered system, by its name."""
_HEADS_OF_DIM = ("evif", "fuller")  # others divide their own width


def clash(name: str, options: object, dim: int) -> str:
    """What two options of a system, or one of them and ``model.dim``, say against each other; empty if nothing.

    Args:
        name: of the system.
        options: its options, of their dataclass.
        dim: ``model.dim``.
    """
    heads: int | None = getattr(options, "heads", None)
    if heads is None:
        return ""
    width = dim if name in _HEADS_OF_DIM else int(getattr(options, "hidden", dim))
    what = f"model.dim={width}" if name in _HEADS_OF_DIM else f"model.options.hidden={width}"
    if width % heads:
        near = ", ".join(str(number) for number in range(1, 65) if width % number == 0)
        return f"model.options.heads={heads} does not divide {what}; choose one of {near}"
    return f"model.dim={dim} must be even for {name}" if name == "evif" and dim % 2 else ""
