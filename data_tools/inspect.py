"""Looks at converted shards: ``python -m data_tools.inspect DIR [--contact-sheet FILE] [--phi]``.

Prints what every split holds and checks it: checksums, samples against the manifest, patients in one split only, and
with ``--phi`` that nothing identifying is in any byte of shards, manifests and reports. Exits with 1 and one line per
problem if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_tools.identifiers import scan_identifiers
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.errors import DataError, UserError

if TYPE_CHECKING:
    from m4oe_ds.data.manifest import Manifest

SHEET_SAMPLES = 8  # rows of the contact sheet, per split
TILE = 160  # pixels of the longer side of a tile


def load_splits(folder: Path) -> dict[str, Manifest]:
    """Manifests of the splits in a folder of shards.

    Raises:
        DataError: there is none, or one is damaged.
    """
    from m4oe_ds.data.manifest import Manifest

    folder = Path(folder)
    found = {split: Manifest.load(folder / split) for split in SPLITS if (folder / split).is_dir()}
    if not found:
        raise DataError(
            "holds no train, val or test folder", str(folder), "give the --out folder of data_tools.convert"
        )
    return found


def describe(folder: Path, manifests: dict[str, Manifest]) -> list[str]:
    """What the splits hold, as lines of text."""
    lines = []
    for split, manifest in manifests.items():
        kind = "synthetic " if manifest.synthetic else ""
        lines.append(
            f"{split}: {manifest.num_samples} {kind}samples of {manifest.num_groups} patients in "
            f"{len(manifest.shards)} shards"
        )
        present = ", ".join(f"{name} {n}" for name, n in manifest.modality_counts.items())
        lines.append(f"  images: {present}")
        for task in manifest.tasks:
            counts = manifest.label_histograms.get(task.name, {})
            classes = " ".join(f"{code}:{counts.get(str(code), 0)}" for code in range(max(2, task.num_classes)))
            lines.append(f"  {task.name}: {classes} missing:{counts.get('-1', 0)}")
    return lines


def check(folder: Path, manifests: dict[str, Manifest]) -> list[str]:
    """Problems with checksums and with patients in more than one split; empty if all is well."""
    from m4oe_ds.data.manifest import verify_shards

    problems = []
    where: dict[str, str] = {}
    crossing: dict[tuple[str, str], set[str]] = {}
    for split, manifest in manifests.items():
        problems += verify_shards(Path(folder) / split, manifest, mode="full")
        for group in {group for shard in manifest.shards for group in shard.groups}:
            other = where.setdefault(group, split)
            if other != split:
                crossing.setdefault((other, split), set()).add(group)
        listed = {shard.name for shard in manifest.shards}
        stray = sorted(path.name for path in (Path(folder) / split).glob("*.tar") if path.name not in listed)
        problems += [f"{Path(folder) / split / name} is not in manifest.json; remove it" for name in stray]
    for (first, second), groups in sorted(crossing.items()):
        problems.append(f"{len(groups)} patients are in both {first} and {second}; convert the archive again")
    if len({manifest.synthetic for manifest in manifests.values()}) > 1:
        problems.append("some splits are synthetic and others are not; convert the archive again")
    return problems


# ---------------------------------------------------------------------------------------------- contact sheet


def contact_sheet(folder: Path, manifests: dict[str, Manifest], path: Path | BinaryIO) -> int:
    """Writes a PNG with the first samples of every split, one row each, one column per modality.

    Returns:
        How many samples it shows.

    Raises:
        DataError: a sample cannot be read, or there is none.
    """
    import numpy as np
    from PIL import Image

    from m4oe_ds.data.codecs import decode
    from m4oe_ds.data.manifest import read_sample

    strips = []
    for split, manifest in manifests.items():
        places = [
            (shard, shard.offsets[i], shard.offsets[i + 1]) for shard in manifest.shards for i in range(shard.num_samples)
        ]  # fmt: skip
        for shard, start, stop in places[:SHEET_SAMPLES]:
            members = read_sample(Path(folder) / split / shard.name, start, stop)
            tiles = {}
            for name, data in members.items():
                modality, _, codec = name.partition(".")
                if modality in manifest.modalities:
                    pixels = decode(data, codec)
                    if pixels.ndim == 3 and pixels.shape[2] != 3:
                        pixels = pixels[len(pixels) // 2]  # the middle slice of a volume
                    scale = 255.0 / np.iinfo(pixels.dtype).max
                    tile = Image.fromarray((pixels * scale).astype(np.uint8)).convert("RGB")
                    tile.thumbnail((TILE, TILE))
                    tiles[modality] = np.asarray(tile)
            strip = np.full((TILE, TILE * len(manifest.modalities), 3), 40, np.uint8)
            for place, modality in enumerate(manifest.modalities):
                if modality in tiles:
                    rows, cols = tiles[modality].shape[:2]
                    strip[:rows, place * TILE : place * TILE + cols] = tiles[modality]
            strips.append(strip)
    if not strips:
        raise DataError("holds no sample to show", str(folder), "convert an archive with samples")
    Image.fromarray(np.concatenate(strips)).save(path, format="PNG")
    return len(strips)


def inspect(folder: Path, phi: bool = False, sheet: Path | None = None) -> tuple[list[str], list[str]]:
    """Looks at a folder of shards.

    Returns:
        ``(lines, problems)``: what it holds and what is wrong with it.

    Raises:
        DataError: no or damaged manifests.
    """
    manifests = load_splits(folder)
    lines = describe(folder, manifests)
    problems = check(folder, manifests)
    if not problems:
        lines.append("checksums agree; no patient is in two splits")
    if phi:
        found = scan_identifiers(folder)
        problems += found
        if not found:
            lines.append("nothing identifying found")
    if sheet is not None:
        lines.append(f"{contact_sheet(folder, manifests, sheet)} samples shown in {sheet}")
    return lines, problems


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_tools.inspect", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the --out folder of data_tools.convert")
    parser.add_argument("--contact-sheet", type=Path, default=None, help="PNG to write with the first samples")
    parser.add_argument("--phi", action="store_true", help="search for identifying content")
    options = parser.parse_args(arguments)
    try:
        lines, problems = inspect(options.folder, options.phi, options.contact_sheet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for line in lines:
        print(line)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
