"""What one prediction needs to know, and what is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.archives.readers import find_reader
from m4oe_ds.command_line import check_output
from m4oe_ds.config import Config
from m4oe_ds.data import sources
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.data.roots import Root
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.opening import check_run


@dataclass(frozen=True)
class PredictionJob:
    """A run, what to predict and where the predictions go; the options of ``m4oe predict``.

    Attributes:
        run: run folder.
        out: folder to make; must be absent or empty.
        dicom: folder of DICOM files, searched with all its sub-folders; None = a table is given.
        table: table with a row for every sample, as the card of the run describes it; None = DICOM files are given.
        root: folder or address of the files that the table names; None = the folder of the table.
        batch_size: samples per forward; 0 = as in evaluation.
        limit: most samples to predict; 0 = all.
        workers: processes that read images; None = the processors, at most 8; 0 = this one.
        data: shard folder of a run that kept nothing of its data, if it has moved; empty = where it was trained.
        salt_file: secret of the pseudonyms; empty = ``<out>.secret``, made if absent.
        accept_lossy: use images compressed with loss.
    """

    run: Path
    out: Path
    dicom: Path | None = None
    table: Path | None = None
    root: Root | None = None
    batch_size: int = 0
    limit: int = 0
    workers: int | None = None
    data: str = ""
    salt_file: str = ""
    accept_lossy: bool = False

    @property
    def given(self) -> Path:
        """The folder of DICOM files, or the table."""
        given = self.table or self.dicom
        assert given is not None
        return given

    @property
    def files(self) -> Root:
        """The folder or address below which the files lie."""
        return self.root or (self.table.parent if self.table else self.given)

    @property
    def target(self) -> Path:
        """``out`` with a name where it is ``.`` or ``..``, because the private files are named after it."""
        return self.out.resolve() if self.out.name in ("", "..") else self.out


def check(job: PredictionJob) -> None:
    """Refuses what can be refused before anything is loaded.

    Raises:
        ConfigError: a negative number, options that exclude each other, or a run that reads something else.
        DataError: no run, table or folder there, nothing that says how the run's pixels were treated, or an output
            folder that is not empty.
        EnvironmentProblem: an output folder that cannot be written.
    """
    for name, value in (("batch-size", job.batch_size), ("limit", job.limit), ("workers", job.workers)):
        if value is not None and value < 0:
            raise ConfigError(f"{value} is negative", f"--{name}", "use 0 or more")
    if (job.dicom is None) == (job.table is None):
        raise ConfigError("exactly one is needed", "--dicom, --table", "give a folder of DICOM files, or a table")
    config = check_run(job.run, data=job.data)
    _check_fits(job, find_card(config.data.dataset))
    _check_statistics(job, config)
    if job.dicom is not None and not job.dicom.is_dir():
        raise DataError("is not a folder", str(job.dicom), "give the folder of the DICOM files as --dicom")
    if job.table is not None and not job.table.is_file():
        raise DataError("is not a file", str(job.table), "give the table of the new samples as --table")
    if isinstance(job.root, Path) and not job.root.is_dir():
        raise DataError("is not a folder", str(job.root), "give the folder of the table's files as --root")
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise DataError("exists already and is not empty", str(job.out), "choose another --out or remove it")
    check_output(job.target, "--out")
    if job.salt_file and Path(job.salt_file).is_dir():
        raise DataError(f"{job.salt_file} is a folder", "--salt-file", "name a file; it is made if absent")
    if job.data and not sources.is_remote(job.data, "--data") and not Path(job.data).is_dir():
        raise DataError(
            f"no shard folder {job.data!r}", "--data", "name the folder of the run's shards, or leave it out"
        )


def _check_fits(job: PredictionJob, card: Card) -> None:
    """Whether the run reads what is given.

    Raises:
        ConfigError: it reads something else.
    """
    source, where = card.source, str(job.run)
    if source is not None and source.table:
        if job.table is None:
            raise ConfigError(
                f"its card reads a table with a row per {card.unit}, and the files it names; it needs --table",
                where,
                "use `m4oe predict RUN --table FILE [--root DIR]`",
            )
        if job.accept_lossy:
            raise ConfigError("is for --dicom: the files of a table are taken as they are", "--accept-lossy", "omit it")
        return
    views = all(one.type and one.view for one in card.inputs)
    if source is None or not views or find_reader(source.reader).CONVERTER != "mammogram":
        raise ConfigError(
            f"reads {' and '.join(card.modalities)}, for which its card names no table and no headers tell them apart",
            where,
            "convert the new samples and use `m4oe evaluate`",
        )
    if job.table is not None or job.root is not None:
        raise ConfigError(
            "its card reads DICOM files, not a table", where, "use `m4oe predict RUN --dicom DIR`, without --root"
        )


def _check_statistics(job: PredictionJob, config: Config) -> None:
    """Runs older than ``data.json`` need the manifest they were trained with.

    Raises:
        DataError: neither is here.
    """
    root = config.data.root
    if RunFolder(job.run).data.is_file() or sources.is_remote(root):
        return
    if not (Path(root) / "train" / "manifest.json").is_file():
        raise DataError(
            "the run has no data.json, and the train/manifest.json of its shards, which also says how pixels were "
            "treated, is not here",
            root or "data.root",
            "copy it to DIR/train/ and give --data DIR",
        )
