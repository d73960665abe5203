"""Three small data sets made out of nothing, each with its card: what a user would bring."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 40  # samples of each


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def split_of(number: int) -> str:
    return ("train", "train", "train", "val", "test")[number % 5]


def lesion_and_blood(folder: Path) -> Path:
    """Image and table: a bright spot, an age and a marker, some unknown; two classes and a number with a unit."""
    from PIL import Image

    random = np.random.default_rng(1)
    rows = []
    (folder / "photos").mkdir(parents=True)
    for number in range(COUNT):
        ill, age = number % 2, int(random.integers(30, 80))
        picture = random.integers(40, 70, (40, 48, 3))
        picture[12:24, 16:30] += 120 * ill
        Image.fromarray(picture.astype(np.uint8)).save(folder / "photos" / f"{number}.png")
        rows.append(
            {
                "Patient": f"p{number // 2}",
                "Case": f"c{number}",
                "Photo": f"photos/{number}.png",
                "Age": age if number % 7 else "",
                "Smoker": ("yes", "no", "n/a")[number % 3],
                "Diagnosis": ("naevus", "melanoma")[ill],
                "Thickness": round(0.2 + 2.0 * ill + age / 100, 2),
                "Split": split_of(number // 2),
            }
        )
    write_table(folder, rows)
    card = folder / "lesion.yaml"
    card.write_text("""
name: skin-lesions
unit: lesion
modalities:
  photo: {kind: image, channels: 3, label: dermoscopy}
  history:
    kind: table
    columns: {age: {kind: number, column: Age}, smoker: {kind: category, values: [no, yes], column: Smoker}}
tasks:
  diagnosis: {kind: classes, classes: [naevus, melanoma], label: diagnosis}
  thickness: {kind: number, unit: mm, label: thickness}
source:
  table: cases.csv
  sample: Case
  group: Patient
  split: Split
  files: {photo: Photo}
  labels: {diagnosis: Diagnosis, thickness: Thickness}
  size: [32, 32]
""")
    return card


def brain_and_slide(folder: Path) -> Path:
    """Volume (NIfTI, cubes of unequal sides) and image, with a mask over each; a grade."""
    import nibabel
    from PIL import Image

    random = np.random.default_rng(2)
    for name in ("mri", "seg", "slides", "outlines"):
        (folder / name).mkdir(parents=True)
    rows = []
    affine = np.diag([2.0, 2.0, 4.0, 1.0])  # mm; axes x, y, z
    for number in range(COUNT):
        grade = number % 3
        volume, tumour = random.integers(100, 300, (20, 20, 10)), np.zeros((20, 20, 10), np.uint8)
        tumour[6 : 9 + 3 * grade, 6:12, 3:7] = 1
        volume += 2000 * tumour.astype(int)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.uint16), affine), folder / "mri" / f"s{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(tumour, affine), folder / "seg" / f"s{number}.nii.gz")
        slide, cells = random.integers(1000, 3000, (36, 30)), np.zeros((36, 30), np.uint8)
        cells[5 : 12 + 6 * grade, 8:20] = 1
        cells[8:10, 10:14] = 2
        Image.fromarray((slide + 20000 * cells.astype(int)).astype(np.uint16)).save(
            folder / "slides" / f"s{number}.png"
        )
        Image.fromarray(cells).save(folder / "outlines" / f"s{number}.png")
        rows.append({"id": f"s{number}", "grade": ("I", "II", "III")[grade], "split": split_of(number)})
    write_table(folder, rows)
    card = folder / "brain.yaml"
    card.write_text("""
name: brain-tumours
unit: brain
modalities:
  mri: {kind: volume, label: MRI}
  slide: {kind: image, label: histology}
tasks:
  grade: {kind: ordinal, classes: [I, II, III], label: WHO grade}
  tumour: {kind: mask, of: mri, classes: [tumour], label: tumour}
  cells: {kind: mask, of: slide, classes: [stroma, nest], label: tissue}
source:
  table: cases.csv
  sample: id
  split: split
  files: {mri: "mri/{id}.nii.gz", slide: "slides/{id}.png"}
  labels: {grade: grade, tumour: "seg/{id}.nii.gz", cells: "outlines/{id}.png"}
  size: [32, 32]
  volume_size: [16, 16, 16]
""")
    return card


def follow_up_with_gaps(folder: Path) -> Path:
    """Survival with 70 % censored; three views (PGM, 16-bit TIFF, npy), 60 % of them missing, never all of a sample."""
    import tifffile
    from PIL import Image

    random = np.random.default_rng(3)
    folder.mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        high = number % 2
        files = {"front": f"{number}.pgm", "side": f"{number}.tif", "back": f"{number}.npy"}
        kept = [name for k, name in enumerate(files) if (number + k) % 5 in (0, 2)] or ["front"]
        for name in kept:
            picture = random.integers(20, 60, (32, 32))
            picture[8:20, 8:20] += 100 * high
            if name == "front":
                Image.fromarray(picture.astype(np.uint8)).save(folder / files[name])
            elif name == "side":
                tifffile.imwrite(folder / files[name], (picture * 200).astype(np.uint16))
            else:
                np.save(folder / files[name], picture.astype(np.uint8))
        event = number % 10 in (1, 4, 8)  # of train, test, val
        time = round(float(random.uniform(0.2, 2.5 if event else 6.0)), 2)
        row = {"subject": f"m{number}", "years": time, "status": ("censored", "died")[event], "split": split_of(number)}
        rows.append(row | {name: file if name in kept else "" for name, file in files.items()})
    write_table(folder, rows)
    card = folder / "follow-up.yaml"
    card.write_text("""
name: chest-follow-up
unit: chest
group: person
modalities:
  front: {kind: image, label: frontal film}
  side: {kind: image, label: lateral film}
  back: {kind: image, label: film from behind}
tasks:
  death: {kind: survival, horizons: [1, 2, 4], unit: years, event: death, label: death}
source:
  table: cases.csv
  sample: subject
  split: split
  files: {front: front, side: side, back: back}
  labels: {death: {time: years, event: status, values: {died: "yes", censored: "no"}}}
  size: [32, 32]
""")
    return card


MAKERS: dict[str, Callable[[Path], Path]] = {
    "image_and_table": lesion_and_blood,
    "volume_and_image_with_masks": brain_and_slide,
    "survival_with_gaps": follow_up_with_gaps,
}
