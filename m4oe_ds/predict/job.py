"""What one prediction needs to know, and what is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m4oe_ds.data import sources
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.runs.configuration import open_config


@dataclass(frozen=True)
class PredictionJob:
    """A run, the DICOM files to predict and where the predictions go; the options of ``m4oe predict``.

    Attributes:
        run: run folder.
        dicom: folder of DICOM files, searched with all its sub-folders.
        out: folder to make; must be absent or empty.
        batch_size: samples per forward; 0 = as in evaluation.
        limit: most samples to predict; 0 = all.
        workers: processes that read images; None = the processors, at most 8; 0 = this one.
        data: shard folder of the run, if it has moved; empty = where it was trained.
        salt_file: secret of the pseudonyms; empty = ``<out>.secret``, made if absent.
        accept_lossy: use images compressed with loss.
    """

    run: Path
    dicom: Path
    out: Path
    batch_size: int = 0
    limit: int = 0
    workers: int | None = None
    data: str = ""
    salt_file: str = ""
    accept_lossy: bool = False

    @property
    def target(self) -> Path:
        """``out`` with a name where it is ``.`` or ``..``, because the private files are named after it."""
        return self.out.resolve() if self.out.name in ("", "..") else self.out


def check(job: PredictionJob) -> None:
    """Refuses what can be refused before anything is loaded.

    Raises:
        ConfigError: a negative number, or a run that does not read DICOM.
        DataError: no run, no manifest or no DICOM folder there, or an output folder that is not empty.
    """
    for name, value in (("batch-size", job.batch_size), ("limit", job.limit), ("workers", job.workers)):
        if value is not None and value < 0:
            raise ConfigError(f"{value} is negative", f"--{name}", "use 0 or more")
    config = open_config(job.run, job.data)
    card, root = find_card(config.data.dataset), config.data.root
    if not all(one.type and one.view for one in card.inputs):
        raise ConfigError(
            f"reads {' and '.join(card.modalities)}, which are not told apart by DICOM headers",
            str(job.run),
            "--dicom needs a `type` and `view` per modality in the card; use `m4oe evaluate` on converted shards",
        )
    if not sources.is_remote(root) and not (Path(root) / "train" / "manifest.json").is_file():
        raise DataError(
            "the run's train/manifest.json, which says how its pixels were treated, is not here",
            root or "data.root",
            "copy it to DIR/train/ and give --data DIR",
        )
    if not job.dicom.is_dir():
        raise DataError("is not a folder", str(job.dicom), "give the folder of the DICOM files as --dicom")
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise DataError("exists already and is not empty", str(job.out), "choose another --out or remove it")
