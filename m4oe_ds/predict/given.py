"""What was given to predict, a folder of DICOM files or a table with the files it names, and what became of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_tools.archives.plan import ArchivePlan
from data_tools.convert.sample import SampleJob

USED = "used"
BEYOND_LIMIT = "beyond_limit"


@dataclass(kw_only=True)
class Origin:
    """Whose something is, by the identifiers of the source; they go into the private mapping alone.

    Attributes:
        patient: identifier of the patient or group; empty if unknown.
        exam: identifier of the exam.
        sample: what names the sample within its group, with its side.
        side: one letter, lower case; empty where samples have none.
        row: number of the table's row as a spreadsheet counts; 0 = no table.
        outcome: USED, or a fixed word that says why not; empty while it is a candidate.
    """

    patient: str = ""
    exam: str = ""
    sample: str = ""
    side: str = ""
    row: int = 0
    outcome: str = ""

    @property
    def source(self) -> tuple[str, str, str]:
        """Patient, sample and side: what a job of the converter knows of where its sample comes from."""
        return self.patient, self.sample, self.side


@dataclass
class File(Origin):
    """One file, or one folder of slices.

    Attributes:
        name: path below the folder that was given; it may identify a person and goes into the private mapping alone.
        modality: what it shows; empty if unknown.
    """

    name: str
    modality: str = ""


@dataclass
class Row(Origin):
    """One row of a table."""


@dataclass
class Found:
    """All that was given.

    Attributes:
        what: what is counted as usable or not, for messages: ``mammogram``, ``row``.
        fix: what to do where nothing is usable.
        files: all files, in the order of their names or rows.
        rows: all rows of a table.
        plan: samples as the converter plans them.
        candidates: files of each (patient, sample, side, modality), preferred first.
        row_of: row of each (patient, sample, side) of the plan; empty without a table.
        notes: what should be said of the whole, one line each; names no person.
    """

    what: str
    fix: str
    files: list[File] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    plan: ArchivePlan = field(default_factory=ArchivePlan)
    candidates: dict[tuple[str, str, str, str], list[File]] = field(default_factory=dict)
    row_of: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def reasons(self) -> Counter[str]:
        """How many files were left out, by reason."""
        return Counter(file.outcome for file in self.files if file.outcome not in ("", USED))

    def files_of(self, job: SampleJob, modalities: Iterable[str]) -> Iterator[File]:
        """Files of a sample."""
        source = source_of(job)
        for name in modalities:
            yield from self.candidates.get((*source, name), ())

    def settle(self, job: SampleJob, outcome: str) -> None:
        """Books the row of a sample."""
        row = self.row_of.get(source_of(job))
        if row is not None:
            row.outcome = outcome

    def rows_by_outcome(self) -> dict[str, list[int]]:
        """Numbers of the rows that were left out, by reason."""
        return _rows_by_outcome(self.rows)

    def file_rows_by_outcome(self) -> dict[str, list[int]]:
        """Numbers of the rows whose files were left out, by reason; empty without a table."""
        return _rows_by_outcome(file for file in self.files if file.row)


def _rows_by_outcome(origins: Iterable[Origin]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for one in origins:
        if one.outcome not in ("", USED):
            found[one.outcome].append(one.row)
    return {outcome: sorted(set(rows)) for outcome, rows in sorted(found.items())}


def source_of(job: SampleJob) -> tuple[str, str, str]:
    """Patient, sample and side of a job."""
    return (*job.source, str(job.meta.get("side", "")))
