"""A small data set of one's own: photographs, volumes, a table, masks and answers of every kind, with its card."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data.cards import Card, read_card

ROWS = 24
CARD = """name: my-eyes
unit: eye
group: patient
sides: {l: left, r: right}
modalities:
  photo:  {kind: image, channels: 3, label: photograph}
  scan:   {kind: volume}
  clinic:
    kind: table
    columns:
      age: {kind: number, column: age of patient}
      sex: {kind: category, values: [f, m]}
tasks:
  grade:    {kind: ordinal, classes: [none, early, advanced]}
  rim:      {kind: mask, of: photo, classes: [disc, cup]}
  fluid:    {kind: mask, of: scan, classes: [fluid]}
  pressure: {kind: number, unit: mmHg}
  blind:    {kind: survival, horizons: [1, 2], unit: years}
source:
  table: cases.csv
  sample: eye
  group: patient
  side: side
  split: split
  files: {photo: "{photo}", scan: "scans/{eye}.nii.gz"}
  labels:
    grade: grade
    rim: "{rim}"
    fluid: "{fluid}"
    pressure: iop
    blind: {time: years, event: blind}
  subgroups: {age: {column: age of patient, bands: [40, 60]}, site: scanner}
  size: [32, 40]
  volume_size: [8, 16, 16]
"""
Row = dict[str, Any]


def rows(count: int = ROWS) -> list[Row]:
    """Rows of a table in which some of everything is missing."""
    out = []
    for k in range(count):
        out.append(
            {
                "eye": f"eye{k:03d}",
                "patient": f"p{k // 2:03d}",
                "side": "LR"[k % 2],
                "split": ("train", "Train", "VALID", "test")[(k // 2) % 4],
                "photo": f"photos/{k}.png" if k % 5 else "",
                "grade": ("none", "early", "ADVANCED", "")[k % 4],
                "rim": f"rims/{k}.png" if k % 5 and k % 3 else "",
                "fluid": f"fluid/{k}.nii.gz" if k % 4 == 0 else "n/a",
                "iop": "NA" if k % 7 == 6 else 12 + k / 4,
                "years": "" if k % 6 == 5 else 0.5 + k % 4,
                "blind": "" if k % 6 == 5 else k % 2,
                "age of patient": 30 + 2 * k if k % 8 else "",
                "sex": "" if k % 8 == 0 else "fm"[k % 2],
                "scanner": ("A", "B")[k % 2],
            }
        )
    return out


def write_table(path: Path, table: Sequence[Row]) -> None:
    """The rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def write_files(root: Path, table: Sequence[Row]) -> None:
    """Files of the rows: photographs 30 x 50 with a bright disc, volumes 6 x 8 x 10 with a bright corner."""
    import nibabel
    from PIL import Image

    for folder in ("photos", "rims", "scans", "fluid"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for k, row in enumerate(table):
        random = np.random.default_rng(k)
        if row["photo"]:
            picture = random.integers(0, 100, (30, 50, 3)).astype(np.uint8)
            picture[10:20, 20:30] += 150
            Image.fromarray(picture).save(root / row["photo"])
        if row["rim"]:
            rim = np.zeros((30, 50), np.uint8)
            rim[10:20, 20:30], rim[13:17, 23:27] = 1, 2
            Image.fromarray(rim).save(root / row["rim"])
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        values = random.normal(0, 1, (10, 8, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, affine), root / "scans" / f"{row['eye']}.nii.gz")
        if row["fluid"] != "n/a":
            fluid = np.zeros((10, 8, 6), np.uint8)
            fluid[:5, :4, :3] = 1
            nibabel.save(nibabel.Nifti1Image(fluid, affine), root / row["fluid"])


def write_case(root: Path, text: str = CARD, table: Sequence[Row] | None = None) -> Path:
    """Table, files and card in a folder; returns the path of the card."""
    root.mkdir(parents=True, exist_ok=True)
    table = rows() if table is None else table
    write_table(root / "cases.csv", table)
    write_files(root, table)
    path = root / "eyes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def card_of(path: Path) -> Card:
    """The card in a file."""
    return read_card(path)
