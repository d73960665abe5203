"""Write cases.csv and masks/ for Drishti-GS1: one row per eye, with one mask of disc and cup.

Run as `python drishti_gs1_table.py DIR`, where DIR holds `Training/` and `Test/` of the archive.

A soft map has the value 0, 64, 128, 191 or 255 where 0, 1, 2, 3 or 4 of the four experts drew the structure. The mask
written is what at least three of them drew: 0 background, 1 disc without the cup, 2 cup. The archive has a training
and a test half; every fifth training eye becomes validation here.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

THREE_EXPERTS = 191
NOTCHING = {"A": "absent", "I": "present", "S": "present", "I and S": "present"}  # inferior, superior, both


def drawn(folder: Path, key: str, structure: str) -> np.ndarray:
    """Where at least three experts drew a structure ("OD" or "cup"): bool [H, W]."""
    return np.asarray(Image.open(folder / "SoftMap" / f"{key}_{structure}segSoftmap.png")) >= THREE_EXPERTS


def main(root: Path) -> None:
    """Join photographs, soft maps, cup-to-disc ratios and decisions of all 101 eyes.

    Args:
        root: the folder with `Training/` and `Test/`; `cases.csv` and `masks/` are written into it.
    """
    # The first sheet lists all 101 eyes, the training ones of sheet two included; its last row is empty.
    sheet = pd.read_excel(root / "Training/GT/Notching___Image__level_decisions.xlsx", sheet_name=0, index_col=0)
    sheet = sheet.iloc[:, :3].dropna().set_axis(["tilt", "notching", "diagnosis"], axis=1)
    (root / "masks").mkdir(exist_ok=True)
    rows = []
    for photo in sorted(root.glob("*/Images/ALL/*.png"), key=lambda path: path.name):
        part, key = photo.relative_to(root).parts[0], photo.stem
        truth, number = root / part / "GT" / key, int(key.removeprefix("drishtiGS_"))
        mask = np.where(drawn(truth, key, "cup"), 2, drawn(truth, key, "OD")).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{key}.png")
        ratios = [float(value) for value in (truth / f"{key}_cdrValues.txt").read_text().split()]
        rows.append({"eye": f"e{number:03d}", "photo": photo.relative_to(root).as_posix(), "mask": f"masks/{key}.png",
                     "glaucoma": {"G": "yes", "N": "no"}[sheet.diagnosis[number].strip()],
                     "notching": NOTCHING[sheet.notching[number].strip()],
                     "cup_to_disc": round(sum(ratios) / len(ratios), 4),
                     "split": {"Training": "train", "Test": "test"}[part]})  # fmt: skip
    cases = pd.DataFrame(rows)
    cases.loc[cases.index[cases["split"] == "train"][4::5], "split"] = "val"
    cases.to_csv(root / "cases.csv", index=False)
    print(f"{root / 'cases.csv'}: {len(cases)} eyes")
    print(cases.groupby("split")[["glaucoma", "notching"]].value_counts().to_dict())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
