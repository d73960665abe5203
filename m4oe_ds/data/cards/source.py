"""The section ``source`` of a card: the table, the files and the labels of one's own data, or an archive's reader."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from m4oe_ds.data.cards.card import LabelSource, MaskFile, Source, Subgroup
from m4oe_ds.data.cards.reading import COLUMN, NAME, Part
from m4oe_ds.data.schema import SPLITS, ModalitySpec, TaskSpec
from m4oe_ds.yaml_tree import Node, nearest

LONGEST_GROUP = 32  # letters in the value of a subgroup
TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet")


def read_source(part: Part, inputs: tuple[ModalitySpec, ...], tasks: tuple[TaskSpec, ...], sides: bool) -> Source:
    """The section, checked against the modalities and tasks of the card.

    Args:
        part: the section.
        inputs: modalities of the card.
        tasks: tasks of the card.
        sides: whether the card says that samples have sides.
    """
    if part.has("reader"):
        source = Source(
            reader=part.text("reader"),
            subgroups=_subgroups(part.part("subgroups")),
            missing=part.texts("missing"),
        )
        part.finish()
        return source
    part.require("table", "sample")
    table = part.text("table")
    if table:
        _check_path(part, "table", table)
        if PurePosixPath(table).suffix.lower() not in TABLES:
            part.wrong("table", f"{table!r} must be one of {', '.join(TABLES)}")
    side = part.text("side")
    if side and not sides:
        part.wrong("side", "names a column, but the card lists no `sides`")
    split, shares = _split(part)
    source = Source(
        table=table,
        sample=part.text("sample"),
        group=part.text("group"),
        exam=part.text("exam"),
        side=side,
        split=split,
        shares=shares,
        files=_files(part.part("files"), inputs),
        ranges=_ranges(part.part("ranges"), inputs),
        labels=_labels(part.part("labels"), tasks),
        subgroups=_subgroups(part.part("subgroups")),
        missing=part.texts("missing"),
        size=_size(part, "size", Source.size),
        volume_size=_size(part, "volume_size", Source.volume_size),
    )
    _check_answers(part.part("labels"), source, inputs)
    part.finish()
    return source


def _check_answers(part: Part, source: Source, inputs: tuple[ModalitySpec, ...]) -> None:
    """A model must not be shown the answer, and a time is not an event."""
    shown = {column.column: f"modalities.{one.name}.columns.{column.name}" for one in inputs for column in one.columns}
    pictures = {pattern: f"source.files.{name}" for name, pattern in source.files.items()}
    for name, label in source.labels.items():
        for mask in label.masks:
            if mask.pattern in pictures:
                part.wrong(name, f"is answered by {mask.pattern!r}, which {pictures[mask.pattern]} shows to the model")
        for column in dict.fromkeys((label.column, label.event)):
            if column in shown:
                part.wrong(name, f"is answered by the column {column!r}, which {shown[column]} shows to the model")
        if label.event and label.event == label.column:
            part.wrong(name, f"has the column {label.column!r} for both the time and the event")


def _size(part: Part, key: str, default: tuple[int, ...]) -> Any:
    """A size of as many whole numbers as the default has."""
    values = part.numbers(key, len(default), ascending=False) if part.has(key) else ()
    if any(value != int(value) or not 8 <= value <= 8192 for value in values):
        part.wrong(key, f"must be {len(default)} whole numbers from 8 to 8192")
        return default
    return tuple(int(value) for value in values) or default


def columns_in(pattern: str) -> list[str]:
    """Columns that a pattern names: those in braces, or the pattern itself if it has none."""
    return COLUMN.findall(pattern) or [pattern]


def _check_pattern(part: Part, key: str, text: str) -> None:
    """A pattern of files: a path with columns in braces, or the name of a column that holds the path."""
    if "/" in text and "{" not in text:
        part.wrong(key, f"{text!r} is one file for all samples; write a {{column}} in it, or name a column of paths")
    _check_path(part, key, text)


def _check_path(part: Part, key: str, text: str) -> None:
    """A path stays below the root, so that a card means the same on every machine and names no folder of one."""
    if (
        PurePosixPath(text).is_absolute()
        or "\\" in text
        or ":" in text.split("/")[0]
        or ".." in PurePosixPath(text).parts
    ):
        part.wrong(key, f"{text!r} must be a path below the folder of the data, with / between its parts")
    for name in COLUMN.findall(text):
        if not name.strip():
            part.wrong(key, f"{text!r} has empty braces; write a column between them")
    if text.count("{") != len(COLUMN.findall(text)) or text.count("}") != len(COLUMN.findall(text)):
        part.wrong(key, f"{text!r} has a brace without its partner")


def _split(part: Part) -> tuple[str, tuple[int, int, int]]:
    node = part.node("split")
    if node is None:
        return "", Source.shares
    if not isinstance(node.value, dict):
        return part.text("split"), Source.shares
    shares = part.part("split")
    values = [shares.whole(name, 0, 0, 100) for name in SPLITS]
    shares.finish()
    if sum(values) != 100 or values[0] == 0:
        part.wrong("split", f"must sum to 100 percent with some for train, got {'/'.join(map(str, values))}")
    return "", (values[0], values[1], values[2])


def _known(part: Part, known: tuple[str, ...], what: str) -> list[str]:
    """The keys that are known; the others are noted."""
    for key, node in part.nodes.items():
        if key not in known:
            part.problems.add(node.where, f"{part.dotted(key)} is no {what}{nearest(key, known)}")
            part.node(key)
    return [key for key in part.nodes if key in known]


def _files(part: Part, inputs: tuple[ModalitySpec, ...]) -> dict[str, str]:
    wanted = tuple(one.name for one in inputs if one.kind != "table")
    tables = {one.name for one in inputs} - set(wanted)
    found = {}
    for key in list(part.nodes):
        if key in tables:
            part.wrong(key, "is a table: its columns are in the table itself, it has no file")
    for key in _known(part, (*wanted, *sorted(tables)), "modality"):
        pattern = part.text(key)
        if key in wanted and pattern:
            _check_pattern(part, key, pattern)
            found[key] = pattern
    for name in wanted:
        if name not in found and not part.has(name):
            part.problems.add(part.where, f"{part.dotted(name)} is missing: say where its files lie")
    part.finish()
    return found


def _ranges(part: Part, inputs: tuple[ModalitySpec, ...]) -> dict[str, tuple[float, float]]:
    found = {}
    for key in _known(part, tuple(one.name for one in inputs if one.kind != "table"), "image or volume"):
        values = part.numbers(key, 2)
        if values:
            found[key] = (values[0], values[1])
    part.finish()
    return found


def _labels(part: Part, tasks: tuple[TaskSpec, ...]) -> dict[str, LabelSource]:
    by_name = {task.name: task for task in tasks}
    found = {}
    for key in _known(part, tuple(by_name), "task"):
        task = by_name[key]
        node = part.node(key)
        assert node is not None or not part.has(key)
        if node is None:
            continue
        if task.kind == "survival":
            found[key] = _survival(part.part(key))
        elif task.dense:
            found[key] = LabelSource(masks=_masks(part, key, node, task))
        else:
            found[key] = _column(part, key, node, task)
    for name in by_name:
        if name not in found and not part.has(name):
            part.problems.add(part.where, f"{part.dotted(name)} is missing: say where its answers stand")
    part.finish()
    return found


def _survival(part: Part) -> LabelSource:
    part.require("time", "event")
    source = LabelSource(column=part.text("time"), event=part.text("event"), values=_values(part, ("no", "yes")))
    part.finish()
    return source


def _column(part: Part, key: str, node: Node, task: TaskSpec) -> LabelSource:
    if not isinstance(node.value, dict):
        return LabelSource(column=part.text(key))
    entry = part.part(key)
    entry.require("column")
    source = LabelSource(column=entry.text("column"), values=_values(entry, task.class_names) if task.coded else {})
    entry.finish()
    return source


def _values(entry: Part, classes: tuple[str, ...]) -> dict[str, str]:
    """``{value of the column: class}``."""
    inner = entry.part("values")
    found = {}
    for value in inner.nodes:
        name = inner.text(value)
        if name not in classes:
            inner.wrong(value, f"is {name!r}, which is no class{nearest(name, classes)}")
        found[value] = name
    return found


def _masks(part: Part, key: str, node: Node, task: TaskSpec) -> tuple[MaskFile, ...]:
    """One file for all classes, or one per class."""
    if not isinstance(node.value, dict):
        pattern = part.text(key)
        _check_pattern(part, key, pattern)
        return (MaskFile(pattern),)
    entry = part.part(key)
    if "file" in entry.nodes:
        return (_mask_file(entry, task.class_names),)
    files = []
    for name in task.class_names:
        inner = entry.node(name)
        if inner is None:
            entry.problems.add(entry.where, f"{entry.dotted(name)} is missing: say where the mask of this class lies")
        elif isinstance(inner.value, dict):
            files.append(_mask_file(entry.part(name), (name,)))
        else:
            _check_pattern(entry, name, entry.text(name))
            files.append(MaskFile(entry.text(name)))
    entry.finish()
    return tuple(files)


def _mask_file(entry: Part, classes: tuple[str, ...]) -> MaskFile:
    entry.require("file")
    pattern = entry.text("file")
    _check_pattern(entry, "file", pattern)
    at_least = entry.number("at_least", None)
    if at_least is not None and len(classes) > 1:
        entry.wrong("at_least", "needs one file per class")
    values: list[tuple[int, ...]] = []
    if entry.has("values"):
        inner = entry.part("values")
        for name in _known(inner, classes, "class"):
            inner.numbers(name, ascending=False)
        values = [tuple(int(value) for value in inner.numbers(name, ascending=False)) for name in classes]
        if any(not one for one in values):
            entry.wrong("values", f"must list the stored values of every class: {', '.join(classes)}")
        inner.finish()
        if at_least is not None:
            entry.wrong("values", "and at_least exclude each other")
    entry.finish()
    return MaskFile(pattern, tuple(values), at_least)


def _subgroups(part: Part) -> dict[str, Subgroup]:
    found = {}
    for name, node in part.nodes.items():
        if not NAME.fullmatch(name):
            part.problems.add(
                node.where, f"{name!r} cannot name a subgroup: use lower-case letters, digits and underscores"
            )
        if isinstance(node.value, dict):
            entry = part.part(name)
            entry.require("column")
            values = entry.part("values")
            found[name] = Subgroup(
                entry.text("column"), entry.numbers("bands"), {key: values.text(key) for key in values.nodes}
            )
            if found[name].bands and found[name].values:
                entry.wrong("values", "and bands exclude each other")
            for key, group in found[name].values.items():
                if not 0 < len(group) <= LONGEST_GROUP:
                    values.wrong(key, f"must be the name of a group, of at most {LONGEST_GROUP} letters")
            entry.finish()
        else:
            found[name] = Subgroup(part.text(name))
    part.finish()
    return found


def columns_of(source: Source, inputs: tuple[ModalitySpec, ...]) -> dict[str, str]:
    """Every column that the source reads, with what for."""
    found: dict[str, str] = {source.sample: "source.sample"}
    for key in ("group", "exam", "side", "split"):
        if getattr(source, key):
            found.setdefault(getattr(source, key), f"source.{key}")
    for name, pattern in source.files.items():
        for column in columns_in(pattern):
            found.setdefault(column, f"source.files.{name}")
    for name, label in source.labels.items():
        for column in (label.column, label.event, *(c for mask in label.masks for c in columns_in(mask.pattern))):
            if column:
                found.setdefault(column, f"source.labels.{name}")
    for name, group in source.subgroups.items():
        found.setdefault(group.column, f"source.subgroups.{name}")
    for one in inputs:
        for column_ in one.columns:
            found.setdefault(column_.column, f"modalities.{one.name}.columns.{column_.name}")
    return found
