"""The DeepSpeed JSON: read, checked against the run, passed on as it is.

It owns precision, ZeRO, batch sizes, optimizer (with the base learning rate) and clipping. Only the few keys this
trainer relies on are checked; the rest is left to DeepSpeed. Nothing is copied between it and the YAML.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m4oe_ds import shipped
from m4oe_ds.errors import ConfigError

# sections that this trainer reads keys of
SECTIONS = ("optimizer", "zero_optimization", "bf16", "fp16", "data_types", "activation_checkpointing")
_SHIPPED = "begin with a shipped one: `m4oe init DIR` copies them"
_KNOWN = {*SECTIONS, "gradient_clipping", "train_batch_size", "amp", "zero_allow_untested_optimizer"}
_MISSING = object()
# JSON types of what this trainer or its plan reads: DeepSpeed itself would take "true" for true and 1 for it too
_TYPES = {
    "true or false": (
        "bf16.enabled",
        "fp16.enabled",
        "zero_optimization.reduce_scatter",
        "optimizer.params.adam_w_mode",
        "optimizer.params.torch_adam",
        "zero_force_ds_cpu_optimizer",
        "zero_allow_untested_optimizer",
        "optimizer.params.amsgrad",
        "optimizer.params.maximize",
        "prescale_gradients",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
        "disable_allgather",
    ),
    "a whole number": ("zero_optimization.stage",),
    "a whole number from 1": (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "flops_profiler.profile_step",
    ),
    "a number": ("gradient_clipping", "optimizer.params.weight_decay", "optimizer.params.eps"),
    "text": ("optimizer.type", "data_types.grad_accum_dtype", "zero_optimization.offload_optimizer.device"),
    "an object in braces": ("optimizer.params", "zero_optimization.offload_optimizer"),
}
# What DeepSpeed would do behind the back of this trainer, which shards experts and reads data itself: some of it ends
# in a traceback of DeepSpeed after minutes, some changes what is trained, some is read and ignored
_NOT_HERE = {
    "autotuning": "`m4oe plan` looks for good sizes",
    "data_efficiency": "`data` of the YAML configuration says how samples are drawn",
    "hybrid_engine": "it is for models that write text",
    "pipeline": "models are not cut into stages",
    "tensor_parallel": "experts are shared out by parallel.ep_size instead",
    "zero_optimization.zero_hpz_partition_size": "it does not go with sharded experts",
    "zero_optimization.zero_quantized_weights": "it does not go with sharded experts",
    "zero_optimization.zero_quantized_gradients": "it does not go with sharded experts",
}
_FREE_TEXT = ("tensorboard", "wandb", "csv_monitor", "comet")  # sections whose names may well be digits


@dataclass(frozen=True)
class BatchSizes:
    """``train`` = ``micro`` (samples per forward and rank) * ``accumulation`` * world size."""

    train: int
    micro: int
    accumulation: int


def read(path: str | Path) -> dict[str, Any]:
    """The JSON of a file, or of the name of a shipped one such as ``zero2``, as a dict.

    Raises:
        ConfigError: missing, not JSON, a duplicate key, a section that is none, or values of another JSON type.
    """
    path = shipped.find(shipped.DS_CONFIG, path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"duplicate key {key}", str(path), "remove one of the two")
        return dict(pairs)

    def no_number(text: str) -> float:
        raise ConfigError(f"{text} is not a number of JSON", str(path), "write a finite number")

    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg}" if text.strip() else "is empty"
        raise ConfigError(what, f"{path}:{error.lineno}", _SHIPPED) from None
    except UnicodeDecodeError:
        raise ConfigError("is not a text file in UTF-8", str(path), "save it as plain text") from None
    except RecursionError:
        raise ConfigError("not valid JSON: nested too deeply", str(path), _SHIPPED) from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", str(path), "check the path and its rights") from None
    if not isinstance(content, dict):
        raise ConfigError("must be a JSON object in braces", str(path), _SHIPPED)
    for key in SECTIONS:
        if not isinstance(content.get(key, {}), dict):
            raise ConfigError(f"{key} must be an object in braces, got {content[key]!r}", str(path), _SHIPPED)
    if problems := [f"{path}: {problem}" for problem in wrong_types(content)]:
        raise ConfigError("\n".join(problems))
    return content


def wrong_types(content: Mapping[str, Any]) -> list[str]:
    """A line for every value of another JSON type than what reads it, such as ``"true"`` or ``"2"`` in quotes."""
    problems = []
    for expected, keys in _TYPES.items():
        for key in keys:
            value = _lookup(content, key)
            if value is not _MISSING and not _is_of(value, expected):
                problems.append(f"{key} must be {expected}, got {json.dumps(value)}")
    said = tuple(line.split(" ", 1)[0] for line in problems)
    return problems + [line for key, line in _quoted(content, "") if key not in said]


def _is_of(value: Any, expected: str) -> bool:
    if expected == "true or false":
        return isinstance(value, bool)
    if expected == "a whole number":
        return isinstance(value, int) and not isinstance(value, bool)
    if expected == "a whole number from 1":
        # null is as if it were not there, to DeepSpeed and to batch_sizes
        return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
    if expected == "a number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str) if expected == "text" else value is None or isinstance(value, Mapping)


def _quoted(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Dotted key and complaint of every number and truth value that is written as text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if key or name not in _FREE_TEXT:
                yield from _quoted(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _quoted(inner, key)
    elif isinstance(value, str):
        text = value.strip().lower()
        if text in ("true", "false"):
            yield key, f"{key} is the text {json.dumps(value)}; write {text} without quotes"
        elif re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text):
            yield key, f"{key} is the text {json.dumps(value)}; write the number without quotes"


def batch_sizes(content: Mapping[str, Any], world: int, path: str) -> BatchSizes:
    """Train, micro and accumulation sizes for ``world`` ranks; one or two of them are derived.

    Raises:
        ConfigError: none given, or the three contradict each other at this world size.
    """
    train: Any = content.get("train_batch_size")
    micro: Any = content.get("train_micro_batch_size_per_gpu")
    accumulation: Any = content.get("gradient_accumulation_steps")
    for name, value in (
        ("train_batch_size", train),
        ("train_micro_batch_size_per_gpu", micro),
        ("gradient_accumulation_steps", accumulation),
    ):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name} must be a whole number from 1, got {value!r}", path)
    if train is None and micro is None:
        raise ConfigError("needs train_batch_size or train_micro_batch_size_per_gpu", path)
    if train is not None and micro is None:
        accumulation = accumulation or 1
        if train % (world * accumulation):
            raise ConfigError(
                f"train_batch_size={train} is not a multiple of {world} ranks x {accumulation} accumulation steps",
                path,
                "change one of the three",
            )
        micro = train // (world * accumulation)
    elif train is not None and accumulation is None:
        if train % (world * micro):
            raise ConfigError(
                f"train_batch_size={train} is not a multiple of {world} ranks x {micro} samples per rank",
                path,
                "change one of the three",
            )
        accumulation = train // (world * micro)
    accumulation = accumulation or 1
    train = micro * accumulation * world if train is None else train
    if train != micro * accumulation * world:
        raise ConfigError(
            f"train_batch_size={train} is not {micro} samples x {accumulation} accumulation steps x {world} ranks",
            path,
            "change one of the three",
        )
    return BatchSizes(train, micro, accumulation)


def precision(content: Mapping[str, Any]) -> str:
    """bf16, fp16 or fp32: what the JSON turns on."""
    return next((name for name in ("bf16", "fp16") if _lookup(content, f"{name}.enabled") is True), "fp32")


def check(content: Mapping[str, Any], path: str, expects: Mapping[str, Any], config_path: str) -> None:
    """What this trainer relies on, and what the recipe's ``run.expects`` states.

    Raises:
        ConfigError: one line per finding, both places named where two files disagree.
    """
    problems = [f"{path}: {problem}" for problem in wrong_types(content)]
    for key, expected in expects.items():
        found = _lookup(content, key)
        if found is _MISSING:
            problems.append(f"{path} has no {key}, but run.expects says {expected!r} ({config_path}); edit one of them")
        elif found != expected or isinstance(found, bool) != isinstance(expected, bool):
            problems.append(
                f"{key} is {found!r} in {path} but run.expects says {expected!r} ({config_path}); edit one of them"
            )
    stage = _lookup(content, "zero_optimization.stage")
    if stage is _MISSING or (_is_of(stage, "a whole number") and stage not in (1, 2, 3)):
        shown = "missing" if stage is _MISSING else repr(stage)
        problems.append(
            f"{path}: zero_optimization.stage is {shown}; use 1, 2 or 3 (stage 0 clips wrongly with sharded experts)"
        )
    if "gradient_clipping" not in content:
        problems.append(f"{path}: gradient_clipping is missing and DeepSpeed's default is 1.0; write it, 0.0 for none")
    optimizer = content.get("optimizer", {})
    problems += [f"{path}: {line}" for line in _misspelt(content)]
    if "optimizer" not in content and any(line.endswith("optimizer?") for line in problems):
        pass  # said already
    elif (rate := _lookup(content, "optimizer.params.lr")) is not _MISSING and not _is_rate(rate):
        problems.append(f"{path}: optimizer.params.lr must be a finite number from 0, e.g. 1e-4, got {rate!r}")
    elif rate is _MISSING:
        problems.append(
            f"{path}: optimizer.params.lr is missing; this file owns the learning rate: write it, e.g. 1e-4"
        )
    mode = _lookup(content, "optimizer.params.adam_w_mode")
    if str(optimizer.get("type", "")).lower() == "adam" and mode is _MISSING:
        problems.append(
            f"{path}: DeepSpeed's Adam decays weights as AdamW unless optimizer.params.adam_w_mode is false; write it"
        )
    if "scheduler" in content:
        problems.append(
            f"{path}: scheduler must go; `schedule` of the YAML configuration owns the learning-rate factors"
        )
    if _lookup(content, "bf16.enabled") is True and _lookup(content, "data_types.grad_accum_dtype") != "fp32":
        problems.append(
            f"{path}: bf16 accumulates gradients in bf16 unless data_types.grad_accum_dtype is fp32; write it"
        )
    problems += [f"{path}: {line}" for line in _not_here(content)]
    if _lookup(content, "zero_optimization.reduce_scatter") is False:
        problems.append(f"{path}: zero_optimization.reduce_scatter must stay true for sharded experts")
    if problems:
        raise ConfigError("\n".join(problems))


def _not_here(content: Mapping[str, Any]) -> Iterator[str]:
    """Parts of DeepSpeed that this trainer does without, or that the ZeRO stage ignores, where they are turned on."""
    for key, instead in _NOT_HERE.items():
        value = _lookup(content, key)
        default = key.endswith("_size") and value == 1
        off = isinstance(value, Mapping) and (not value or value.get("enabled") is False)
        if value is not _MISSING and value is not None and value is not False and not default and not off:
            yield f"{key} is not for this trainer: {instead}; remove it"
    if _lookup(content, "zero_optimization.stage") in (1, 2):
        for key, allowed in (("offload_param", ("none",)), ("offload_optimizer", ("none", "cpu"))):
            device = _lookup(content, f"zero_optimization.{key}.device")
            if isinstance(device, str) and device in ("cpu", "nvme") and device not in allowed:
                fix = f"use {' or '.join(allowed)}, or stage 3"
                yield f"zero_optimization.{key}.device {device!r} does nothing below ZeRO stage 3; {fix}"


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _misspelt(content: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are not there but nearly; of all others DeepSpeed itself is asked, which needs torch."""
    for key in (*SECTIONS, "gradient_clipping", "train_batch_size"):
        close = difflib.get_close_matches(key, [name for name in content if name not in _KNOWN], n=1, cutoff=0.8)
        if key not in content and close:
            yield f"unknown key {close[0]}; did you mean {key}?"


def _lookup(content: Mapping[str, Any], dotted: str) -> Any:
    value: Any = content
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value
