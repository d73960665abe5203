"""The planted truth of synthetic archives: where it is kept, and where lesions lie in the stored images of a sample."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import DataError

Outlines = dict[str, dict[str, list[dict[str, Any]]]]


def find_truth(root: str) -> Path | None:
    """``truth.json`` of the phantom archive that shards in ``root`` were made from, if it is still next to them."""
    path = Path(root)
    for candidate in (path.with_name(f"{path.name}-archive") / "truth.json", path.with_name(f"{path.name}.truth.json")):
        if candidate.is_file():
            return candidate
    return None


def outlines(root: str, split: str, keys: Collection[str]) -> Outlines:
    """Where what was planted in samples lies in their stored images; nothing of data that are not synthetic.

    Args:
        root: folder of the shards, with the truth and the mapping of their conversion next to it.
        split: of the samples.
        keys: the samples.

    Returns:
        ``{key: {modality: [{tasks, kind, row, column, height, width}]}}``: centre and half axes in shares of the
        stored image. Empty if shards, truth or mapping are not there, or are not of a phantom.

    Raises:
        DataError: one of them is damaged.
    """
    truth, mapping, folder = find_truth(root), Path(f"{root}.mapping.csv"), Path(root) / split
    if truth is None or not mapping.is_file() or not (folder / "manifest.json").is_file():
        return {}
    try:
        content = json.loads(truth.read_text(encoding="utf-8"))
        if not Manifest.load(folder).synthetic or content.get("synthetic") is not True:
            return {}
        with mapping.open(newline="", encoding="utf-8") as stream:
            source = {row["key"]: (row["patient"], row["exam"], row["side"]) for row in csv.DictReader(stream)}
        planted = {(one["patient"], one["exam"], one["side"]): one.get("lesions", []) for one in content["samples"]}
        geometry = _geometry(folder, keys)
        return {
            key: _placed(planted.get(source.get(key, ("", "", "")), []), places) for key, places in geometry.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError) as error:
        where = f"{truth}, {mapping} or {folder}"
        raise DataError(f"damaged ({type(error).__name__})", where, "make the phantom again") from None


def _geometry(folder: Path, keys: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """How the stored images of samples were cut, by key and modality, from the samples' ``meta.json``."""
    wanted = {f"{key}.meta.json" for key in keys}
    found: dict[str, Mapping[str, Any]] = {}
    for shard in sorted(folder.glob("*.tar")):
        if len(found) == len(wanted):
            break
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name in wanted else None
                if stream is not None:
                    meta = json.load(stream)
                    found[meta["key"]] = meta.get("geometry", {})
    return found


def _placed(lesions: Collection[Mapping[str, Any]], geometry: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for lesion in lesions:
        for modality, (row, column, radius) in lesion["places"].items():
            cut = geometry.get(modality)
            if cut and cut["original_shape"] == lesion["shape"]:
                place = in_stored(cut, row, column, radius)
                found.setdefault(modality, []).append({"tasks": lesion["tasks"], "kind": lesion["kind"], **place})
    return found


def in_stored(geometry: Mapping[str, Any], row: float, column: float, radius: float) -> dict[str, float]:
    """A circle of the source image in shares of the stored one: ``row``, ``column``, ``height`` and ``width``.

    Args:
        geometry: PICTURE_GEOMETRY_FIELDS of the image.
        row: centre, an index of pixels from 0.
        column: likewise.
        radius: in pixels.
    """
    top, left, height, width = geometry["crop"]
    full_height, full_width = geometry["padded_shape"]
    y = row + 0.5 - top + (full_height - height) // 2
    x = column + 0.5 - left
    if geometry["flipped"]:
        x = width - x
    return {
        "row": y / full_height,
        "column": x / full_width,
        "height": radius / full_height,
        "width": radius / full_width,
    }
