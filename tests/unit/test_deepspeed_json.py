"""The DeepSpeed JSON: batch sizes that contradict each other, and the keys this trainer relies on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from m4oe_ds import deepspeed_json
from m4oe_ds.deepspeed_json import BatchSizes
from m4oe_ds.errors import ConfigError

SOUND: dict[str, Any] = {
    "train_batch_size": 32,
    "gradient_clipping": 0.0,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-4, "adam_w_mode": False}},
    "zero_optimization": {"stage": 2},
}


def changed(dotted: str, value: Any = None) -> dict[str, Any]:
    """The sound configuration with one key set, or removed if ``value`` is None."""
    content = copy.deepcopy(SOUND)
    *parents, last = dotted.split(".")
    place = content
    for part in parents:
        place = place.setdefault(part, {})
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    return content


def findings(content: dict[str, Any], expects: dict[str, Any] | None = None) -> list[str]:
    try:
        deepspeed_json.check(content, "ds.json", expects or {}, "run.yaml")
    except ConfigError as error:
        return str(error).splitlines()
    return []


# -------------------------------------------------------------------------------------------------- batch sizes


@pytest.mark.parametrize(
    ("train", "micro", "accumulation", "world", "expected"),
    [
        (32, None, None, 4, BatchSizes(32, 8, 1)),
        (32, None, 2, 4, BatchSizes(32, 4, 2)),
        (32, 4, None, 4, BatchSizes(32, 4, 2)),
        (None, 4, 3, 2, BatchSizes(24, 4, 3)),
        (None, 4, None, 2, BatchSizes(8, 4, 1)),
        (24, 4, 3, 2, BatchSizes(24, 4, 3)),
    ],
)
def test_missing_sizes_are_derived(
    train: int | None, micro: int | None, accumulation: int | None, world: int, expected: BatchSizes
) -> None:
    content = {
        "train_batch_size": train,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }
    given = {key: value for key, value in content.items() if value is not None}
    assert deepspeed_json.batch_sizes(given, world, "ds.json") == expected


@pytest.mark.parametrize(
    ("content", "world", "numbers"),
    [
        ({"train_batch_size": 10}, 4, ("train_batch_size=10", "4 ranks")),
        ({"train_batch_size": 12, "gradient_accumulation_steps": 5}, 2, ("train_batch_size=12", "5 accumulation")),
        ({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 3}, 2, ("train_batch_size=10", "3 samples")),
        (
            {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3},
            2,
            ("train_batch_size=16", "4 samples", "3 accumulation", "2 ranks"),
        ),
    ],
)
def test_contradicting_sizes_name_the_numbers(content: dict[str, int], world: int, numbers: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        deepspeed_json.batch_sizes(content, world, "ds.json")
    for number in numbers:
        assert number in str(caught.value)
    assert str(caught.value).startswith("ds.json: ")


@pytest.mark.parametrize("value", ["auto", 0, -4, 2.5, True])
@pytest.mark.parametrize("key", ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
def test_a_size_must_be_a_positive_whole_number(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be a whole number"):
        deepspeed_json.batch_sizes({"train_batch_size": 8, key: value}, 1, "ds.json")


def test_no_size_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs train_batch_size or train_micro_batch_size_per_gpu"):
        deepspeed_json.batch_sizes({"gradient_accumulation_steps": 2}, 1, "ds.json")


# -------------------------------------------------------------------------------------------------------- check


def test_the_sound_configuration_passes() -> None:
    assert findings(SOUND) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (changed("zero_optimization.stage", 0), "zero_optimization.stage is 0"),
        (changed("zero_optimization"), "zero_optimization.stage is missing"),
        (changed("gradient_clipping"), "gradient_clipping is missing"),
        (changed("optimizer.params.adam_w_mode"), "adam_w_mode"),
        (changed("optimizer.params.lr"), "optimizer.params.lr is missing"),
        (changed("optimizer.params.lr", "auto"), "optimizer.params.lr"),
        (changed("scheduler", {"type": "WarmupLR"}), "scheduler must go"),
        (changed("bf16", {"enabled": True}), "data_types.grad_accum_dtype"),
        (changed("zero_optimization.reduce_scatter", False), "reduce_scatter must stay true"),
    ],
)
def test_each_contradiction_is_found_alone(content: dict[str, Any], named: str) -> None:
    (line,) = findings(content)
    assert named in line
    assert line.startswith("ds.json: ")


def test_adam_in_small_letters_is_adam_and_adamw_needs_no_mode() -> None:
    small = changed("optimizer", {"type": "adam", "params": {"lr": 1e-4}})
    assert len(findings(small)) == 1
    assert findings(changed("optimizer", {"type": "AdamW", "params": {"lr": 1e-4}})) == []


def test_bf16_with_fp32_accumulation_or_disabled_passes() -> None:
    full = changed("bf16", {"enabled": True})
    assert findings({**full, "data_types": {"grad_accum_dtype": "fp32"}}) == []
    assert findings(changed("bf16", {"enabled": False})) == []
    (line,) = findings({**full, "data_types": {"grad_accum_dtype": "bf16"}})
    assert "grad_accum_dtype" in line


def test_all_findings_come_together() -> None:
    assert len(findings({"scheduler": {}, "bf16": {"enabled": True}}, {"train_batch_size": 8})) == 6


def test_an_unmet_expectation_names_key_values_and_both_files() -> None:
    (line,) = findings(SOUND, {"optimizer.params.lr": 0.001, "zero_optimization.stage": 2})
    for part in ("optimizer.params.lr", "0.0001", "0.001", "ds.json", "run.yaml"):
        assert part in line


def test_an_expectation_of_an_absent_key_names_both_files() -> None:
    (line,) = findings(SOUND, {"fp16.enabled": True})
    for part in ("fp16.enabled", "ds.json", "run.yaml"):
        assert part in line


# --------------------------------------------------------------------------------------------------------- read


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(SOUND))
    assert deepspeed_json.read(path) == SOUND


@pytest.mark.parametrize("text", ['{"a": 1, "b": {"c": 1, "c": 2}}', '{"c": 1, "a": 1, "c": 1}'])
def test_duplicate_keys_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="duplicate key c") as caught:
        deepspeed_json.read(path)
    assert str(path) in str(caught.value)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{\n  "a": 1,\n  "b": ,\n  "c": 2\n}\n')
    with pytest.raises(ConfigError) as caught:
        deepspeed_json.read(path)
    assert str(caught.value).startswith(f"{path}:3: not valid JSON")


def test_a_list_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    with pytest.raises(ConfigError, match="no such DeepSpeed configuration"):
        deepspeed_json.read(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        deepspeed_json.read(path)


# -------------------------------------------------------------------------------------------------- JSON types


@pytest.mark.parametrize(
    ("dotted", "value", "said"),
    [
        ("bf16.enabled", "true", 'bf16.enabled must be true or false, got "true"'),
        ("bf16.enabled", 1, "bf16.enabled must be true or false, got 1"),
        ("fp16.enabled", "false", 'fp16.enabled must be true or false, got "false"'),
        ("zero_optimization.stage", "2", 'zero_optimization.stage must be a whole number, got "2"'),
        ("zero_optimization.stage", True, "zero_optimization.stage must be a whole number, got true"),
        ("zero_optimization.stage", 2.0, "zero_optimization.stage must be a whole number, got 2.0"),
        ("zero_optimization.reduce_scatter", "false", 'zero_optimization.reduce_scatter must be true or false, got "f'),
        ("zero_optimization.offload_optimizer", "cpu", "offload_optimizer must be an object in braces"),
        ("zero_optimization.offload_optimizer.pin_memory", "True", 'is the text "True"; write true without quotes'),
        ("zero_optimization.reduce_bucket_size", "5e7", 'is the text "5e7"; write the number without quotes'),
        ("optimizer.params.adam_w_mode", "false", 'adam_w_mode must be true or false, got "false"'),
        ("optimizer.params.betas", [0.9, "0.999"], 'betas is the text "0.999"'),
        ("optimizer.params", [1e-4], "optimizer.params must be an object in braces, got [0.0001]"),
        ("gradient_clipping", "1.0", 'gradient_clipping must be a number, got "1.0"'),
        ("gradient_clipping", False, "gradient_clipping must be a number, got false"),
        ("data_types.grad_accum_dtype", 32, "data_types.grad_accum_dtype must be text, got 32"),
    ],
)
def test_a_value_of_another_json_type_is_refused_wherever_it_is_read(
    dotted: str, value: Any, said: str, tmp_path: Path
) -> None:
    content = changed(dotted, value)
    assert any(said in line for line in findings(content))
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"ds\.json: ") as refused:
        deepspeed_json.read(path)
    assert sum(said in line for line in str(refused.value).splitlines()) == 1
    assert len(str(refused.value).splitlines()) == 1


def test_text_that_may_be_digits_and_whole_numbers_with_an_exponent_pass() -> None:
    content = changed("tensorboard", {"enabled": True, "job_name": "2024"})
    assert findings(content) == []
    assert findings(changed("zero_optimization.reduce_bucket_size", 5e7)) == []


def test_an_expectation_of_a_number_is_not_met_by_true() -> None:
    assert "steps_per_print is True" in findings(changed("steps_per_print", True), {"steps_per_print": 1})[0]


def test_precision_is_what_is_turned_on() -> None:
    assert deepspeed_json.precision({}) == "fp32"
    assert deepspeed_json.precision({"bf16": {"enabled": False}, "fp16": {"enabled": True}}) == "fp16"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tensor_parallel", {"autotp_size": 2}, "tensor_parallel is not for this trainer"),
        ("pipeline", {"stages": 2}, "pipeline is not for this trainer"),
        ("data_efficiency", {"enabled": True}, "data_efficiency is not for this trainer"),
        ("autotuning", {"enabled": True}, "autotuning is not for this trainer: `m4oe plan`"),
        ("zero_optimization.zero_hpz_partition_size", 7, "zero_hpz_partition_size is not for this trainer"),
        ("zero_optimization.zero_quantized_gradients", True, "zero_quantized_gradients is not for this trainer"),
        ("zero_optimization.offload_param", {"device": "cpu"}, "does nothing below ZeRO stage 3; use none"),
        ("zero_optimization.offload_optimizer", {"device": "nvme"}, "stage 3; use none or cpu"),
        ("prescale_gradients", "yes", 'prescale_gradients must be true or false, got "yes"'),
        ("optimizer.params.amsgrad", 1, "optimizer.params.amsgrad must be true or false, got 1"),
        ("train_batch_size", -32, "train_batch_size must be a whole number from 1, got -32"),
        ("train_micro_batch_size_per_gpu", "auto", "must be a whole number from 1, got"),
    ],
)
def test_what_deepspeed_would_do_on_its_own_is_refused(key: str, value: Any, words: str) -> None:
    (line,) = findings(changed(key, value))
    assert words in line


def test_what_is_turned_off_is_no_mistake() -> None:
    for key, value in (
        ("autotuning", {"enabled": False}),
        ("zero_optimization.zero_hpz_partition_size", 1),
        ("zero_optimization.zero_quantized_gradients", False),
        ("zero_optimization.offload_param", {"device": "none"}),
    ):
        assert findings(changed(key, value)) == []


def test_a_wrong_batch_is_not_said_to_differ_from_what_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"train_batch_size must be a whole number from 1, got 0"):
        deepspeed_json.check(changed("train_batch_size", 0), "ds.json", {"train_batch_size": 32}, "run.yaml")
