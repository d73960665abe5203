"""The planted truth of a phantom archive, and the mapping that leads from shards to it. Imports no torch."""

from __future__ import annotations

import csv
from pathlib import Path

from m4oe_ds.data.planted import find_truth
from m4oe_ds.errors import DataError
from m4oe_ds.stored import read_json

Sample = tuple[str, str, str]  # patient, exam, side
_TRUTH, _MAPPING = "give the truth.json of a phantom archive", "give the mapping.csv that lies next to the shards"


def truth_of(root: str, truth: Path | None, mapping: Path | None) -> tuple[Path, Path] | None:
    """The two files for shards, as options name them or as they lie next to the shards; None without a truth.

    Raises:
        DataError: a mapping is named, but there is no truth that it leads to.
    """
    path = truth or find_truth(root)
    if path is None:
        if mapping is not None:
            what = "does nothing: these shards have no truth.json next to them"
            raise DataError(what, f"--mapping {mapping}", "name it with --truth, or leave --mapping out")
        return None
    return path, mapping or Path(f"{root}.mapping.csv")


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError("no such file", str(path), "name truth.json with --truth, its mapping.csv with --mapping")
    return path


def read_files(path: Path, mapping: Path) -> tuple[dict[Sample, dict[str, dict[str, float]]], dict[str, Sample]]:
    """Planted shares of the evidence by sample, and the sample of every key.

    Args:
        path: ``truth.json``.
        mapping: the converter's ``<out>.mapping.csv``, which says which key is which exam.

    Raises:
        DataError: a file is missing, or is something else.
    """
    samples = read_json(_there(path), _TRUTH, ("samples",))["samples"]
    try:
        planted = {(one["patient"], one["exam"], one["side"]): dict(one["information"]) for one in samples}
    except (TypeError, KeyError, ValueError):
        raise DataError("is no truth of a phantom archive", str(path), _TRUTH) from None
    try:
        with _there(mapping).open(newline="", encoding="utf-8") as stream:
            source = {row["key"]: (row["patient"], row["exam"], row["side"]) for row in csv.DictReader(stream)}
    except (UnicodeDecodeError, csv.Error, KeyError):
        raise DataError("is no mapping of a conversion", str(mapping), _MAPPING) from None
    return planted, source
