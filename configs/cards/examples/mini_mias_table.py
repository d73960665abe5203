"""Write cases.csv for mini-MIAS: one row per woman, with her left and right film.

Run as `python mini_mias_table.py DIR`, where DIR holds `pgm/` and `labels_converted.csv`.

Films 2k-1 and 2k belong to one woman. The read-me of the archive calls even numbers left, but the lead markers on
the films say the opposite (odd numbers carry a mirrored "L", even numbers "R"), and so do the names of the full-size
archive (mdb001lm, mdb002rl). The markers are followed here: odd is left.
"""

import sys
from pathlib import Path

import pandas as pd

TISSUE = {"F": "fatty", "G": "glandular", "D": "dense"}
FINDING = {"": 0, "B": 1, "M": 2}  # no finding, benign, malignant; the worst of a film counts
NAMES = ["none", "benign", "malignant"]


def main(folder: Path) -> None:
    """Read the list of findings, pair the films, write the table.

    Args:
        folder: the folder with `pgm/` and `labels_converted.csv`; `cases.csv` is written beside them.

    Raises:
        SystemExit: a film is absent, or the two films of a woman do not agree in tissue.
    """
    table = pd.read_csv(folder / "labels_converted.csv", dtype=str, keep_default_na=False)
    table["film"] = table["Name"].str.removeprefix("mdb").astype(int)
    table["finding"] = [FINDING[value] for value in table["Type"]]  # a KeyError names a value that is not expected
    # A film with several findings has several rows (7 films): its worst finding is its label.
    films = table.groupby("film").agg(tissue=("Background Tissue", "first"), finding=("finding", "max"))
    rows = []
    for left in range(1, int(films.index.max()), 2):
        right = left + 1
        paths = [f"pgm/mdb{film:03d}.pgm" for film in (left, right)]
        if absent := [path for path in paths if not (folder / path).is_file()]:
            raise SystemExit(f"{folder}: {', '.join(absent)} not found; unpack all 322 films")
        if films.tissue[left] != films.tissue[right]:
            raise SystemExit(f"films {left} and {right} differ in tissue: they are not of one woman")
        rows.append({"woman": f"w{right // 2:03d}", "left": paths[0], "right": paths[1],
                     "tissue": TISSUE[films.tissue[left]],
                     "left_finding": NAMES[int(films.finding[left])],
                     "right_finding": NAMES[int(films.finding[right])]})  # fmt: skip
    cases = pd.DataFrame(rows)
    cases.to_csv(folder / "cases.csv", index=False)
    print(f"{folder / 'cases.csv'}: {len(cases)} women, {2 * len(cases)} films")
    for column in ("tissue", "left_finding", "right_finding"):
        print(column, cases[column].value_counts().to_dict())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
