"""Looks at converted shards: ``python -m data_tools.inspect DIR [--contact-sheet FILE] [--phi]``.

Prints what every split holds and checks it: checksums, samples against the manifest, patients in one split only, and
with ``--phi`` that nothing identifying is in any byte of shards, manifests and reports. Exits with 1 and one line per
problem if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data_tools.identifiers import scan_identifiers
from m4oe_ds.arguments import Parser
from m4oe_ds.command_line import check_file, guarded
from m4oe_ds.data.schema import MISSING, SPLITS, TaskSpec, follow_ups
from m4oe_ds.errors import DataError
from m4oe_ds.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from data_tools.sheet import Exhibit
    from m4oe_ds.data.cards import Card
    from m4oe_ds.data.manifest import Manifest, Shard

_WHAT = {
    (False, False): "no such folder",
    (True, False): "is a file, not a folder",
    (True, True): "holds no train, val or test folder",
}
SHEET_SAMPLES = 4  # of each split on the contact sheet: all fit a page


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
            _WHAT[(folder.exists(), folder.is_dir())], str(folder), "give the --out folder of `m4oe convert`"
        )
    return found


def describe(folder: Path, manifests: dict[str, Manifest]) -> list[str]:
    """What the splits hold, as lines of text."""
    lines = []
    for split, manifest in manifests.items():
        kind = "synthetic " if manifest.synthetic else ""
        lines.append(
            f"{split}: {manifest.num_samples} {kind}samples of {manifest.num_groups} patients in "
            f"{len(manifest.shards)} shard{'s' if len(manifest.shards) != 1 else ''}"
        )
        present = ", ".join(f"{name} {n}" for name, n in manifest.modality_counts.items())
        tables = any(one.kind == "table" for one in manifest.card.inputs)
        lines.append(f"  {'inputs' if tables else 'images'}: {present}")
        if split == "train" and manifest.num_samples > 1:
            lines.append(f"  order: {_shuffle(manifest)}")
        for task in manifest.tasks:
            counts = manifest.label_histograms.get(task.name, {})
            codes: Sequence[object] = range(max(2, task.num_classes))
            if not (task.coded or task.dense):
                codes = ("known",) if task.kind == "number" else ("censored", "event")
            words = task.class_names if task.coded and len(task.class_names) == len(codes) else codes
            classes = [f"{word} {counts.get(str(code), 0)}" for word, code in zip(words, codes, strict=True)]
            lines.append(f"  {task.name}: {', '.join(classes)}, missing {counts.get('-1', 0)}")
    return lines


def _shuffle(manifest: Manifest) -> str:
    """How well training will shuffle this split."""
    from m4oe_ds.data.order import shuffle_quality

    found = shuffle_quality(manifest)
    return (
        f"rank correlation between epochs up to {found.correlation:.3f} (chance {found.chance:.3f}); a shard's samples "
        f"over {100 * found.spread:.0f} % of the epoch, the least {100 * found.least_spread:.0f} %"
    )


def _labels_fall(shard: Shard, tasks: Sequence[TaskSpec]) -> int:
    """Samples whose label falls with the horizon: what happens within k years happens within k + 1."""
    fallen = 0
    for several in follow_ups(tasks).values():
        horizons = [shard.labels[task.name] for task in several]
        known = ([code for code in codes if code >= 0] for codes in zip(*horizons, strict=True))
        fallen += sum(codes != sorted(codes) for codes in known)
    return fallen


def _contents(path: Path, shard: Shard) -> list[str]:
    """Problems of a shard whose samples are not those its manifest lists."""
    import json
    import tarfile

    groups, labels = [], []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name.endswith(".meta.json") and (stream := archive.extractfile(member)) is not None:
                    meta = json.loads(stream.read())
                    groups.append(meta["group"])
                    labels.append(meta["labels"])
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        return [f"{path} cannot be read ({type(error).__name__}); copy it again"]
    if len(groups) != shard.num_samples:
        return [f"{path} holds {len(groups)} samples, {shard.num_samples} in manifest.json; convert the archive again"]
    listed = [{name: codes[i] for name, codes in shard.labels.items()} for i in range(shard.num_samples)]
    same = groups == shard.groups and all(
        {name: found.get(name, MISSING) for name in mine} == mine for found, mine in zip(labels, listed, strict=True)
    )
    return [] if same else [f"{path} has other patients or labels than manifest.json; convert the archive again"]


def check(folder: Path, manifests: dict[str, Manifest], checksums: bool = True) -> list[str]:
    """Problems with checksums, with samples against the manifest, with labels that contradict each other, and with
    patients in more than one split; empty if all is well."""
    from m4oe_ds.data.shard_reader import verify_shards

    problems = []
    where: dict[str, str] = {}
    crossing: dict[tuple[str, str], set[str]] = {}
    for split, manifest in manifests.items():
        damaged = verify_shards(Path(folder) / split, manifest, mode="full" if checksums else "size")
        problems += damaged
        for shard in track(manifest.shards, f"reading {split}", "shards"):
            path = Path(folder) / split / shard.name
            if not any(shard.name in line for line in damaged):
                problems += _contents(path, shard)
            if fallen := _labels_fall(shard, manifest.tasks):
                what = f"answers about an event fall with the horizon in {fallen} samples"
                problems.append(f"{path}: {what}; convert the archive again")
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


def contact_sheet(folder: Path, manifests: dict[str, Manifest], path: Path | BinaryIO) -> str:
    """Writes a PNG with some samples of every split, their pictures side by side under their labels in words.

    Returns:
        What it shows, such as ``12 of 644 samples, 4 from each split``.

    Raises:
        DataError: a sample cannot be read, or there is none.
    """
    from data_tools import sheet
    from m4oe_ds.data.shard_reader import read_sample

    exhibits, counts = [], []
    for split, manifest in manifests.items():
        places = [
            (shard, shard.offsets[i], shard.offsets[i + 1])
            for shard in manifest.shards
            for i in range(shard.num_samples)
        ]
        number = min(SHEET_SAMPLES, len(places))
        chosen = [places[k * len(places) // number] for k in range(number)]  # from all over the split
        counts.append(len(chosen))
        for shard, start, stop in chosen:
            exhibits.append(_exhibit(read_sample(Path(folder) / split / shard.name, start, stop), manifest.card, split))
    card = next(iter(manifests.values())).card
    if not exhibits or all(one.kind == "table" for one in card.inputs):
        raise DataError("holds no sample to show", str(folder), "convert an archive with samples")
    total = sum(manifest.num_samples for manifest in manifests.values())
    each = f"{counts[0]} from each split" if len(set(counts)) == 1 else f"at most {max(counts)} from each split"
    kind = "synthetic " if any(manifest.synthetic for manifest in manifests.values()) else ""
    shown = f"{len(exhibits)} of {total} {kind}samples, {each}"
    middle = ", of volumes the middle slice" if any(one.kind == "volume" for one in card.inputs) else ""
    heading = f"{card.title}: {shown}; grey values as stored{middle}"
    sheet.draw(exhibits, card, heading).save(path, format="PNG")
    return shown


def _exhibit(members: Mapping[str, bytes], card: Card, split: str) -> Exhibit:
    """What the sheet shows of a sample of a shard."""
    import json

    from data_tools.sheet import exhibit
    from m4oe_ds.data.codecs import decode

    meta, pictures = {}, {}
    for name, data in members.items():
        modality, _, codec = name.partition(".")
        spec = next((one for one in card.inputs if one.name == modality and one.kind != "table"), None)
        if name == "meta.json":
            meta = json.loads(data)
        elif spec is not None:
            pictures[modality] = tile(decode(data, codec), spec.kind == "volume")
    return exhibit(meta, pictures, card, split)


def tile(pixels: NDArray[Any], volume: bool) -> NDArray[Any]:
    """A small uint8 picture ``[at most TILE, at most TILE, 3]`` of an image, or of the middle slice of a volume.

    Args:
        pixels: uint8 or uint16, ``[H, W]``, ``[H, W, C]`` or ``[D, H, W]``.
        volume: whether it is a volume.
    """
    import numpy as np
    from PIL import Image

    from data_tools.sheet import TILE

    if volume:
        pixels = pixels[len(pixels) // 2]
    elif pixels.ndim == 3 and pixels.shape[2] != 3:
        pixels = pixels[:, :, :3] if pixels.shape[2] == 4 else pixels[:, :, 0]  # of two channels the first
    scale = 255.0 / np.iinfo(pixels.dtype).max
    small = Image.fromarray((pixels * scale).astype(np.uint8)).convert("RGB")
    small.thumbnail((TILE, TILE))
    return np.asarray(small)


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
        lines.append("checksums, samples and labels agree with the manifests; no patient is in two splits")
    if phi:
        found = scan_identifiers(folder)
        problems += found
        if not found:
            lines.append("nothing identifying found")
    if sheet is not None:
        lines.append(f"{contact_sheet(folder, manifests, sheet)}: {sheet}")
    return lines, problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command line."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of shards, made by `m4oe convert`")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        default=None,
        metavar="PNG",
        help="picture to write with some samples of each split",
    )
    parser.add_argument("--phi", action="store_true", help="search every byte for identifying content")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m data_tools.inspect", description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Prints what a folder holds and what is wrong with it; returns the exit code."""
    if options.contact_sheet is not None:
        check_file(options.contact_sheet, "--contact-sheet", ".png")
    lines, problems = inspect(options.folder, options.phi, options.contact_sheet)
    for line in lines:
        print(line)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
