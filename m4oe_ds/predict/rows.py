"""A table of new samples, and the files it names, to the samples that a run can predict: read as its card says.

The card is asked for the modalities of the run alone: columns of answers, of the split and of subgroups may be absent,
and are not read where they are there. A row that cannot be read costs one sample and not the prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.archives.table import FIRST_ROW, TableFound, read_samples
from data_tools.archives.tables import header_of
from m4oe_ds.data.cards import Card, Source
from m4oe_ds.data.cards.source import columns_in
from m4oe_ds.data.roots import Root
from m4oe_ds.predict.given import File, Found, Row

FAR = 5  # standard deviations; Chebyshev: 4 % of any training data lie beyond at most
FIX = "check rows and files against the card with `m4oe card check`"


def without_answers(card: Card, modalities: Sequence[str], table: Path, stored: Mapping[str, Any]) -> Card:
    """The card of a run as it reads new samples: no tasks, the run's modalities, values and sizes as they were stored.

    Args:
        card: the card of the run; its source has a table.
        modalities: names of the modalities to read.
        table: path of the new table.
        stored: ``preprocessing`` of the run's training data.
    """
    assert card.source is not None
    inputs = tuple(one for one in card.inputs if one.name in modalities)
    source = replace(
        card.source,
        table=str(table.absolute()),
        split="",
        labels={},
        subgroups={},
        files={name: pattern for name, pattern in card.source.files.items() if name in modalities},
        ranges={name: (float(ends[0]), float(ends[1])) for name, ends in stored.get("ranges", {}).items()},
        volume_size=tuple(stored.get("volume_size", card.source.volume_size)),
    )
    return replace(card, inputs=inputs, tasks=(), source=source)


def collect(card: Card, where: Path, root: Root, answers: Source) -> Found:
    """Reads every row and looks for its files.

    Args:
        card: see :func:`without_answers`.
        where: the file of the card, for messages.
        root: folder or address of the files.
        answers: source of the whole card: its columns of answers are said to be there and not read.

    Raises:
        DataError: no readable table, a column missing that the run needs, or no rows.
    """
    source = card.source
    assert source is not None
    read = read_samples(card, str(where), root)
    found = Found("row", FIX, notes=[*_unread(source, answers), *read.odd.lines()])
    faulty = _faulty(read, source)
    rows = iter(zip(read.plan.samples, read.numbers, strict=True))
    numbers = set(read.numbers)
    for number in range(FIRST_ROW, FIRST_ROW + read.plan.steps["table_rows"]):
        if number not in numbers:
            found.rows.append(Row(row=number, outcome="empty_row"))
            continue
        sample, _ = next(rows)
        row = Row(
            patient=sample.patient,
            exam=sample.exam,
            sample=sample.name,
            side=sample.side.lower(),
            row=number,
            outcome=faulty.get(number, ""),
        )
        found.rows.append(row)
        files = [_file(row, name, paths[0]) for name, paths in sample.images.items()]
        found.files += files
        found.files += _missing(read, row)
        if row.outcome:
            for file in files:
                file.outcome = "of_excluded_samples"
            continue
        found.row_of[row.source] = row
        found.candidates |= {(*row.source, file.modality): [file] for file in files}
        found.plan.samples.append(replace(sample, split="", stratum="", labels={}))
    return found


def unlike_training(found: Found, card: Card, statistics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line for each column of numbers that can hardly be what it was in training: another unit, or another column.

    Args:
        found: the samples.
        card: their card.
        statistics: ``pixel_statistics`` of the training data.
    """
    lines = []
    for one in card.inputs:
        for column in one.columns:
            known = statistics.get(f"{one.name}.{column.name}")
            values = [sample.tables.get(one.name, {}).get(column.name) for sample in found.plan.samples]
            numbers = [float(value) for value in values if value is not None]
            if column.kind != "number" or known is None or not numbers:
                continue
            far = sum(abs(number - known["mean"]) > FAR * known["std"] for number in numbers)
            if 2 * far > len(numbers):
                lines.append(
                    f"column {column.column!r}: {far} of {len(numbers)} numbers more than {FAR} standard deviations "
                    f"from the mean in training ({known['mean']:g}, standard deviation {known['std']:g}): another "
                    "unit, or another column?"
                )
    return lines


def _file(row: Row, modality: str, name: str, outcome: str = "") -> File:
    return File(
        name,
        modality,
        patient=row.patient,
        exam=row.exam,
        sample=row.sample,
        side=row.side,
        row=row.row,
        outcome=outcome,
    )


def _missing(read: TableFound, row: Row) -> Iterator[File]:
    """Files that the row names and that are not there; their names are the table's."""
    if read.files is None:
        return
    for what, counts in read.files.named.items():
        if row.row in counts.absent:
            yield _file(row, what, "", "not_there")
        if row.row in counts.outside:
            yield _file(row, what, "", "outside_the_folder")
        if row.row in counts.folders:
            yield _file(row, what, "", "folder_on_a_server")


def _faulty(read: TableFound, source: Source) -> dict[int, str]:
    """Why rows cannot be predicted, by their number."""
    found: dict[int, str] = {}
    for (column, _), numbers in read.odd.rows.items():
        identity = column in (source.sample, source.group, source.exam)
        reason = "no_identifier" if identity else "unknown_side" if column == source.side else "unreadable_value"
        for number in numbers:
            found.setdefault(number, reason)
    names = Counter(sample.name for sample in read.plan.samples)
    for sample, number in zip(read.plan.samples, read.numbers, strict=True):
        if names[sample.name] > 1:  # which of them is meant nobody can say
            found.setdefault(number, "sample_not_unique")
    return found


def _unread(source: Source, answers: Source) -> list[str]:
    """One line that names the columns of answers, if the table has any."""
    columns = [
        column
        for label in answers.labels.values()
        for column in (label.column, label.event, *(c for mask in label.masks for c in columns_in(mask.pattern)))
        if column
    ]
    used = {source.sample, source.group, source.exam, source.side}
    used |= {column for pattern in source.files.values() for column in columns_in(pattern)}
    header = header_of(Path(source.table))
    there = [column for column in dict.fromkeys(columns) if column in header and column not in used]
    return [f"columns of answers that are there and not read: {', '.join(there)}"] if there else []
