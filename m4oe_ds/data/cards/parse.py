"""A card's YAML to a :class:`Card`; every mistake is one line with file and line number."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.data.cards.card import Card, Source
from m4oe_ds.data.cards.reading import NAME, Part, Problems
from m4oe_ds.data.cards.source import read_source
from m4oe_ds.data.schema import MODALITY_KINDS, TASK_KINDS, Column, ModalitySpec, TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import Node, plain, read_tree

MOST_CHANNELS = 4
MOST_CLASSES = 1000
MOST_MASK_CLASSES = 8  # a stored mask has a bit for each
MOST_MODALITIES = 62  # a manifest has a bit for each
# attributes of the containers that models keep modalities and tasks in, and members of a sample that are neither
_RESERVED = (
    "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear", "compile", "copy", "cpu",
    "cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward", "fromkeys", "get", "get_buffer",
    "get_extra_state", "get_parameter", "get_submodule", "half", "ipu", "items", "keys", "load_state_dict", "meta",
    "modules", "mtia", "named_buffers", "named_children", "named_modules", "named_parameters", "parameters", "pop",
    "popitem", "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter", "register_state_dict_post_hook",
    "register_state_dict_pre_hook", "requires_grad_", "set_extra_state", "set_submodule", "setdefault",
    "share_memory", "shared", "state_dict", "to", "to_empty", "train", "training", "type", "update", "values",
    "xpu", "zero_grad",
)  # fmt: skip
RESERVED = frozenset(_RESERVED)
_OF_A_CONFIGURATION = {"run", "data", "model", "loss", "schedule", "optim", "parallel", "evaluation", "extends"}


def read_card(path: Path) -> Card:
    """The card in a file.

    Raises:
        ConfigError: not readable, or mistakes: one line each, with file and line.
    """
    return parse_card(read_tree(path), str(path))


def parse_card(tree: Node, name: str) -> Card:
    """The card in a YAML tree.

    Args:
        tree: the tree.
        name: file it came from, for the messages.

    Raises:
        ConfigError: mistakes, one line each.
    """
    problems = Problems()
    if not isinstance(tree.value, dict) or not tree.value:
        raise ConfigError(
            "is not a card: a mapping with name, modalities and tasks", name, "see docs/guide/your-own-data.md"
        )
    if "modalities" not in tree.value and tree.value.keys() & _OF_A_CONFIGURATION:
        raise ConfigError("is a configuration, not a card", name, "give it to --config, and the card of the data here")
    top = Part(tree, "", problems)
    top.require("name", "modalities", "tasks")
    inputs = _modalities(top.part("modalities"))
    tasks = _tasks(top.part("tasks"), inputs)
    sides = {key: node.text(key) for key, node in ((key, top.part("sides")) for key in top.part("sides").nodes)}
    _check_sides(top, sides)
    both = sorted({one.name for one in inputs} & {task.name for task in tasks})
    if both:
        top.wrong("tasks", f"has names of modalities: {', '.join(both)}; the two must differ")
    source: Source | None = None
    if top.has("source"):
        source = read_source(top.part("source"), inputs, tasks, bool(sides))
    card = Card(
        name=top.text("name"),
        inputs=inputs,
        tasks=tasks,
        title=top.text("title") or top.text("name"),
        unit=top.text("unit", "sample"),
        group=top.text("group", "patient"),
        sides=sides,
        notice=top.text("notice"),
        headline=top.texts("headline"),
        strata=top.texts("strata"),
        source=source,
        content=plain(tree),
    )
    _check_whole(top, card)
    top.finish()
    if problems.lines:
        raise ConfigError("\n".join(problems.lines))
    return card


def _check_whole(top: Part, card: Card) -> None:
    if card.name and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.name):
        top.wrong("name", f"{card.name!r} must be lower-case letters, digits and hyphens, such as my-scans")
    elif len(card.name) > 32:
        top.wrong("name", f"has {len(card.name)} letters; at most 32 fit into a sample's key")
    for name in card.headline:
        if name not in {task.name for task in card.tasks}:
            top.wrong("headline", f"names {name!r}, which is no task")
    for name in card.strata:
        if name not in {task.name for task in card.tasks if task.coded}:
            top.wrong("strata", f"names {name!r}, which is no task of classes")


def _check_sides(top: Part, sides: Mapping[str, str]) -> None:
    for letter in sides:
        if not re.fullmatch("[a-z]", letter):
            top.wrong("sides", f"has {letter!r}; a side is one lower-case letter, such as l and r")
    if len(sides) > 2:
        top.wrong("sides", f"has {len(sides)} sides; a body has two at most")


def _names(part: Part, what: str) -> None:
    if not part.nodes:
        part.problems.add(part.where, f"{part.path} is empty; name at least one {what}")
    for name, node in part.nodes.items():
        if not NAME.fullmatch(name):
            part.problems.add(
                node.where, f"{name!r} cannot name a {what}: use lower-case letters, digits and underscores"
            )
        elif name in RESERVED:
            part.problems.add(node.where, f"{name!r} cannot name a {what}: it is reserved; write {name}_ instead")


def _modalities(part: Part) -> tuple[ModalitySpec, ...]:
    _names(part, "modality")
    if len(part.nodes) > MOST_MODALITIES:
        part.problems.add(part.where, f"{part.path} has {len(part.nodes)} entries; at most {MOST_MODALITIES} fit")
    found = []
    for name, entry in part.parts():
        entry.require("kind")
        kind = entry.choice("kind", MODALITY_KINDS, "image")
        columns: tuple[Column, ...] = ()
        channels = slices = 0
        if kind == "table":
            entry.require("columns")
            columns = _columns(entry.part("columns"))
        else:
            channels = entry.whole("channels", 1, 1, MOST_CHANNELS if kind == "image" else 1)
        if kind == "volume":
            slices = entry.whole("slices", 0, 2, 4096)
        words = {key: entry.text(key) for key in ("label", "type", "view")}
        entry.finish()
        found.append(ModalitySpec(name, kind, channels, words["label"], slices, columns, words["type"], words["view"]))
    return tuple(found)


def _columns(part: Part) -> tuple[Column, ...]:
    if not part.nodes:
        part.problems.add(part.where, f"{part.path} is empty; name at least one column")
    found = []
    for name, entry in part.parts():
        if not NAME.fullmatch(name):
            entry.problems.add(
                entry.where,
                f"{name!r} cannot name a column: use lower-case letters, digits and underscores (and "
                "`column: ...` for what it is called in the table)",
            )
        entry.require("kind")
        kind = entry.choice("kind", ("number", "category"), "number")
        values = entry.texts("values") if kind == "category" else ()
        if kind == "category":
            entry.require("values")
        found.append(Column(name, kind, values, entry.text("column", name)))
        entry.finish()
    return tuple(found)


def _tasks(part: Part, inputs: tuple[ModalitySpec, ...]) -> tuple[TaskSpec, ...]:
    _names(part, "task")
    found = []
    for name, entry in part.parts():
        entry.require("kind")
        kind = entry.choice("kind", TASK_KINDS, "classes")
        found.append(TaskSpec(name=name, kind=kind, label=entry.text("label"), **_KINDS[kind](entry, inputs)))
        entry.finish()
    return tuple(found)


def _class_names(entry: Part, least: int, most: int, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    names = entry.texts("classes")
    if not names and not entry.has("classes"):
        if not default:
            entry.require("classes")
        return default
    if names and not least <= len(names) <= most:
        entry.wrong("classes", f"has {len(names)} classes; this kind has {_range(least, most)}")
    return names


def _range(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def _coded(entry: Part, _: tuple[ModalitySpec, ...]) -> dict[str, Any]:
    names = _class_names(entry, 2, MOST_CLASSES)
    return {"num_classes": len(names), "class_names": names}


def _binary(entry: Part, _: tuple[ModalitySpec, ...]) -> dict[str, Any]:
    names = _class_names(entry, 2, 2, ("no", "yes"))
    horizon = entry.number("horizon", 0.0) or 0.0
    if horizon < 0:
        entry.wrong("horizon", f"must be above 0, got {horizon:g}")
    return {
        "num_classes": 2,
        "class_names": names,
        "horizon": horizon,
        "event": entry.text("event", "event" if horizon else ""),
        "unit": entry.text("unit", "years" if horizon else ""),
    }


def _number(entry: Part, _: tuple[ModalitySpec, ...]) -> dict[str, Any]:
    return {"num_classes": 1, "unit": entry.text("unit")}


def _survival(entry: Part, _: tuple[ModalitySpec, ...]) -> dict[str, Any]:
    entry.require("horizons")
    horizons = entry.numbers("horizons")
    if horizons and horizons[0] <= 0:
        entry.wrong("horizons", f"must be above 0, got {horizons[0]:g}")
    unit = entry.text("unit", "years")
    names = tuple(f"within {horizon:g} {unit}" for horizon in horizons)
    return {
        "num_classes": len(horizons),
        "class_names": names,
        "horizons": horizons,
        "unit": unit,
        "event": entry.text("event", "event"),
    }


def _mask(entry: Part, inputs: tuple[ModalitySpec, ...]) -> dict[str, Any]:
    entry.require("of")
    owner = entry.name("of")
    known = {one.name: one for one in inputs}
    if owner and owner not in known:
        entry.wrong("of", f"names {owner!r}, which is no modality (known: {', '.join(known)})")
    elif owner and known[owner].kind == "table":
        entry.wrong("of", f"names {owner!r}, a table; a mask lies over an image or a volume")
    elif owner and known[owner].slices:
        entry.wrong("of", f"names {owner!r}, whose slices are channels; a mask lies over an image or a volume in 3-D")
    names = _class_names(entry, 1, MOST_MASK_CLASSES)
    return {"num_classes": len(names), "class_names": names, "of": owner}


_KINDS: dict[str, Callable[[Part, tuple[ModalitySpec, ...]], dict[str, Any]]] = {
    "classes": _coded,
    "ordinal": _coded,
    "binary": _binary,
    "number": _number,
    "survival": _survival,
    "mask": _mask,
}
