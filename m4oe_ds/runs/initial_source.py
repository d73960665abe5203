"""A trained model to start from: where its weights and its configuration lie, and what it was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from m4oe_ds.config import Config
from m4oe_ds.models import spec_for
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.runs.configuration import with_card
from m4oe_ds.runs.source_files import find_source
from m4oe_ds.runs.weights import WholeWeights


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
    config_path, card_path, weights_path = find_source(path)
    config = with_card(config_path, card_path)
    return Source(path.name or path.resolve().name, config, spec_for(config), WholeWeights(weights_path))
