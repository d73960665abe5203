"""A contact sheet: some samples with their pictures side by side, each with its key, side and labels in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import TaskSpec, follow_ups, short_key

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

TILE = 160  # pixels of the longer side of a picture
WIDTH = 1320  # of a page that a person can read
_GAP, _SIZE, _LINE = 14, 12, 15  # pixels between samples, of the letters, from line to line
_PAPER, _INK, _FAINT, _EMPTY = (255, 255, 255), (20, 20, 20), (95, 95, 95), (70, 70, 70)


@dataclass(frozen=True)
class Exhibit:
    """What the sheet shows of a sample.

    Attributes:
        title: what it is: split, short key, side.
        labels: its labels in words, one a task.
        pictures: by modality ``uint8 [at most TILE, at most TILE, 3]``; one that the sample lacks is absent.
    """

    title: str
    labels: tuple[str, ...]
    pictures: Mapping[str, NDArray[Any]]


def exhibit(meta: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]], card: Card, split: str = "") -> Exhibit:
    """What to show of a sample.

    Args:
        meta: its ``meta.json``.
        pictures: see :class:`Exhibit`.
        card: card of the data set.
        split: name of its split; empty where it has none.
    """
    side = str(meta.get("side") or "")
    parts = [split, short_key(str(meta["key"])).split("-")[0], f"{card.sides.get(side, side)} {card.unit}".strip()]
    return Exhibit(", ".join(part for part in parts if part), tuple(in_words(card, meta["labels"])), pictures)


def in_words(card: Card, labels: Mapping[str, Any]) -> list[str]:
    """The known labels of a sample, such as ``density: B``; of tasks that ask when an event comes the one that says
    most."""
    together = {task.name for several in follow_ups(card.tasks).values() if len(several) > 1 for task in several}
    found = [
        _answer(task, labels[task.name])
        for task in card.tasks
        if task.name not in together and task.known(labels.get(task.name))
    ]
    for several in follow_ups(card.tasks).values():
        known = [task for task in several if task.known(labels.get(task.name))]
        if len(several) > 1 and known:
            first = next((task for task in known if labels[task.name] == 1), known[-1])
            found.append(_answer(first, labels[first.name]))
    return found or ["no label"]


def _answer(task: TaskSpec, label: Any) -> str:
    name = task.label or task.name
    if task.coded:
        return f"{name}: {task.class_names[label]}"
    if task.dense:
        return f"{name}: outlined" if label == 1 else f"{name}: nothing"
    unit = f" {task.unit}" if task.unit else ""
    if task.kind == "survival":
        return f"{name}: {'at' if label[1] else 'not by'} {label[0]:g}{unit}"
    return f"{name}: {label:g}{unit}"


def draw(exhibits: Sequence[Exhibit], card: Card, heading: str) -> Image:
    """The sheet: samples in as many columns as fit a page, under a line that says what is shown.

    Args:
        exhibits: at least one.
        card: card of the data set; its images and volumes are the pictures of a sample, in their order.
        heading: the line.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = [one for one in card.inputs if one.kind != "table"]
    block = max(2 * TILE, TILE * len(shown))
    columns = max(1, min(len(exhibits), (WIDTH + _GAP) // (block + _GAP)))
    font = ImageFont.load_default(_SIZE)
    wrapped = [_wrapped("; ".join(one.labels), block, font) for one in exhibits]
    rows = [range(start, min(start + columns, len(exhibits))) for start in range(0, len(exhibits), columns)]
    heights = [_LINE * (2 + max(len(wrapped[k]) for k in row)) + TILE + 2 + _GAP for row in rows]
    width = _GAP + columns * (block + _GAP)
    title = _wrapped(heading, width - 2 * _GAP, font)
    top = _GAP + _LINE * len(title) + _GAP // 2
    sheet = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), "\n".join(title), _INK, font, spacing=_LINE - _SIZE)
    for row, height in zip(rows, heights, strict=True):
        for column, k in enumerate(row):
            left, y = _GAP + column * (block + _GAP), top
            pen.text((left, y), _fitting(exhibits[k].title, block, font), _INK, font, stroke_width=0.3)
            for text in wrapped[k]:
                y += _LINE
                pen.text((left, y), text, _INK, font)
            y += _LINE
            for place, spec in enumerate(shown):
                at = (left + place * TILE, y)
                pen.text(at, _fitting(spec.label or spec.name, TILE - 6, font), _FAINT, font)
                _picture(sheet, pen, exhibits[k].pictures.get(spec.name), (at[0], y + _LINE + 2))
        top += height
    return sheet


def _picture(sheet: Image, pen: Any, picture: NDArray[Any] | None, at: tuple[int, int]) -> None:
    """A picture in its square, or the square of one that is absent."""
    from PIL import Image

    if picture is None:
        pen.rectangle((*at, at[0] + TILE - 4, at[1] + TILE - 4), outline=_FAINT)
        pen.text((at[0] + TILE // 2, at[1] + TILE // 2), "absent", _EMPTY, anchor="mm")
    else:
        pen.rectangle((*at, at[0] + TILE - 4, at[1] + TILE - 4), fill=(0, 0, 0))
        sheet.paste(Image.fromarray(picture[: TILE - 3, : TILE - 3]), at)


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    """The text in lines of at most a width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _fitting(text: str, width: int, font: Any) -> str:
    """The text, cut with an ellipsis where it is wider than a number of pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
