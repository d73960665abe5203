"""Proposes a card from a table: what each column seems to be, with a comment on every choice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives.doubts import means_no_event
from data_tools.archives.tables import header_of, read_table
from data_tools.archives.values import EVENTS, FEWEST_HOLDERS, holds_number
from data_tools.cards import columns
from data_tools.cards.columns import Seen, card_name
from data_tools.deidentify import find_identifiers
from data_tools.pixels.dicom import BadImage
from data_tools.pixels.formats import decode_file, guarded, kind_of, tiff_pages
from data_tools.pixels.nifti import read_nifti
from m4oe_ds.data.cards import parse_card
from m4oe_ds.errors import DataError, UserError
from m4oe_ds.yaml_tree import parse_tree

_NIFTI = (".nii", ".nii.gz")
MOST_MASK_CLASSES, MASKS_LOOKED_AT = 8, 5
_AS_TEXT = "save it as UTF-8 text, .xlsx or .parquet (which needs pyarrow)"
_BINARY = ({"0", "1"}, {"no", "yes"}, {"n", "y"}, {"false", "true"})


@dataclass
class _Draft:
    """Lines of the parts of a card."""

    modalities: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    subgroups: list[str] = field(default_factory=list)
    table: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    images: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def name(self, column: str) -> str:
        """A name that no other modality or task has."""
        name = card_name(column, self.names)
        self.names.append(name)
        return name


def propose(table: Path, root: Path, name: str = "") -> str:
    """The text of a card, with comments; it can be read back and fits the table.

    Args:
        table: the table.
        root: folder of the files; the table lies below it.
        name: name of the data set; empty takes that of the folder.

    Raises:
        DataError: no or an unreadable table, one outside the root, or one of which no card can be made.
    """
    if not table.is_file():
        raise DataError("is not here", str(table), "give the path of the table as --table")
    try:
        relative = table.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise DataError("is not below the root", str(table), f"move it below {root}, or give another --root") from None
    try:
        header = header_of(table)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise DataError(f"is not a readable table ({type(error).__name__})", str(table), _AS_TEXT) from None
    usable = [column for column in header if column and header.count(column) == 1 and not set(column) & set("{}")]
    fields: dict[str, list[str]] = {column: [] for column in usable}
    for row in read_table(table, usable, again=_AS_TEXT):
        if any(row.values()):
            for column in usable:
                fields[column].append(row[column])
    if not usable or not fields[usable[0]]:
        raise DataError("has no rows", str(table), "give a table with a row for every sample")
    seen = [columns.look(column, fields[column], root) for column in usable]
    sample = columns.best([one for one in seen if one.unique and one.role not in ("path", "number")], "sample")
    sample = sample or columns.best([one for one in seen if one.unique], "sample")
    if sample is None:
        raise DataError("has no column with a value of its own in every row", str(table), "add one that names samples")
    text = _card(relative, root, name or root.resolve().name, seen, sample, fields)
    try:
        parse_card(parse_tree(text, "the proposed card"), "the proposed card")
    except UserError as error:
        raise DataError(
            f"no card can be made of it: {error}", str(table), "write one: docs/guide/your-own-data.md"
        ) from None
    return text


def _card(
    relative: str, root: Path, name: str, seen: Sequence[Seen], sample: Seen, fields: dict[str, list[str]]
) -> str:
    draft = _Draft()
    rest = [one for one in seen if one is not sample or one.role == "path"]
    group = columns.best([one for one in rest if one.role != "path" and one.known == len(fields[one.column])], "group")
    split = columns.best([one for one in rest if one.role == "split"], "split")
    rest = [one for one in rest if one is not group and one is not split]
    masks = [one for one in rest if one.role == "path" and (columns.is_mask(one) or _few_values(one, fields, root))]
    for one in [one for one in rest if one.role == "path" and one not in masks]:
        _add_picture(draft, one.column, f"{{{one.column}}}", fields[one.column], root)
    if not draft.files:
        for pattern in columns.find_pattern(fields[sample.column], sample.column, root):
            _add_picture(draft, _folder_name(pattern), pattern, fields[sample.column], root)
    for one in masks:
        _add_mask(draft, one, fields[one.column], root)
    rest = [one for one in rest if one.role != "path"]
    pair = columns.time_and_event(rest, fields)
    if pair is not None:
        _add_survival(draft, *pair, fields)
        rest = [one for one in rest if one not in pair]
    inputs = [one for one in rest if one.role in ("few", "number") and (columns.known_before(one))]
    answers = [one for one in rest if one.role in ("few", "number") and one not in inputs]
    if not draft.files and not inputs:  # a table alone: the last column is the question, as is usual
        inputs, answers = answers[:-1], answers[-1:]
    for one in answers:
        _add_answer(draft, one, fields[one.column])
    for one in inputs:
        _add_input(draft, one, fields[one.column])
    for one in rest:
        if one.role not in ("few", "number"):
            again = ", some of them twice" if one.repeated else ""
            why = {
                "identifiers": f"looks like identifiers or dates{again}",
                "empty": "is empty",
                "comma": "has numbers with a decimal comma: write a decimal point",
            }.get(one.role, "is free text")
            draft.left_out.append(f"#   {json.dumps(one.column)} {why}")
    return _text(relative, name, draft, sample, group, split)


def _folder_name(pattern: str) -> str:
    folder = pattern.rpartition("/")[0].rpartition("/")[2]
    return folder or "image"


def _text(relative: str, name: str, draft: _Draft, sample: Seen, group: Seen | None, split: Seen | None) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")[:32].strip("-") or "my-data"
    lines = [
        "# Proposed from the table; read it through. Next: m4oe card check THIS_FILE",
        f"name: {slug}",
        f"{f'unit: {_unit(sample)}':29}# what one row is called in sentences: visit, slide, scan",
        "modalities:                  # what a model sees",
        *draft.modalities,
        *(_CLINIC if draft.table else ()),
        *draft.table,
        "tasks:                       # what it is asked",
        *draft.tasks,
        "source:",
        f"  table: {json.dumps(relative)}",
        f"  sample: {json.dumps(sample.column)}  # every row has a value of its own here",
    ]
    if group is not None:
        lines.append(f"  group: {json.dumps(group.column)}  # rows of one group are never learnt and tested on")
    else:
        lines.append("  # group: COLUMN            # rows of one patient: name the column that says whose they are")
    if split is not None:
        lines.append(f"  split: {json.dumps(split.column)}")
    else:
        lines.append("  split: {train: 70, val: 10, test: 20}  # percent of the groups, drawn by the conversion")
    if draft.files:
        lines += ["  files:", *draft.files]
    lines += ["  labels:", *draft.labels]
    if draft.subgroups:
        lines.append(
            "  subgroups:                 # results are told apart by these; their words go into shards: check them"
        )
        lines += draft.subgroups
    if draft.images:
        kinds = "".join(draft.modalities)
        if "{kind: image" in kinds:
            lines.append("  size: [512, 512]           # rows and columns of stored images")
        if "{kind: volume" in kinds:
            lines.append("  volume_size: [64, 128, 128]  # depth, rows and columns of stored volumes, cubic voxels")
    if draft.left_out:
        lines += ["# columns that were left out:", *draft.left_out]
    return "\n".join(lines) + "\n"


def _unit(sample: Seen) -> str:
    """What a row is called, from the column that names rows: an eye where that is ``eye`` or ``eye_id``."""
    word = re.sub(r"(_?id|_name|_no|_nr)$", "", sample.column.casefold())
    return word if re.fullmatch("[a-z]{3,}", word) and word not in ("name", "key", "index", "number") else "sample"


_CLINIC = (
    "  clinic:                    # known before the question is asked; move what is asked for to tasks",
    "    kind: table",
    "    columns:",
)


def _add_picture(draft: _Draft, column: str, pattern: str, fields: Sequence[str], root: Path) -> None:
    """A modality for files; what the first of them is decides its kind."""
    path = _first(pattern, fields, root)
    if path is None:
        return
    try:
        kind, channels, shape, words = describe(path)
    except BadImage as bad:
        draft.left_out.append(
            f"#   {json.dumps(column)} names files that cannot be read ({bad.reason.replace('_', ' ')})"
        )
        return
    name = draft.name(column)
    draft.images[name] = shape
    more = f", channels: {channels}" if kind == "image" else ""
    draft.modalities.append(f"  {name}: {{kind: {kind}{more}}}  # the first file: {words}")
    draft.files.append(f"    {name}: {json.dumps(pattern)}")


def _first(pattern: str, fields: Sequence[str], root: Path) -> Path | None:
    """The first file of a pattern of one column that is there."""
    before, _, rest = pattern.partition("{")
    for text in fields:
        path = root / f"{before}{text}{rest.partition('}')[2]}"
        if text and path.exists():
            return path
    return None


def describe(path: Path) -> tuple[str, int, tuple[int, ...], str]:
    """``(image or volume, channels, shape, words)`` of a file or folder.

    Raises:
        BadImage: it is no picture and no volume.
    """
    if path.name.lower().endswith(_NIFTI):
        shape = tuple(guarded(lambda: read_nifti(path), "nibabel").values.shape)
        return "volume", 1, shape, f"NIfTI, {' x '.join(map(str, shape))}"
    if path.is_dir() or _is_volume(path):
        return "volume", 1, (), "a folder of slices" if path.is_dir() else "a volume"
    kind = kind_of(path)
    if kind == "dicom":
        return "image", 1, (), "DICOM"
    decoded = decode_file(path)
    height, width, _ = decoded.values.shape
    pixels = decoded.values[:, :, :-1] if decoded.alpha else decoded.values
    grey = pixels.shape[2] == 3 and bool((pixels == pixels[:, :, :1]).all())
    count = 1 if grey else pixels.shape[2]
    words = f"{kind}, {height} x {width}, {8 * decoded.values.dtype.itemsize} bits"
    return "image", count, (height, width), words + (", colours that are all grey" if grey else "")


def _is_volume(path: Path) -> bool:
    kind = kind_of(path)
    if kind == "npy":
        shape: tuple[int, ...] = guarded(lambda: np.load(path, mmap_mode="r", allow_pickle=False).shape)
        return len(shape) == 3 and shape[2] > 4
    if kind == "tiff":
        from tifffile import TiffFile

        def pages() -> int:
            with TiffFile(path) as file:
                return len(tiff_pages(file))

        return bool(guarded(pages) > 1)
    return False


def _stored(path: Path) -> NDArray[Any]:
    """Values of a mask as they are stored, [H, W] or [D, H, W].

    Raises:
        BadImage: it cannot be read.
    """
    if path.name.lower().endswith(_NIFTI):
        values: NDArray[Any] = guarded(lambda: read_nifti(path), "nibabel").values
        return values
    decoded = decode_file(path, indices=True)
    if decoded.values.shape[2] != 1:
        raise BadImage("colour")
    return decoded.values[:, :, 0]


def _few_values(one: Seen, fields: dict[str, list[str]], root: Path) -> bool:
    """Whether the first file of a column holds a few whole numbers, as masks do."""
    path = _first(f"{{{one.column}}}", fields[one.column], root)
    if path is None or path.is_dir():
        return False
    try:
        values = np.unique(_stored(path))
    except BadImage:
        return False
    return 1 < len(values) <= MOST_MASK_CLASSES + 1 and values[0] == 0 and bool((values == np.rint(values)).all())


def _add_mask(draft: _Draft, one: Seen, fields: Sequence[str], root: Path) -> None:
    """A mask task over the first image of the same size, with as many classes as its first files have values."""
    values: set[int] = set()
    shape: tuple[int, ...] = ()
    paths = [root / text for text in fields if text and (root / text).is_file()][:MASKS_LOOKED_AT]
    try:
        for path in paths:
            stored = _stored(path)
            shape = shape or stored.shape
            values |= {int(value) for value in np.unique(stored)[:256]}
    except BadImage:
        values = set()
    owner = next((name for name, size in draft.images.items() if size == shape), None)
    values -= {0}
    several = bool(values) and max(values) <= MOST_MASK_CLASSES and len(values) > 1
    if owner is None or not values or not (several or len(values) == 1):
        draft.left_out.append(
            f"#   {json.dumps(one.column)} seems to name masks, but "
            + (
                "no image or volume is of their size"
                if owner is None
                else f"has {len(values)} values: say what they mean"
            )
        )
        return
    name = draft.name(one.column)
    classes = [f"class_{k}" for k in range(1, max(values) + 1)] if several else [name]
    draft.tasks.append(f"  {name}: {{kind: mask, of: {owner}, classes: {json.dumps(classes)}}}  # name the classes")
    draft.labels.append(f"    {name}: {json.dumps(f'{{{one.column}}}')}")


def _add_survival(draft: _Draft, time: Seen, event: Seen, fields: dict[str, list[str]]) -> None:
    name = draft.name(event.column)
    inverse = means_no_event(event.column)
    came = [str(1 - EVENTS.get(field.casefold(), 1)) if inverse else field for field in fields[event.column]]
    found = columns.horizons(fields[time.column], came)
    listed = ", ".join(f"{horizon:g}" for horizon in found)
    unit = next((word for word in ("days", "months", "years") if word in time.name), "years")
    draft.tasks.append(
        f"  {name}: {{kind: survival, horizons: [{listed}], unit: {unit}}}  # times at which the risk is stated; check "
        "the unit"
    )
    words = {value: "yes" if EVENTS[value.casefold()] != inverse else "no" for value in event.values}
    told = f", values: {json.dumps(words, ensure_ascii=False)}" if inverse else ""
    draft.labels.append(
        f"    {name}: {{time: {json.dumps(time.column)}, event: {json.dumps(event.column)}{told}}}"
        f"  # {', '.join(value for value, word in words.items() if word == 'yes')} = the event came"
    )


def _add_answer(draft: _Draft, one: Seen, fields: Sequence[str]) -> None:
    """A task for a column."""
    name = draft.name(one.column)
    if one.role == "number":
        draft.tasks.append(f"  {name}: {{kind: number}}  # add unit: mmHg and the like")
        draft.labels.append(f"    {name}: {json.dumps(one.column)}")
        return
    classes = columns.class_values(one, fields)
    lower = {value.casefold() for value in classes}
    label: Any = json.dumps(one.column)
    if lower in _BINARY:
        yes = next(value for value in classes if value.casefold() in ("1", "yes", "y", "true"))
        no = next(value for value in classes if value != yes)
        if lower != {"no", "yes"}:
            label = f'{{column: {label}, values: {{{json.dumps(no)}: "no", {json.dumps(yes)}: "yes"}}}}'
        classes = ["no", "yes"]
    numbers = all(value.lstrip("-").isdigit() for value in classes) and len(classes) > 2
    kind = "binary" if len(classes) == 2 else "ordinal" if numbers else "classes"
    why = {
        "binary": "the second is the one asked about",
        "ordinal": "whole numbers; `classes` if their order means nothing",
        "classes": "few values; `ordinal`, in order, if they are grades",
    }[kind]
    draft.tasks.append(f"  {name}: {{kind: {kind}, classes: {json.dumps(classes, ensure_ascii=False)}}}  # {why}")
    draft.labels.append(f"    {name}: {label}")


def _add_input(draft: _Draft, one: Seen, fields: Sequence[str]) -> None:
    """A column of the table modality, and a subgroup where it has few values."""
    more = "" if one.name == one.column else f", column: {json.dumps(one.column)}"
    if one.role == "number":
        draft.table.append(f"      {one.name}: {{kind: number{more}}}")
        return
    values = columns.class_values(one, fields)
    draft.table.append(f"      {one.name}: {{kind: category, values: {json.dumps(values, ensure_ascii=False)}{more}}}")
    rows = Counter(fields)
    if any(rows[value] < FEWEST_HOLDERS or holds_number(value) or find_identifiers(value) for value in values):
        return  # ages, years, codes of persons, or of a few: a person has to list what may go into shards
    listed = json.dumps({value: value for value in values}, ensure_ascii=False)
    draft.subgroups.append(f"    {one.name}: {{column: {json.dumps(one.column)}, values: {listed}}}")
