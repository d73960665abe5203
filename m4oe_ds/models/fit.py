"""Which problems a system can be built for, as rules on what a card says; no rule knows a data set by name.

Standard library only: the question is asked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import ModalitySpec, TaskSpec

# what the `view` and `type` of a modality may be for Mirai, which has learned vectors for each
VIEWS = ("cc", "mlo")
TYPES = ("ffdm", "syn")


class Problem(Protocol):
    """What the rules ask: :class:`Question`, or :class:`m4oe_ds.models.interface.ModelSpec`."""

    @property
    def inputs(self) -> tuple[ModalitySpec, ...]:
        """Modalities."""
        ...

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Questions."""
        ...

    @property
    def sides(self) -> bool:
        """Whether samples have sides, two of which make an exam."""
        ...


@dataclass(frozen=True)
class Question:
    """A problem without sizes.

    Attributes:
        inputs: modalities.
        tasks: questions.
        sides: whether samples have sides, two of which make an exam.
    """

    inputs: tuple[ModalitySpec, ...]
    tasks: tuple[TaskSpec, ...]
    sides: bool

    @classmethod
    def of(cls, card: Card, modalities: Sequence[str] = (), tasks: Sequence[str] = ()) -> Question:
        """Modalities and tasks of a card, those named or all."""
        return cls(
            tuple(one for one in card.inputs if not modalities or one.name in modalities),
            tuple(task for task in card.tasks if not tasks or task.name in tasks),
            len(card.sides) == 2,
        )


# the second argument: options of the model and its regime; the answer: why not, in words that follow the system's name
Rule = Callable[[Problem, Mapping[str, Any]], str]


def _flat(problem: Problem, _: Mapping[str, Any]) -> str:
    for one in problem.inputs:
        if not one.flat:
            what = "a table" if one.kind == "table" else "a volume in 3-D"
            return f"its encoder reads images only, and {one.name} is {what}"
    return ""


def _flat_if_native(problem: Problem, settings: Mapping[str, Any]) -> str:
    reason = _flat(problem, settings) if settings.get("regime") == "native" else ""
    return reason and f"in the regime native {reason}"


def _flat_masks(problem: Problem, _: Mapping[str, Any]) -> str:
    by_name = {one.name: one for one in problem.inputs}
    for task in problem.tasks:
        if task.dense and not (by_name.get(task.of) or problem.inputs[0]).flat:
            return f"it draws masks over images only, and {task.name} lies over {task.of}"
    return ""


def _coded(problem: Problem, _: Mapping[str, Any]) -> str:
    for task in problem.tasks:
        if not (task.coded or task.dense):
            return f"it answers with classes and masks only, and {task.name} is of kind {task.kind}"
    return ""


def _no_masks(problem: Problem, _: Mapping[str, Any]) -> str:
    return next((f"it predicts no masks, and {task.name} is one" for task in problem.tasks if task.dense), "")


def _graded(problem: Problem, _: Mapping[str, Any]) -> str:
    for task in problem.tasks:
        if task.kind == "classes" and task.num_classes > 2:
            return f"its heads need classes in an order, and {task.name} is of kind classes, not ordinal"
    return ""


def _views(problem: Problem, _: Mapping[str, Any]) -> str:
    for one in problem.inputs:
        if one.view not in VIEWS or one.type not in TYPES:
            return (
                f"it tells its inputs apart by their view ({' or '.join(VIEWS)}) and type ({' or '.join(TYPES)}), "
                f"and the card gives {one.name} {_said(one)}"
            )
    return ""


def _said(one: ModalitySpec) -> str:
    return f"view {one.view or 'none'} and type {one.type or 'none'}"


def _pairs(problem: Problem, settings: Mapping[str, Any]) -> str:
    if settings.get("pairs") == "cross_type":
        for one in problem.inputs:
            if not partner_of(one.name, problem.inputs):
                return f"cross_type needs every view in both types, and {one.name} has no partner of the same view"
        return ""
    return "" if problem.sides else "it compares two sides of an exam, and the card names no two sides"


def _masked_grades(problem: Problem, _: Mapping[str, Any]) -> str:
    if any(task.dense for task in problem.tasks) and any(task.coded for task in problem.tasks):
        return ""
    return "it is made for a mask and a grade together, and the card has not both"


def _unlike(problem: Problem, _: Mapping[str, Any]) -> str:
    seen: dict[str, str] = {}
    for one in problem.inputs:
        if one.type in seen and one.type:
            return f"it weighs kinds of image against each other, and {seen[one.type]} and {one.name} are of one type"
        seen[one.type] = one.name
    return ""


def partner_of(modality: str, inputs: tuple[ModalitySpec, ...]) -> str:
    """The modality of another type and the same view; empty if there is none or are several."""
    view = {one.name: one.view for one in inputs}[modality]
    others = [one.name for one in inputs if one.view == view and one.name != modality]
    return others[0] if view and len(others) == 1 else ""


RULES: dict[str, Rule] = {  # without which a system cannot be built
    "images": _flat,
    "images_if_native": _flat_if_native,
    "flat_masks": _flat_masks,
    "classes_or_masks": _coded,
    "no_masks": _no_masks,
    "graded": _graded,
    "views": _views,
    "pairs": _pairs,
}
SENSE: dict[str, Rule] = {  # without which it can be built and trained, but does not belong into a comparison
    "masked_grades": _masked_grades,
    "unlike": _unlike,
}
