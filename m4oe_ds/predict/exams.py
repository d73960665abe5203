"""A folder of DICOM files to the samples a run can predict: what the tables of an archive tell the converter, from
headers.
"""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.archives.embed import take_order
from data_tools.archives.plan import ArchivePlan, Sample
from data_tools.archives.readers import find_reader
from data_tools.pixels.dicom import require_decoders
from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.predict.headers import Header, read

USED = "used"
BEYOND_LIMIT = "beyond_limit"


@dataclass
class File:
    """One file and what became of it.

    Attributes:
        name: path below the folder; it may identify a person and goes into the private mapping alone.
        outcome: USED, or a fixed word that says why not; empty while it is a candidate.
    """

    name: str
    header: Header
    outcome: str = ""


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        files: all of them, in the order of their names.
        plan: samples as the converter plans them.
        candidates: files of each ``(patient, exam, side, modality)``, preferred first.
        lacking: what to install for images that cannot be decoded here, one line per transfer syntax.
    """

    files: list[File]
    plan: ArchivePlan = field(default_factory=ArchivePlan)
    candidates: dict[tuple[str, str, str, str], list[File]] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)

    def reasons(self) -> Counter[str]:
        """How many files were left out, by reason."""
        return Counter(file.outcome for file in self.files if file.outcome not in ("", USED))


def walk(root: Path) -> Iterator[str]:
    """Paths of everything below a folder that is not a folder, sorted; links to folders are not followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name).relative_to(root).as_posix()


def collect(root: Path, reader: str, modalities: Sequence[str], *, lossy: bool = False) -> Found:
    """Reads every header below ``root`` and chooses the views.

    Patient and exam are PatientID and AccessionNumber, or the study where these are empty. Of several takes of a view
    the rule of the archive's reader decides: the last one, or the one that shows most of the breast, found when the
    pixels are read.

    Args:
        root: folder of DICOM files.
        reader: name of the reader of the run's archive.
        modalities: names of the modalities to choose.
        lossy: take images compressed with loss, too.
    """
    from tqdm import tqdm

    names = list(walk(root))
    files = [File(name, _header(root / name, name)) for name in tqdm(names, desc="headers", unit="file")]
    found = Found(files)
    _exclude(found, modalities, lossy)
    rules = find_reader(reader)
    if rules.ONLY_WOMEN:
        _exclude_men(found)
    _choose(found, rules.CHOOSE, modalities)
    return found


def _header(path: Path, name: str) -> Header:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # a pipe would block for ever
    except OSError:
        return Header(reason="unreadable_file")
    return read(path, name) if regular else Header(reason="not_a_file")


def _exclude(found: Found, modalities: Sequence[str], lossy: bool) -> None:
    """Marks what can be ruled out file by file."""
    undecodable: dict[str, bool] = {}
    for file in found.files:
        header = file.header
        file.outcome = header.reason
        if file.outcome:
            continue
        if header.modality not in modalities:
            file.outcome = "view_not_used_by_the_run"
        elif header.lossy and not lossy:
            file.outcome = "lossy_compression"
        else:
            if header.syntax not in undecodable:
                undecodable[header.syntax] = _lacks_decoder(header.syntax, found)
            if undecodable[header.syntax]:
                file.outcome = "no_decoder"


def _lacks_decoder(syntax: str, found: Found) -> bool:
    try:
        require_decoders([syntax])
    except EnvironmentProblem as problem:
        found.lacking.append(f"{problem.what}; {problem.fix}")
        return True
    return False


def _exclude_men(found: Found) -> None:
    """The converter left out the exams of men: the models have seen none."""
    men = {(file.header.patient, file.header.exam) for file in found.files if file.header.male}
    for file in found.files:
        if not file.outcome and (file.header.patient, file.header.exam) in men:
            file.outcome = "male"


def _choose(found: Found, rule: str, modalities: Sequence[str]) -> None:
    """Fills the plan: candidates of every view in the converter's order, one sample per breast."""
    takes: dict[tuple[str, str, str, str], list[File]] = defaultdict(list)
    instances: set[tuple[str, ...]] = set()
    for file in found.files:
        if file.outcome:
            continue
        header = file.header
        view = (header.patient, header.exam, header.side, header.modality)
        if header.instance and (*view, header.instance) in instances:
            file.outcome = "duplicate_image"
            continue
        instances.add((*view, header.instance))
        takes[view].append(file)
    samples: dict[tuple[str, str, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    for view, several in sorted(takes.items()):
        if rule == "first":
            several.sort(key=lambda file: take_order(file.header.row or {}), reverse=True)
            for file in several[1:]:
                file.outcome = "earlier_take"
            del several[1:]
        else:
            several.sort(key=_number_order)
        found.candidates[view] = several
        samples[view[:3]][view[3]] = tuple(file.name for file in several)
    for (patient, exam, side), images in samples.items():
        ordered = {name: images[name] for name in modalities if name in images}
        found.plan.samples.append(Sample(patient, exam, side, {}, ordered, choose=rule))


def _number_order(file: File) -> tuple[int, int, str]:
    """Order of RSNA's and VinDr-Mammo's converters: by the number, or else the text, of the file's name."""
    stem = Path(file.name).stem
    return (0, int(stem), file.name) if stem.isascii() and stem.isdigit() else (1, 0, stem)
