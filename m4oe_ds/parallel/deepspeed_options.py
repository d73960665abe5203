"""The DeepSpeed JSON, read by DeepSpeed's own code before anything is built: its mistakes as one line each.

DeepSpeed ignores a key that it does not know on the upper level, and ends in a traceback for one inside a section, or
for an optimizer, only after the model was made. Versions: deepspeed 0.19.8, whose internal names are used here alone.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m4oe_ds.errors import ConfigError

# What this trainer was run with under ZeRO and sharded experts. DeepSpeed's other optimizers refuse ZeRO, compile code
# of their own at the start, or clip by a norm that leaves the experts out.
OPTIMIZERS = ("Adam", "AdamW", "Adagrad", "Muon")

# Sections that DeepSpeed reads key by key; the others have models with fields of their own, which refuse the rest.
_READ_BY_KEY = ("activation_checkpointing", "flops_profiler", "checkpoint", "data_types")

# Sections and what DeepSpeed makes of them
_MODELS = {"zero_optimization": "zero_config", "bf16": "bfloat16_config", "fp16": "float16_config"}


class _Asked(dict[str, Any]):
    """A mapping that remembers which keys somebody asked for, also through a shallow copy."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __copy__(self) -> _Asked:
        copied = _Asked(self)
        copied.asked = self.asked
        return copied


def check(content: Mapping[str, Any], path: str) -> None:
    """Reads the JSON as DeepSpeed will, and builds its optimizer on one number.

    Args:
        content: the JSON; not changed.
        path: of the file, for the messages.

    Raises:
        ConfigError: unknown keys (with the nearest known one), values that DeepSpeed refuses, an optimizer that it does
            not have or that cannot be used here; one line each.
    """
    problems = [*_not_objects(content)] or [
        *_sections(content),
        *_scalars(content),
        *_optimizer(content.get("optimizer", {})),
    ]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))


def _sections(content: Mapping[str, Any]) -> Iterator[str]:
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    copied = copy.deepcopy(dict(content))
    asked = _Asked({key: _Asked(value) if isinstance(value, dict) else value for key, value in copied.items()})
    # one process: sizes of batches were checked against the real world before
    for name in ("train_batch_size", "gradient_accumulation_steps"):
        asked.pop(name, None)
    asked["train_micro_batch_size_per_gpu"] = 1
    logging.disable(logging.WARNING)
    try:
        parsed = DeepSpeedConfig(asked)
    except ValidationError as error:
        yield from _findings(error, content)
        return
    except Exception as error:  # DeepSpeed raises whatever comes: AssertionError, ValueError, KeyError, its own
        yield f"DeepSpeed refuses it: {' '.join(str(error).split()) or type(error).__name__}"
        return
    finally:
        logging.disable(logging.NOTSET)
    yield from _unasked(content, asked, "")
    for key, attribute in _MODELS.items():
        yield from _other_types(content.get(key, {}), getattr(parsed, attribute), key)
    for key in _READ_BY_KEY:
        section = asked.get(key)
        if isinstance(section, _Asked):
            yield from _unasked(section, section, f"{key}.")


def _other_types(given: Any, read: Any, key: str) -> Iterator[str]:
    """Values that DeepSpeed turned into another type: text into numbers, numbers into truth values."""
    from pydantic import BaseModel

    if isinstance(given, Mapping) and isinstance(read, BaseModel):
        for name, value in given.items():
            yield from _other_types(value, getattr(read, name, None), f"{key}.{name}")
    elif isinstance(read, bool) and not isinstance(given, bool):
        yield f"{key} must be true or false, got {given!r}"
    elif _is_number(read) and not _is_number(given):
        yield f"{key} must be a number, got {given!r}"


def _unasked(keys: Iterable[str], read: _Asked, prefix: str) -> Iterator[str]:
    for key in keys:
        if key not in read.asked:
            close = difflib.get_close_matches(key, sorted(read.asked), n=1, cutoff=0.6)
            yield f"unknown key {prefix}{key}" + (
                f"; did you mean {close[0]}?" if close else ", which DeepSpeed would ignore"
            )


