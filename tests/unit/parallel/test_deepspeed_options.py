"""The DeepSpeed JSON is read by DeepSpeed before anything is built: its mistakes are lines, not tracebacks."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from m4oe_ds import shipped
from m4oe_ds.errors import ConfigError
from m4oe_ds.parallel import deepspeed_options

ZERO2 = json.loads(shipped.find(shipped.DS_CONFIG, "zero2").read_text())


def changed(dotted: str, value: Any) -> dict[str, Any]:
    """ZERO2 with another value, or without the key for None."""
    content = copy.deepcopy(ZERO2)
    *sections, key = dotted.split(".")
    inner = content
    for name in sections:
        inner = inner.setdefault(name, {})
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    return content


@pytest.mark.parametrize("name", shipped.names(shipped.DS_CONFIG))
def test_shipped_files_pass_and_are_not_changed(name: str) -> None:
    content = json.loads(shipped.find(shipped.DS_CONFIG, name).read_text())
    before = copy.deepcopy(content)
    deepspeed_options.check(content, name)
    assert content == before


@pytest.mark.parametrize(
    ("dotted", "value", "said"),
    [
        ("zero_optimization.stagee", 2, "unknown key zero_optimization.stagee; did you mean stage?"),
        ("zero_optimization.stage", "two", "zero_optimization.stage='two'"),
        ("zero_optimization.reduce_bucket_size", -1, "zero_optimization.reduce_bucket_size=-1"),
        ("zero_optimization.offload_optimizer", {"device": "cpuu"}, "zero_optimization.offload_optimizer.device"),
        (
            "zero_optimization.contiguous_gradients",
            1,
            "zero_optimization.contiguous_gradients must be true or false, got",
        ),
        ("zero_optimization.overlap_comm", "yes", "zero_optimization.overlap_comm must be true or false, got 'yes'"),
        (
            "zero_optimization.reduce_bucket_size",
            True,
            "zero_optimization.reduce_bucket_size must be a number, got True",
        ),
        (
            "zero_optimization.offload_optimizer",
            {"device": "cpu", "pin_memory": 1},
            "zero_optimization.offload_optimizer.pin_memory must be true or false, got 1",
        ),
        ("bf16.enabled", "on", "bf16.enabled must be true or false, got 'on'"),
        ("fp16.loss_scale_window", "1000", "fp16.loss_scale_window must be a number, got '1000'"),
        ("gradient_cliping", 1.0, "unknown key gradient_cliping; did you mean gradient_clipping?"),
        ("wholly_other", 1, "unknown key wholly_other, which DeepSpeed would ignore"),
        ("gradient_clipping", -1, "gradient_clipping must be a number from 0 (none), got -1"),
        ("gradient_clipping", "much", "gradient_clipping must be a number"),
        ("steps_per_print", 0, "steps_per_print must be a whole number from 1, got 0"),
        ("data_types", {"grad_accum_dtype": "fp31"}, "data_types.grad_accum_dtype must be fp32, bf16 or fp16"),
        ("data_types", {"grad_acum_dtype": "fp32"}, "unknown key data_types.grad_acum_dtype; did you mean"),
        ("bf16", True, "bf16 must be an object in braces, got True"),
        ("bf16", {"enabled": "perhaps"}, "bf16.enabled='perhaps'"),
        ("optimizer", [], "optimizer must be an object in braces, got []"),
        ("optimizer.type", "Adamm", "optimizer.type 'Adamm': did you mean Adam? use one of"),
        ("optimizer.type", "OneBitAdam", "optimizer.type 'OneBitAdam'"),
        ("optimizer.type", None, "optimizer.type '': use one of"),
        ("optimizer.params", 3, "optimizer.params must be an object, got 3"),
        ("optimizer.params.lr", -1e-4, "optimizer.params.lr must be a finite number from 0"),
        ("optimizer.params.lr", "small", "optimizer.params.lr must be a finite number from 0, got 'small'"),
        ("optimizer.params.betas", [0.9, 1.5], "optimizer.params: invalid beta parameter"),
        ("optimizer.params.betas", 0.9, "optimizer.params.betas must be two numbers in a list, got 0.9"),
        ("optimizer.params.betas", [0.9], "optimizer.params.betas must be two numbers"),
        ("optimizer.params.eps", -1.0, "optimizer.params.eps must be a finite number from 0"),
        ("optimizer.params.weight_decay", -1.0, "optimizer.params.weight_decay must be a finite number from 0"),
        ("optimizer.params.momentum", 0.9, "optimizer.params: unknown key 'momentum'"),
    ],
)
def test_a_mistake_is_a_line_with_the_file(dotted: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        deepspeed_options.check(changed(dotted, value), "my.json")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("my.json: ") for line in lines)
    assert any(said in line for line in lines), lines


def test_several_mistakes_are_reported_together() -> None:
    content = changed("zero_optimization.stagee", 2)
    content["gradient_clipping"] = -1
    content["optimizer"]["type"] = "Adamm"
    with pytest.raises(ConfigError) as caught:
        deepspeed_options.check(content, "my.json")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", deepspeed_options.OPTIMIZERS)
def test_the_optimizers_that_are_offered_pass(name: str) -> None:
    content = changed("optimizer.type", name)
    content["optimizer"]["params"] = {"lr": 1e-3}
    deepspeed_options.check(content, "my.json")
