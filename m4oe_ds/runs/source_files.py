"""Files of a trained model to start from: configuration, card and weights. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from m4oe_ds.errors import CheckpointError
from m4oe_ds.runs.folder import RunFolder

OPTION = "model.init_from"
_SUFFIX = ".safetensors"
# of the configuration and the card that an export writes next to the weights: model.safetensors.yaml
CONFIG_SUFFIX, CARD_SUFFIX = ".yaml", ".card.yaml"


def find_source(path: Path) -> tuple[Path, Path, Path]:
    """Paths of the configuration, of its card and of the weights.

    Args:
        path: a run folder, an export folder or a ``*.safetensors`` with its configuration next to it.

    Raises:
        CheckpointError: nothing of that kind there, several of them, or weights without their configuration.
    """
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
            f"{path} is a file, but no *{_SUFFIX}" if path.exists() else f"no such folder {path}",
            OPTION,
            "name a run folder, an export folder or a *.safetensors",
        )
    found = sorted(path.glob(f"*{_SUFFIX}{CONFIG_SUFFIX}"))
    if len(found) == 1:
        return find_source(found[0].with_name(found[0].name.removesuffix(CONFIG_SUFFIX)))
    names = ", ".join(item.name.removesuffix(CONFIG_SUFFIX) for item in found)
    raise CheckpointError(
        f"{path} holds the exports {names}" if found else f"{path} is neither a run nor an export folder",
        OPTION,
        "name one of the files"
        if found
        else f"it must hold {run.config.name}, or NAME{_SUFFIX} and NAME{_SUFFIX}{CONFIG_SUFFIX}",
    )