def _scalars(content: Mapping[str, Any]) -> Iterator[str]:
    """Values that DeepSpeed takes as they are and trips over, or does not, much later."""
    clipping = content.get("gradient_clipping", 0.0)
    if not _is_number(clipping) or not 0 <= clipping < float("inf"):
        yield f"gradient_clipping must be a number from 0 (none), got {clipping!r}"
    every = content.get("steps_per_print", 1)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        yield f"steps_per_print must be a whole number from 1, got {every!r}"
    types = content.get("data_types", {})
    dtype = types.get("grad_accum_dtype") if isinstance(types, Mapping) else None
    if dtype not in (None, "fp32", "fp16", "bf16"):
        yield f"data_types.grad_accum_dtype must be fp32, bf16 or fp16, got {dtype!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _not_objects(content: Mapping[str, Any]) -> Iterator[str]:
    for key in ("optimizer", "zero_optimization", "bf16", "fp16", "data_types", "activation_checkpointing"):
        if not isinstance(content.get(key, {}), Mapping):
            yield f"{key} must be an object in braces, got {content[key]!r}"


def _findings(error: Any, content: Mapping[str, Any]) -> Iterator[str]:
    """A pydantic error, a line for each of its findings, by the dotted name of the key."""
    for finding in error.errors():
        names = [str(part) for part in finding["loc"]]
        section = next(
            (key for key, value in content.items() if isinstance(value, Mapping) and names and names[0] in value), ""
        )
        dotted = ".".join(filter(None, (section, *names)))
        if finding["type"] == "extra_forbidden":
            known = _fields(error.title)
            close = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5) if len(names) == 1 else []
            yield f"unknown key {dotted}" + (f"; did you mean {close[0]}?" if close else "")
        else:
            yield f"{dotted}={finding.get('input')!r}: {finding['msg'][:1].lower()}{finding['msg'][1:]}"


def _fields(title: str) -> list[str]:
    """Fields of one of DeepSpeed's models by the name of its class."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    waiting = [DeepSpeedConfigModel]
    while waiting:
        model = waiting.pop()
        if model.__name__ == title:
            return list(model.model_fields)
        waiting += model.__subclasses__()
    return []


def _optimizer(section: Mapping[str, Any]) -> Iterator[str]:
    name, given = str(section.get("type", "")), section.get("params", {})
    if name.lower() not in {known.lower() for known in OPTIMIZERS}:
        close = difflib.get_close_matches(name, OPTIMIZERS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        yield f"optimizer.type {name!r}: {hint}use one of {', '.join(OPTIMIZERS)}"
        return
    if not isinstance(given, Mapping):
        yield f"optimizer.params must be an object, got {given!r}"
        return
    import torch

    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    for key in ("lr", "eps", "weight_decay"):
        if not _is_number(given.get(key, 0.0)) or not 0 <= given.get(key, 0.0) < float("inf"):
            yield f"optimizer.params.{key} must be a finite number from 0, got {given[key]!r}"
            return
    betas = given.get("betas", (0.9, 0.999))
    if not isinstance(betas, (list, tuple)) or len(betas) != 2 or not all(_is_number(beta) for beta in betas):
        yield f"optimizer.params.betas must be two numbers in a list, got {betas!r}"
        return
    kind = kinds.get(name.lower())
    if kind is None:
        return
    own = ("torch_adam", "adam_w_mode", "fp32_optimizer_states", "bias_correction", "freeze_step")
    options = {key: _value(value) for key, value in given.items() if key not in own}
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], **options)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        yield f"optimizer.params: {_plainly(str(error))}"


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plainly(text: str) -> str:
    _, found, rest = text.partition("got an unexpected keyword argument ")
    return f"unknown key {rest}" if found else text[:1].lower() + text[1:]
