"""A model from outside the package, built, and its first answer looked at."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from m4oe_ds.errors import ConfigError
from m4oe_ds.models.interface import ModelOutput, ModelSpec, MultiModalModel
from m4oe_ds.models.outside import load

_PARTS = ("encode", "fuse", "predict")


def build(name: str, *arguments: Any) -> MultiModalModel:
    """The model of a class or function from outside; its first answer is checked when it comes.

    Args:
        name: as in ``model.name``.
        *arguments: specification, ``model`` section of the configuration, factory of experts.

    Raises:
        ConfigError: it is not called with these, gives something else, or lacks a method.
    """
    make = load(name)
    if not callable(make) or (inspect.isclass(make) and not issubclass(make, MultiModalModel)):
        raise _wrong(
            name, "is not a subclass of m4oe_ds.models.interface.MultiModalModel, or a function that gives one"
        )
    try:
        inspect.signature(make).bind(*arguments)
    except TypeError as error:
        raise _wrong(name, f"cannot be called with (spec, config, experts_factory): {error}") from None
    model = make(*arguments)
    if not isinstance(model, MultiModalModel):
        raise _wrong(name, f"gave a {type(model).__name__}, not a MultiModalModel")
    kind = type(model)
    lacking = [part for part in _PARTS if getattr(kind, part) is getattr(MultiModalModel, part)]
    if lacking and kind.forward is MultiModalModel.forward:
        raise _wrong(name, f"does not define {', '.join(lacking)}")
    model.spec = arguments[0]
    handle = model.register_forward_hook(_first_answer(name, model.spec, lambda: handle.remove()))
    return model


def _first_answer(name: str, spec: ModelSpec, done: Callable[[], None]) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that looks at one answer: whether it has logits of the right shape for every task."""

    def check(_: nn.Module, given: Any, output: Any) -> None:
        done()
        if not isinstance(output, ModelOutput):
            raise _wrong(name, f"answers with a {type(output).__name__}, not a ModelOutput")
        for task in spec.tasks:
            _check_logits(name, output, task.name, task.num_classes, spec.answer_shape(task) if task.dense else ())

    return check


def _check_logits(name: str, output: ModelOutput, task: str, count: int, dense: tuple[int, ...]) -> None:
    wanted = dense or (count,)
    if task not in output.logits:
        raise _wrong(name, f"gives no logits of {task}, only of {', '.join(output.logits) or 'nothing'}")
    shape = tuple(output.logits[task].shape)
    if shape[1:] != wanted:
        sizes = ", ".join(["B", *map(str, wanted)])
        raise _wrong(name, f"gives logits of {task} of shape {list(shape)}, not [{sizes}]")


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"{name} {what}", "model.name", "docs/guide/add-a-method.md shows a complete one")
