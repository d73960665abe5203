"""Phantom shards for the demo, made when a configuration asks for them and they are not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m4oe_ds.config import PhantomConfig


def make_phantom_shards(dataset: str, made: PhantomConfig) -> None:
    """Generates a phantom archive and converts it.

    The two steps do what a user would do with ``m4oe phantom``, then ``m4oe convert``. Of the archive only its planted
    truth stays, as ``<root>.truth.json``, against which ``m4oe analyze`` scores explanations.

    Args:
        dataset: layout of the archive.
        made: where the shards go, and what the archive is like.

    Raises:
        DataError: what generating or converting raises.
    """
    from data_tools.convert import ConvertOptions, convert
    from data_tools.phantom import archive as phantom

    root = Path(made.root)
    archive = root.with_name(f"{root.name}-archive")
    print(f"no shards in {root}: making a synthetic {dataset} archive and converting it", flush=True)
    phantom.generate(dataset, archive, made.patients, made.seed, risk_prevalence=made.risk_prevalence)
    rows, cols = made.image_size
    convert(ConvertOptions(dataset=dataset, root=archive, out=root, rows=rows, cols=cols))
    (archive / "truth.json").replace(root.with_name(f"{root.name}.truth.json"))
    shutil.rmtree(archive)
