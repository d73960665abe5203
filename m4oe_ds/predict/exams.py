"""A folder of DICOM files to the samples a run can predict: what the tables of an archive tell the converter, from
headers.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.archives.embed import take_order
from data_tools.archives.plan import Sample
from data_tools.archives.readers import find_reader
from data_tools.pixels.dicom import require_decoders
from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.predict.given import File, Found
from m4oe_ds.predict.headers import Header, read
from m4oe_ds.progress import track

FIX = "give CC and MLO views for presentation, with laterality and view in their headers"


@dataclass
class DicomFile(File):
    """One DICOM file, or what lies among them.

    Attributes:
        header: what its header says.
    """

    header: Header = field(default_factory=Header)


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
    names = list(walk(root))
    files = [_file(root, name) for name in track(names, "reading headers", "files")]
    found = Found("mammogram", FIX, list(files))
    _exclude(files, modalities, lossy, found.notes)
    rules = find_reader(reader)
    if rules.ONLY_WOMEN:
        _exclude_men(files)
    _choose(found, files, rules.CHOOSE, modalities)
    return found


def _file(root: Path, name: str) -> DicomFile:
    header = _header(root / name, name)
    return DicomFile(
        name,
        header.modality,
        header=header,
        patient=header.patient,
        exam=header.exam,
        sample=header.exam,
        side=header.side.lower(),
    )


def _header(path: Path, name: str) -> Header:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # a pipe would block for ever
    except OSError:
        return Header(reason="unreadable_file")
    return read(path, name) if regular else Header(reason="not_a_file")


def _exclude(files: Sequence[DicomFile], modalities: Sequence[str], lossy: bool, notes: list[str]) -> None:
    """Marks what can be ruled out file by file; notes what to install for images that cannot be decoded here."""
    undecodable: dict[str, bool] = {}
    for file in files:
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
                undecodable[header.syntax] = _lacks_decoder(header.syntax, notes)
            if undecodable[header.syntax]:
                file.outcome = "no_decoder"


def _lacks_decoder(syntax: str, notes: list[str]) -> bool:
    try:
        require_decoders([syntax])
    except EnvironmentProblem as problem:
        notes.append(f"{problem.what}; {problem.fix}")
        return True
    return False


def _exclude_men(files: Sequence[DicomFile]) -> None:
    """The converter left out the exams of men: the models have seen none."""
    men = {(file.patient, file.exam) for file in files if file.header.male}
    for file in files:
        if not file.outcome and (file.patient, file.exam) in men:
            file.outcome = "male"


def _choose(found: Found, files: Sequence[DicomFile], rule: str, modalities: Sequence[str]) -> None:
    """Fills the plan: candidates of every view in the converter's order, one sample per breast."""
    takes: dict[tuple[str, str, str, str], list[DicomFile]] = defaultdict(list)
    instances: set[tuple[str, ...]] = set()
    for file in files:
        if file.outcome:
            continue
        header = file.header
        view = (*file.source, file.modality)
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
        found.candidates[view] = list(several)
        samples[view[:3]][view[3]] = tuple(file.name for file in several)
    for (patient, exam, side), images in samples.items():
        ordered = {name: images[name] for name in modalities if name in images}
        found.plan.samples.append(Sample(patient, exam, side.upper(), {}, ordered, choose=rule))


def _number_order(file: DicomFile) -> tuple[int, int, str]:
    """Order of RSNA's and VinDr-Mammo's converters: by the number, or else the text, of the file's name."""
    stem = Path(file.name).stem
    return (0, int(stem), file.name) if stem.isascii() and stem.isdigit() else (1, 0, stem)
