"""Weights of a backbone from a file, judged by what of it fits: never by the absence of an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from m4oe_ds.errors import ConfigError

OPTION = "model.embedder.weights"
_WRAPPERS = ("state_dict", "model", "teacher", "student", "model_state_dict", "model_ema", "state_dict_ema", "module")
_SHOWN = 4


@dataclass(frozen=True)
class Loaded:
    """What a backbone took from a file.

    Attributes:
        source: name of the file, or ``hub``.
        loaded: number of tensors taken.
        of: number of tensors the backbone has.
        prefix: what every name of them began with in the file.
        left_out: names in the file that the backbone has no place for.
    """

    source: str
    loaded: int
    of: int
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def line(self) -> str:
        """Such as ``150 of 150 tensors from dino.pth (names began with 'backbone.'), 8 left out: head.mlp.0.bias``."""
        text = f"{self.loaded} of {self.of} tensors from {self.source}"
        text += f" (names began with {self.prefix!r})" if self.prefix else ""
        return text + (f", {len(self.left_out)} left out: {shown(self.left_out)}" if self.left_out else "")

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = {"source": self.source, "loaded": self.loaded, "of": self.of, "prefix": self.prefix}
        return {**found, "left_out": len(self.left_out)}


def _by_source(model: nn.Module) -> dict[Loaded, list[str]]:
    """What networks of a model were loaded with, and the modalities whose networks they are."""
    found: dict[Loaded, list[str]] = {}
    for path, module in model.named_modules():
        loaded = getattr(module, "loaded", None)
        if isinstance(loaded, Loaded):
            _, _, below = path.rpartition("by_modality.")
            found.setdefault(loaded, []).append(below.split(".", 1)[0])
    return found


def lines(model: nn.Module) -> list[str]:
    """A line per source of pretrained weights, such as ``fundus, oct: 150 of 150 tensors from dino.pth``."""
    return [f"{', '.join(names)}: {loaded.line()}" for loaded, names in _by_source(model).items()]


def records(model: nn.Module) -> list[dict[str, Any]]:
    """The same for ``environment.json``: name of the file, not its path."""
    return [{"modalities": names, **loaded.as_dict()} for loaded, names in _by_source(model).items()]


def shown(names: tuple[str, ...] | list[str]) -> str:
    """The first names of a list."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or a checkpoint of torch; no code of the file is run.

    Raises:
        ConfigError: no such file, not readable, or without tensors.
    """
    if not path.is_file():
        raise ConfigError(f"no such weights file {path}", OPTION, "name one that exists, or leave it empty")
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except Exception as error:  # whatever a reader of damaged bytes raises
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"cannot read {path}: {cause}", OPTION, "give a safetensors file, or a .pth of tensors"
        ) from None
    return _tensors(content, path)


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise ValueError("it holds more than tensors, or nothing that torch wrote") from None
        raise


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict within a checkpoint, however deep it is wrapped."""
    while isinstance(content, Mapping):
        found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None or len(found) > len(inner):
            if found:
                return found
            break
        content = inner
    raise ConfigError(f"{path} holds no state dict", OPTION, "give a safetensors file, or a .pth of tensors")


def match(
    state: Mapping[str, Tensor], model: nn.Module, source: str, backbone: str
) -> tuple[dict[str, Tensor], Loaded]:
    """Tensors of a file by the names of a model.

    A prefix that wrappers add (``module.``, ``backbone.``, ``teacher.backbone.``) is recognised: the one with which
    most names fit.

    Args:
        state: tensors of the file.
        model: the backbone, without its classifier.
        source: what the file is called.
        backbone: what the backbone is called.

    Returns:
        the tensors to load, and what was found.

    Raises:
        ConfigError: a tensor of the model is not in the file.
    """
    wanted = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    prefix = _prefix(state, wanted)
    if "by_modality." in prefix:  # of several embedders any one would fit
        fix = "start from it with model.init_from, which goes by the names of modalities and tasks"
        raise ConfigError(f"{source} is a whole model of this trainer, not a backbone", OPTION, fix)
    named = {name: state[prefix + name] for name in model.state_dict() if prefix + name in state}
    missing = [name for name in wanted if name not in named]
    if missing:
        what = f"{source} has {len(wanted) - len(missing)} of the {len(wanted)} tensors of {backbone}"
        fix = f"it must be of this backbone; it has {shown(sorted(state))}; not in it: {shown(missing)}"
        raise ConfigError(what, OPTION, fix)
    left_out = tuple(
        sorted(name for name in state if name.removeprefix(prefix) not in named or not name.startswith(prefix))
    )
    return named, Loaded(source, len(wanted), len(wanted), prefix, left_out)


def judged(model: nn.Module, missing: Sequence[str], left_out: Sequence[str], backbone: str) -> Loaded:
    """What a backbone took from the hub.

    Args:
        model: the backbone, loaded.
        missing: names of its tensors that the weights lack.
        left_out: names in the weights that the backbone has no place for.
        backbone: what the backbone is called.

    Raises:
        ConfigError: a tensor of the model is missing.
    """
    wanted = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    lacking = [name for name in wanted if name in set(missing)]
    if lacking:
        what = f"the hub has {len(wanted) - len(lacking)} of the {len(wanted)} tensors of {backbone}"
        fix = f"choose another backbone, or options that leave these out; not there: {shown(lacking)}"
        raise ConfigError(what, OPTION, fix)
    return Loaded("hub", len(wanted), len(wanted), left_out=tuple(sorted(left_out)))


def _prefix(state: Mapping[str, Tensor], wanted: list[str]) -> str:
    counts: Counter[str] = Counter()
    names = set(wanted)
    for key in state:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    best = max(counts.values(), default=0)
    return min((prefix for prefix, count in counts.items() if count == best), key=len, default="")
