"""Phantom shards for the demo, made when a configuration asks for them and they are not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol


class PhantomOptions(Protocol):
    """What is read from ``data.phantom``."""

    patients: int
    seed: int
    risk_prevalence: float
    image_size: tuple[int, ...]


class DataOptions(Protocol):
    """What is read from ``data``."""

    root: str
    dataset: str
    phantom: PhantomOptions


def ensure_phantom_shards(options: DataOptions) -> bool:
    """Generates a phantom archive beside ``data.root`` and converts it, unless the shards exist; True if it did.

    The two steps are the commands a user would type: ``data_tools.phantom``, then ``data_tools.convert``.

    Raises:
        DataError: whatever the two commands raise.
    """
    root = Path(options.root)
    if options.phantom.patients <= 0 or (root / "train" / "manifest.json").is_file():
        return False
    from data_tools import convert, phantom

    archive = root.with_name(f"{root.name}-archive")
    rows, columns = options.phantom.image_size
    print(f"no shards in {root}: making a synthetic {options.dataset} archive and converting it", flush=True)
    phantom.generate(
        options.dataset,
        archive,
        options.phantom.patients,
        options.phantom.seed,
        risk_prevalence=options.phantom.risk_prevalence,
    )
    convert.run(
        [
            "--dataset",
            options.dataset,
            "--root",
            str(archive),
            "--out",
            str(root),
            "--rows",
            str(rows),
            "--cols",
            str(columns),
        ]  # fmt: skip
    )
    shutil.rmtree(archive)
    return True
