"""Phantom shards for the demo, made when a configuration asks for them and they are not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path


def ensure_phantom_shards(
    root: Path, dataset: str, *, patients: int, seed: int, risk_prevalence: float, image_size: tuple[int, ...]
) -> bool:
    """Generates a phantom archive next to ``root`` and converts it, unless the shards exist; True if it did.

    The two steps do what a user would do with ``data_tools.phantom``, then ``data_tools.convert``. Of the archive
    only its planted truth stays, as ``<root>.truth.json``, against which ``m4oe analyze`` scores explanations.

    Args:
        root: folder of the shards.
        dataset: layout of the archive.
        patients: 0 = never make any.
        seed: seed of the archive.
        risk_prevalence: share of the archive's women with cancer within five years.
        image_size: rows and columns of the stored images.

    Returns:
        Whether shards were made.

    Raises:
        DataError: what generating or converting raises.
    """
    if patients <= 0 or (root / "train" / "manifest.json").is_file():
        return False
    from data_tools.convert import ConvertOptions, convert
    from data_tools.phantom import archive as phantom

    archive = root.with_name(f"{root.name}-archive")
    print(f"no shards in {root}: making a synthetic {dataset} archive and converting it", flush=True)
    phantom.generate(dataset, archive, patients, seed, risk_prevalence=risk_prevalence)
    rows, cols = image_size
    convert(ConvertOptions(dataset=dataset, root=archive, out=root, rows=rows, cols=cols))
    (archive / "truth.json").replace(root.with_name(f"{root.name}.truth.json"))
    shutil.rmtree(archive)
    return True
