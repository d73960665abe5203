"""Looks at converted shards: ``python -m data_tools.inspect DIR [--contact-sheet FILE] [--phi]``.

Prints what every split holds and checks it: checksums, samples against the manifest, patients in one split only, and
with ``--phi`` that nothing identifying is in tar headers, meta.json or any JSON file. Exits with 1 and one line per
problem if there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.deidentify import find_identifiers
from m4oe_ds.data.schema import GEOMETRY_FIELDS, KEY_PATTERN, META_FIELDS, SPLITS
from m4oe_ds.errors import DataError, UserError

if TYPE_CHECKING:
    from m4oe_ds.data.manifest import Manifest

SHEET_SAMPLES = 8  # rows of the contact sheet, per split
TILE = 160  # pixels of the longer side of a tile
ALL_DIGIT_SHARE = 0.02  # of true hashes, (10/16)^16 = 0.05 % hold digits only; identifiers always do
_COUNTED_KEYS = frozenset({"bytes", "offsets"})  # file sizes and positions may look like anything
_PSEUDONYM = re.compile(r"[a-z0-9]+-([0-9a-f]{16})-[a-z]|([0-9a-f]{16})|[0-9a-f]{64}")


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


# ------------------------------------------------------------------------------------------- identifying content


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Every key, text and whole number in a JSON value, but sizes and byte positions."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield str(name)
            yield from _texts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) or (
        isinstance(value, int) and not isinstance(value, bool) and key not in _COUNTED_KEYS
    ):
        yield str(value)


class _Scan:
    """Collects findings, each kind once per place, and the pseudonyms seen."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.pseudonyms: set[str] = set()

    def report(self, place: str, what: str) -> None:
        line = f"{place}: {what}"
        if line not in self.problems:
            self.problems.append(line)

    def text(self, place: str, text: str) -> None:
        match = _PSEUDONYM.fullmatch(text)
        if match:  # a keyed hash may by chance look like a number; judged together at the end
            self.pseudonyms.update(part for part in match.groups() if part)
            return
        for kind in find_identifiers(text):
            self.report(place, f"holds {kind}; do not share this file, convert the archive again")

    def json(self, place: str, data: bytes | str) -> Any:
        try:
            value = json.loads(data)
        except ValueError:
            self.report(place, "is not valid JSON; convert the archive again")
            return None
        for text in _texts(value):
            self.text(place, text)
        return value

    def finish(self) -> list[str]:
        digits = sum(name.isdigit() for name in self.pseudonyms)
        if digits > 1 and digits > ALL_DIGIT_SHARE * len(self.pseudonyms):
            self.report("pseudonyms", f"{digits} of {len(self.pseudonyms)} are plain numbers, as identifiers are")
        return self.problems


def _scan_meta(scan: _Scan, place: str, data: bytes) -> None:
    meta = scan.json(place, data)
    if not isinstance(meta, dict):
        return
    unknown = sorted(set(meta) - META_FIELDS)
    geometries = meta.get("geometry")
    for geometry in geometries.values() if isinstance(geometries, dict) else ():
        unknown += sorted(set(geometry) - GEOMETRY_FIELDS)
    if unknown:
        scan.report(place, f"has {len(unknown)} fields that no shard may have")


def _scan_tar(scan: _Scan, path: Path) -> None:
    """Scans the headers and the JSON members of one tar; members are named by their number."""
    place = path.name
    try:
        with tarfile.open(path, "r:") as archive:
            for number, member in enumerate(archive):
                stem, _, extension = member.name.partition(".")
                if not KEY_PATTERN.match(stem):
                    scan.report(f"{place}, member {number}", "is not named after a sample key")
                header = (stem, extension, member.uname, member.gname, member.linkname)
                for text in (*header, *member.pax_headers.values()):
                    scan.text(f"{place}, member {number}", text)
                if member.mtime != 0:
                    scan.report(place, "has members with a time of modification")
                if extension.endswith("json") and (stream := archive.extractfile(member)) is not None:
                    _scan_meta(scan, f"{place}, {extension} of member {number}", stream.read())
                elif extension.endswith("png") and (stream := archive.extractfile(member)) is not None:
                    _scan_png(scan, f"{place}, member {number}", stream.read())
    except (tarfile.TarError, OSError) as error:
        scan.report(place, f"is not a readable tar ({type(error).__name__}); copy it again")


def _scan_png(scan: _Scan, place: str, data: bytes) -> None:
    if any(mark in data[:4096] for mark in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME")):
        scan.report(place, "has text, time or EXIF in its PNG header")


def scan_identifiers(folder: Path) -> list[str]:
    """Problems with identifying content anywhere below a folder of shards; the lines never quote it."""
    folder = Path(folder)
    scan = _Scan()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        place = path.relative_to(folder)
        for part in place.parts:
            scan.text("a file or folder name", part)
        if path.suffix == ".tar":
            _scan_tar(scan, path)
        elif path.suffix == ".json":
            scan.json(str(place), path.read_bytes())
        else:
            scan.report(str(place), "is neither a shard nor a JSON report; move it out of this folder")
    return scan.finish()


# ---------------------------------------------------------------------------------------------- contact sheet


def contact_sheet(folder: Path, manifests: dict[str, Manifest], path: Path) -> int:
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
                    pixels = np.atleast_3d(decode(data, codec))[..., 0]
                    scale = 255.0 / np.iinfo(pixels.dtype).max
                    tile = Image.fromarray((pixels * scale).astype(np.uint8))
                    tile.thumbnail((TILE, TILE))
                    tiles[modality] = np.asarray(tile)
            strip = np.full((TILE, TILE * len(manifest.modalities)), 40, np.uint8)
            for place, modality in enumerate(manifest.modalities):
                if modality in tiles:
                    rows, cols = tiles[modality].shape
                    strip[:rows, place * TILE : place * TILE + cols] = tiles[modality]
            strips.append(strip)
    if not strips:
        raise DataError("holds no sample to show", str(folder), "convert an archive with samples")
    Image.fromarray(np.concatenate(strips)).save(path)
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
