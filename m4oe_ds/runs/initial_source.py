"""A trained model to start from: where its weights and its configuration lie, and what it was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from m4oe_ds.config import Config
from m4oe_ds.errors import CheckpointError
from m4oe_ds.models import spec_for
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.runs.configuration import with_card
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.weights import CARD_SUFFIX, CONFIG_SUFFIX, WholeWeights

OPTION = "model.init_from"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Source:
    """A trained model, opened but not read.

    Attributes:
        name: of the folder or file, without the folders above it.
        config: configuration it was trained with.
        spec: its modalities, tasks and image size.
        weights: its tensors.
    """

    name: str
    config: Config
    spec: ModelSpec
    weights: WholeWeights

    def digest(self) -> str:
        """SHA-256 of the files of its weights, one after the other, by name."""
        digest = hashlib.sha256()
        for path in self.weights.files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


def open_source(path: Path) -> Source:
    """The model of a run folder, of an export folder, or of a ``*.safetensors`` with its configuration next to it.

    Raises:
        CheckpointError: nothing of that kind there, several of them, or weights without their configuration.
        ConfigError: its configuration is not one of this package.
    """
    config_path, card_path, weights_path = _find(path)
    config = with_card(config_path, card_path)
    return Source(path.name or path.resolve().name, config, spec_for(config), WholeWeights(weights_path))


def _find(path: Path) -> tuple[Path, Path, Path]:
    """Paths of the configuration, of its card and of the weights."""
    if path.suffix == _SUFFIX:
        beside = path.with_name(path.name + CONFIG_SUFFIX)
        run = RunFolder(path.parent.parent)
        folders = [RunFolder(path.parent), *([run] if run.weights == path else [])]
        for config, card in (
            (beside, path.with_name(path.name + CARD_SUFFIX)),
            *((folder.config, folder.card) for folder in folders),
        ):
            if config.is_file():
                return config, card, path
        raise CheckpointError(
            f"{path} has no configuration next to it" if path.is_file() else f"no such file {path}",
            OPTION,
            f"export with `m4oe export`, which writes {beside.name}, or name the run folder",
        )
    run = RunFolder(path)
    if run.config.is_file():
        return run.config, run.card, run.weights
    if not path.is_dir():
        raise CheckpointError(
            f"no such folder {path}", OPTION, "name a run folder, an export folder or a *.safetensors"
        )
    found = sorted(path.glob(f"*{_SUFFIX}{CONFIG_SUFFIX}"))
    if len(found) == 1:
        return _find(found[0].with_name(found[0].name.removesuffix(CONFIG_SUFFIX)))
    names = ", ".join(item.name.removesuffix(CONFIG_SUFFIX) for item in found)
    raise CheckpointError(
        f"{path} holds the exports {names}" if found else f"{path} is neither a run nor an export folder",
        OPTION,
        "name one of the files"
        if found
        else f"it must hold {run.config.name}, or NAME{_SUFFIX} and NAME{_SUFFIX}{CONFIG_SUFFIX}",
    )
