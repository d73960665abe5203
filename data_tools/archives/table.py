"""One's own data: a table with a row for every sample, and the files it names, as a card describes them.

Whatever cannot be read as the card says stops the conversion with one line for each kind of fault, all of them at
once. Lines tell rows by their number, as a spreadsheet counts them, never by what names a patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.archives import values
from data_tools.archives.doubts import doubts
from data_tools.archives.files import Files
from data_tools.archives.groups import group_of, singled_out, too_fine
from data_tools.archives.plan import ArchivePlan, Sample
from data_tools.archives.remote import files_below, table_below, table_name
from data_tools.archives.tables import header_of, read_table
from data_tools.archives.values import Choice, Oddities, OddValue, counted
from m4oe_ds.data.cards import Card, MaskFile, Source
from m4oe_ds.data.cards.source import columns_of
from m4oe_ds.data.roots import Root
from m4oe_ds.errors import DataError
from m4oe_ds.yaml_tree import Node, nearest, read_tree

FIRST_ROW = 2  # the heading is row 1 in a spreadsheet
ROUNDED = r"^\d+\.0*$|^\d+(?:\.\d+)?[eE]\+?\d+$"  # a whole number that was read as a floating-point one
_STRATUM = "all"  # groups are ranked by their hash and cut at the shares: of few groups every split gets its share
Row = Mapping[str, str]


@dataclass
class TableFound:
    """What a card's table and files say.

    Attributes:
        plan: the samples, as far as they could be read.
        rows: the fields of every sample, in the order of the table.
        numbers: number of every row, as a spreadsheet counts.
        problems: what stands against a conversion, one line each.
        files: what became of the files, by modality and task.
        odd: fields that cannot be read.
        patterns: pattern of the files, by modality and task.
    """

    plan: ArchivePlan = field(default_factory=ArchivePlan)
    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: Files | None = None
    odd: Oddities = field(default_factory=Oddities)
    patterns: dict[str, str] = field(default_factory=dict)


def plan_table(card: Card, where: str, root: Root, max_missing: float = 0.0, require: str = "any") -> ArchivePlan:
    """What the table of a card says should be converted.

    Args:
        card: the card; its source has a table.
        where: the file it came from, for the messages.
        root: folder or address of the table and the files.
        max_missing: share of the named files of a modality or task that may be absent.
        require: ``any`` or ``complete``: the modalities a sample needs.

    Raises:
        DataError: no table, or all that stands against a conversion, one line each.
    """
    found = read_samples(card, where, root, max_missing)
    if found.problems:
        raise DataError("\n".join(found.problems))
    plan = found.plan
    plan.doubts = doubts(plan.samples, found.rows, card)
    whole = [sample for sample in plan.samples if len(sample.images) + len(sample.tables) == len(card.inputs)]
    if require == "complete" and len(whole) < len(plan.samples):
        plan.excluded["samples"]["incomplete"] += len(plan.samples) - len(whole)
        plan.samples = whole
    plan.count_planned()
    return plan


def read_samples(card: Card, where: str, root: Root, max_missing: float = 0.0) -> TableFound:
    """Reads the table of a card and looks for its files; problems are collected.

    Args:
        card: the card; its source has a table.
        where: the file it came from, for the messages.
        root: folder or address of the table and the files.
        max_missing: share of the named files of a modality or task that may be absent.

    Raises:
        DataError: no table, an unreadable one, columns missing, or one without rows.
    """
    source = card.source
    if source is None or not source.table:
        raise DataError("its card names no table", where, "add `source: {table: cases.csv, sample: ..., ...}`")
    rows = _read_rows(card, source, where, root)
    reader = _Reader(card, source, root)
    found = TableFound(files=reader.files, odd=reader.odd, patterns=reader.patterns)
    found.plan.steps["table_rows"] = len(rows)
    masks = [mask.pattern for label in source.labels.values() for mask in label.masks]
    reader.files.look(
        [*source.files.values(), *masks], ((n, row) for n, row in enumerate(rows, FIRST_ROW) if any(row.values()))
    )
    for number, row in enumerate(rows, FIRST_ROW):
        if not any(row.values()):
            found.plan.excluded["samples"]["empty_row"] += 1
            continue
        found.rows.append(row)
        found.numbers.append(number)
        found.plan.samples.append(reader.sample(row, number))
    if not found.rows:
        raise DataError("has no rows", table_name(root, source.table), "give a table with a row for every sample")
    tree = _tree(where)
    places = {what: _place(tree, reader.dotted(what), where) for what in reader.patterns}
    table = table_name(root, source.table)
    found.problems += _mistakes(card, source, reader.missing, where)
    found.problems += [f"{table}: {line}" for line in _identity_problems(found, source, reader)]
    found.problems += [f"{table}: {line}" for line in reader.odd.lines()]
    found.problems += [f"{table}: {line}" for line in reader.group_problems()]
    found.problems += reader.files.problems(reader.patterns, places, max_missing)
    for what, counts in reader.files.named.items():
        if counts.absent:
            found.plan.notes[f"files_of_{what}_not_there"] += len(counts.absent)
    return found


def _tree(where: str) -> Node | None:
    return read_tree(Path(where)) if Path(where).is_file() else None


def _place(tree: Node | None, dotted: str, where: str) -> str:
    """File and line of a key of the card."""
    node, place = tree, where
    for key in dotted.split("."):
        if node is None or not isinstance(node.value, dict) or key not in node.value:
            break
        node = node.value[key]
        place = node.where
    return f"{place}: {dotted}"


def _read_rows(card: Card, source: Source, where: str, root: Root) -> list[dict[str, str]]:
    """Every row with the columns that the card names.

    Raises:
        DataError: see :func:`read_samples`.
    """
    with table_below(root, source.table) as path:
        if not path.is_file():
            raise DataError(
                f"the table {source.table} is not here", str(root), "check `source.table` of the card, and --root"
            )
        return _read_columns(path, card, where, table_name(root, source.table))


def _read_columns(path: Path, card: Card, where: str, shown: str) -> list[dict[str, str]]:
    source = card.source
    assert source is not None
    wanted = columns_of(source, card.inputs)
    hint = "save it as UTF-8 text, .xlsx or .parquet (which needs pyarrow)"
    try:
        header = header_of(path)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise DataError(f"is not a readable table ({type(error).__name__})", str(path), hint) from None
    tree = _tree(where)
    absent = [
        f"{_place(tree, dotted, where)} names the column {column!r}, which {source.table} does not have"
        + nearest(column, header)
        for column, dotted in wanted.items()
        if column not in header
    ]
    twice = [column for column in wanted if header.count(column) > 1]
    if twice:
        absent.append(f"{shown}: columns that are there twice: {', '.join(twice)}; rename one of them")
    if absent:
        raise DataError("\n".join(absent))
    identifiers = [name for name in (source.sample, source.group, source.exam) if name]
    return read_table(path, list(wanted), (), identifiers, damaged=ROUNDED, again=hint, blank_rows=True)


def _mistakes(card: Card, source: Source, missing: frozenset[str], where: str) -> list[str]:
    """Words that the card lists as missing and as a class, and bands that are too fine."""
    own = {word.strip().casefold() for word in source.missing}
    names = {
        **{f"tasks.{task.name}": task.class_names for task in card.tasks if task.coded},
        **{f"modalities.{one.name}.columns.{c.name}": c.values for one in card.inputs for c in one.columns},
    }
    tree = _tree(where)
    fine = [
        f"{_place(tree, f'source.subgroups.{name}.bands', where)} {reason}"
        for name, group in source.subgroups.items()
        if (reason := too_fine(group))
    ]
    return fine + [
        f"{_place(tree, 'source.missing', where)} lists {name!r}, which {dotted} has as a name; remove it from one"
        for dotted, known in names.items()
        for name in known
        if name.casefold() in own
    ]


class _Reader:
    """Reads rows to samples; what is odd is collected.

    Args:
        card: the card.
        source: its source.
        root: folder or address of the table and the files.
    """

    def __init__(self, card: Card, source: Source, root: Root) -> None:
        self.card, self.source = card, source
        self.missing = values.missing_words(card)
        self.odd = Oddities()
        self.files = files_below(root, self.missing)
        self.answers = {
            task.name: values.answer_reader(task, card, self.missing) for task in card.tasks if not task.dense
        }
        self.categories = {
            (one.name, column.name): Choice(column.values, {}, self.missing)
            for one in card.inputs
            for column in one.columns
            if column.kind == "category"
        }
        self.patterns = dict(source.files) | {
            name: ", ".join(mask.pattern for mask in label.masks)
            for name, label in source.labels.items()
            if label.masks
        }
        # by subgroup and its value, who has it
        self.holders: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in source.subgroups}

    def dotted(self, what: str) -> str:
        """Where the card says the files of a modality or task."""
        return f"source.{'files' if what in self.source.files else 'labels'}.{what}"

    def sample(self, row: Row, number: int) -> Sample:
        """One row."""
        source = self.source
        name = self._identifier(source.sample, row, number)
        group = self._identifier(source.group, row, number) if source.group else name
        images: dict[str, tuple[str, ...]] = {}
        for one in self.card.inputs:
            if one.kind == "table":
                continue
            path = self.files.find(one.name, source.files[one.name], row, number, folders=one.kind == "volume")
            if path is not None:
                images[one.name] = (path,)
        return Sample(
            patient=group,
            exam=self._identifier(source.exam, row, number) if source.exam else name,
            side=self._word(source.side, row, number, self._side),
            labels=self._labels(row, number),
            images=images,
            split=self._word(source.split, row, number, _split),
            stratum="" if source.split else _STRATUM,
            name=name,
            tables=self._tables(row, number),
            subgroups=self._subgroups(row, number, group),
            layers=self._layers(row, number),
        )

    def _identifier(self, column: str, row: Row, number: int) -> str:
        if row[column].casefold() in self.missing:
            self.odd.add(column, "missing, but every sample needs one", number)
        return row[column]

    def _word(self, column: str, row: Row, number: int, read: Callable[[str], str]) -> str:
        """A word of a list; empty where there is no such column."""
        if not column:
            return ""
        if row[column].casefold() in self.missing:
            self.odd.add(column, "missing, but every sample needs one", number)
            return ""
        try:
            return read(row[column])
        except OddValue as odd:
            self.odd.add(column, odd.args[0], number, row[column])
            return ""

    def _side(self, text: str) -> str:
        for letter, name in self.card.sides.items():
            if text.casefold() in (letter, name.casefold()):
                return letter
        known = ", ".join(f"{letter} or {name}" for letter, name in self.card.sides.items())
        raise OddValue(f"no side of the card ({known})")

    def _labels(self, row: Row, number: int) -> dict[str, Any]:
        labels = {}
        for task in self.card.tasks:
            labels[task.name] = task.unknown
            if task.dense:
                continue
            try:
                answer = self.answers[task.name](row)
            except OddValue as odd:
                reason, column = odd.args
                known = f" of {task.name} ({', '.join(task.class_names[:8])})" if task.coded else f", for {task.name}"
                self.odd.add(column, f"{reason}{known}", number, row[column])
                continue
            if answer is not None:
                labels[task.name] = answer
        return labels

    def _tables(self, row: Row, number: int) -> dict[str, dict[str, float | int | None]]:
        """Rows of the table modalities; one in which nothing is known is absent."""
        found = {}
        for one in self.card.inputs:
            if one.kind != "table":
                continue
            fields: dict[str, float | int | None] = {}
            for column in one.columns:
                text = row[column.column]
                choice = self.categories.get((one.name, column.name))
                try:
                    fields[column.name] = choice.code(text) if choice else values.number(text, self.missing)
                except OddValue as odd:
                    fields[column.name] = None
                    self.odd.add(column.column, f"{odd.args[0]}, for {one.name}.{column.name}", number)
            if any(value is not None for value in fields.values()):
                found[one.name] = fields
        return found

    def _subgroups(self, row: Row, number: int, holder: str) -> dict[str, str]:
        found = {}
        for name, group in self.source.subgroups.items():
            text = row[group.column]
            try:
                value = group_of(group, text, self.missing)
            except OddValue as odd:
                self.odd.add(group.column, f"{odd.args[0]}, for the subgroup {name}", number)
                continue
            if value is not None:
                found[name] = value
                self.holders[name][value].add(holder)
        return found

    def group_problems(self) -> list[str]:
        """Subgroups whose values could single out patients."""
        return [
            f"column {group.column!r}, for the subgroup {name}: {reason}"
            for name, group in self.source.subgroups.items()
            if (reason := singled_out(group, self.holders[name], self.card.group))
        ]

    def _layers(self, row: Row, number: int) -> dict[str, tuple[MaskFile | None, ...]]:
        """Files of the masks; a task without any is left out, and one of which a named file is not there.

        An empty field says that a class is nowhere in the picture. A file that is named and not there says nothing, so
        that the whole mask is unknown.
        """
        found: dict[str, tuple[MaskFile | None, ...]] = {}
        volumes = {one.name for one in self.card.inputs if one.kind == "volume"}
        for task in self.card.tasks:
            if not task.dense:
                continue
            paths = [
                self.files.find(task.name, mask.pattern, row, number, folders=task.of in volumes)
                for mask in self.source.labels[task.name].masks
            ]
            lost = self.files.named[task.name]
            if number in (*lost.absent[-1:], *lost.outside[-1:]):  # rows are read in their order
                continue
            if any(path is not None for path in paths):
                found[task.name] = tuple(
                    None if path is None else replace(mask, pattern=path)
                    for mask, path in zip(self.source.labels[task.name].masks, paths, strict=True)
                )
        return found


def _split(text: str) -> str:
    split = values.SPLIT_WORDS.get(text.casefold())
    if split is None:
        raise OddValue("none of train, val, test")
    return split


def _identity_problems(found: TableFound, source: Source, reader: _Reader) -> list[str]:
    """Samples that are there twice, and groups in two splits."""
    lines = []
    rows_of: dict[str, list[int]] = defaultdict(list)
    splits_of: dict[str, set[str]] = defaultdict(set)
    first_of: dict[str, int] = {}
    for sample, number in zip(found.plan.samples, found.numbers, strict=True):
        if sample.name.casefold() not in reader.missing:
            rows_of[sample.name].append(number)
        splits_of[sample.patient].add(sample.split)
        first_of.setdefault(sample.patient, number)
    twice = [rows for rows in rows_of.values() if len(rows) > 1]
    if twice:
        lines.append(
            f"column {source.sample!r}: {counted(len(twice), 'sample')} there more than once, first in rows "
            f"{' and '.join(map(str, twice[0][:2]))}; give every sample one row with a name of its own"
        )
    crossing = [group for group, splits in splits_of.items() if len(splits - {""}) > 1]
    if crossing:
        lines.append(
            f"column {source.split!r}: {counted(len(crossing), 'group')} of {source.group or source.sample!r} in more "
            f"than one split, first in row {first_of[crossing[0]]}; a model would be tested on what it has learnt"
        )
    return lines
