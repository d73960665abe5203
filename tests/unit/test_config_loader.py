"""YAML and ``--set`` into the typed tree: where a mistake is, what was meant, and what wins over what."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from m4oe_ds import config_loader
from m4oe_ds.config import CONFIG_VERSION, Config, TaskLossConfig, to_dict
from m4oe_ds.config_fields import Bounds
from m4oe_ds.errors import ConfigError


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        config_loader.load(path, overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ keys and types


def test_no_file_gives_the_defaults_of_the_tree() -> None:
    assert config_loader.load() == Config()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert config_loader.load(write(tmp_path, "# nothing yet\n")) == Config()


@pytest.mark.parametrize(
    ("text", "line", "wrong", "meant"),
    [
        ("run:\n  num_epoch: 3\n", 2, "run.num_epoch", "num_epochs"),
        ("# a comment\n\nmodle: {}\n", 3, "modle", "model"),
        ("model:\n  router:\n    scale: 2\n", 3, "model.router.scale", "scale_init"),
        ("loss: {tasks: {density: {wieght: 2}}}\n", 1, "loss.tasks.density.wieght", "weight"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(
    tmp_path: Path, text: str, line: int, wrong: str, meant: str
) -> None:
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ")
    assert f"unknown key {wrong};" in message
    assert f"did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("run: {num_epochs: 2.5}", "run.num_epochs", "a whole number"),
        ("run: {num_epochs: true}", "run.num_epochs", "a whole number"),
        ("run: {num_epochs: many}", "run.num_epochs", "a whole number"),
        ("run: {num_epochs: null}", "run.num_epochs", "a whole number"),
        ("run: {tensorboard: 1}", "run.tensorboard", "true or false"),
        ("loss: {alpha: [1]}", "loss.alpha", "a finite number"),
        ("loss: {alpha: true}", "loss.alpha", "a finite number"),
        ("loss: {alpha: small}", "loss.alpha", "a finite number"),
        ("run: {name: {a: 1}}", "run.name", "text"),
        ("run: {name: true}", "run.name", "text"),
        ("schedule: {kind: linear}", "schedule.kind", "one of step, cosine, constant"),
        ("loss: {tasks: [density]}", "loss.tasks", "a mapping"),
        ("model: 3", "model", "a mapping"),
        ("data: {image_size: [224, wide]}", "data.image_size", "a whole number"),
    ],
)
def test_a_wrong_type_is_named_with_key_and_expectation(tmp_path: Path, text: str, key: str, expected: str) -> None:
    path = write(tmp_path, "# first line\n" + text + "\n")
    message = refusal(path)
    assert message.startswith(f"{path}:2: ")
    assert f"{key} must be {expected}" in message


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "0.0001", "'1e-4'"])
def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path, text: str) -> None:
    assert config_loader.load(write(tmp_path, f"loss: {{alpha: {text}}}")).loss.alpha == pytest.approx(1e-4, rel=1e-15)


def test_a_whole_number_fits_where_a_number_is_wanted() -> None:
    alpha = config_loader.load(None, ["loss.alpha=1"]).loss.alpha
    assert isinstance(alpha, float)
    assert alpha == 1.0


def test_scientific_notation_is_a_number_in_free_form_values_too() -> None:
    """``run.expects`` is compared with the JSON, where 1e-4 is a number."""
    config = config_loader.load(None, ["run.expects={optimizer.params.lr: 1e-4}"])
    assert config.run.expects == {"optimizer.params.lr": 1e-4}


def test_free_form_values_keep_their_types() -> None:
    config = config_loader.load(
        None, ["model.embedder.options={patch_size: 8, a: 0.5, b: text, c: [1, true], d: {e: 1}}"]
    )
    assert config.model.embedder.options == {"patch_size": 8, "a": 0.5, "b": "text", "c": [1, True], "d": {"e": 1}}


def test_sequences_become_tuples_and_a_single_value_a_tuple_of_one() -> None:
    config = config_loader.load(None, ["data.image_size=[32, 48]", "data.tasks=density"])
    assert config.data.image_size == (32, 48)
    assert config.data.tasks == ("density",)


# ----------------------------------------------------------------------------------------------- traps of YAML


def test_a_duplicate_key_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n  seed: 1\n  name: a\n  seed: 2\n")
    message = refusal(path)
    assert message.startswith(f"{path}:4: duplicate key seed")
    assert f"{path}:2" in message


@pytest.mark.parametrize("text", ["010", "007", "-010", "+01"])
def test_leading_zeros_are_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"run:\n  seed: {text}\n")
    message = refusal(path)
    assert message.startswith(f"{path}:2: {text} would be read as an octal number")


def test_a_leading_zero_that_is_not_octal_is_not_a_number_either(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "run:\n  seed: 08\n")).startswith(f"{tmp_path / 'run.yaml'}:2: ")


def test_zero_and_quoted_digits_are_not_octal(tmp_path: Path) -> None:
    config = config_loader.load(write(tmp_path, "run: {seed: 0, name: '010'}\nloss: {alpha: 0.05}\n"))
    assert (config.run.seed, config.run.name, config.loss.alpha) == (0, "010", 0.05)


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "Yes", "NO"])
def test_yes_and_no_are_not_booleans(tmp_path: Path, word: str) -> None:
    path = write(tmp_path, f"run: {{tensorboard: {word}}}")
    assert f"run.tensorboard must be true or false, got '{word}'" in refusal(path)
    assert config_loader.load(None, [f"run.name={word}"]).run.name == word


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_true_and_false_are(word: str, value: bool) -> None:
    assert config_loader.load(None, [f"run.tensorboard={word}"]).run.tensorboard is value


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n  seed: 1\n  name: [a\nmodel: {}\n")
    message = refusal(path)
    assert "not valid YAML" in message
    assert message.startswith(f"{path}:")


@pytest.mark.parametrize("value", ["!!int twelve", "!custom 3", "!!python/name:os.system ''", "2024-13-45"])
def test_values_that_yaml_cannot_construct_are_a_configuration_error(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"run:\n  name: {value}\n")
    assert refusal(path).startswith(f"{path}:2: ")


def test_a_list_at_the_top_is_refused(tmp_path: Path) -> None:
    assert "must be a mapping" in refusal(write(tmp_path, "- run\n- data\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"no such configuration: {tmp_path / 'absent.yaml'}" in refusal(tmp_path / "absent.yaml")


# ------------------------------------------------------------------------------------------------------ extends


def test_a_chain_of_extends_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "run: {seed: 1, name: base, num_epochs: 7}\ndata: {image_size: [32, 32]}\n", "base.yaml")
    write(tmp_path, "extends: ../base.yaml\nrun: {seed: 2}\ndata: {image_size: [48, 64]}\n", "sub/middle.yaml")
    top = write(tmp_path, "extends: sub/middle.yaml\nrun: {name: top}\n")
    config = config_loader.load(top)
    assert (config.run.seed, config.run.name, config.run.num_epochs) == (2, "top", 7)
    assert config.data.image_size == (48, 64)


def test_an_empty_mapping_clears_what_was_inherited(tmp_path: Path) -> None:
    write(tmp_path, "run: {expects: {train_batch_size: 8}, name: base}\n", "base.yaml")
    config = config_loader.load(write(tmp_path, "extends: base.yaml\nrun: {expects: {}}\n"))
    assert config.run.expects == {}
    assert config.run.name == "base"


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path, "extends: second.yaml\n", "first.yaml")
    write(tmp_path, "extends: first.yaml\n", "second.yaml")
    assert "`extends` leads back to this file" in refusal(first)


def test_a_file_extending_itself_is_refused(tmp_path: Path) -> None:
    assert "`extends` leads back to this file" in refusal(write(tmp_path, "extends: run.yaml\n"))


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "run: {seed: 1}\nextends: nowhere.yaml\n")
    message = refusal(path)
    assert message.startswith(f"{path}:2: `extends`: no such configuration: nowhere.yaml; ")


def test_a_mistake_in_the_base_is_reported_at_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, "run:\n  sede: 1\n", "base.yaml")
    assert refusal(write(tmp_path, "extends: base.yaml\n\n\n\nrun: {name: x}\n")).startswith(f"{base}:2: unknown key")


# -------------------------------------------------------------------------------------------------------- --set


def test_overrides_win_over_the_file_and_later_over_earlier(tmp_path: Path) -> None:
    path = write(tmp_path, "run: {seed: 1, name: file}\n")
    config = config_loader.load(path, ["run.seed=2", "run.seed=3"])
    assert (config.run.seed, config.run.name) == (3, "file")


def test_an_override_can_be_a_mapping_a_list_or_empty_text() -> None:
    config = config_loader.load(None, ["model.msoe={num_experts: 4, depth: 1}", "data.tasks=[density]", "data.root="])
    assert (config.model.msoe.num_experts, config.model.msoe.depth, config.model.msoe.num_heads) == (4, 1, 8)
    assert config.data.tasks == ("density",)
    assert config.data.root == ""


def test_a_value_may_contain_equal_signs() -> None:
    assert config_loader.load(None, ["run.name=a=b"]).run.name == "a=b"


def test_an_empty_mapping_as_override_clears(tmp_path: Path) -> None:
    path = write(tmp_path, "loss: {tasks: {density: {weight: 2}}, alpha: 0.5}\n")
    assert config_loader.load(path).loss.tasks == {"density": TaskLossConfig(weight=2.0)}
    cleared = config_loader.load(path, ["loss.tasks={}"])
    assert cleared.loss.tasks == {}
    assert cleared.loss.alpha == 0.5
    assert config_loader.load(path, ["loss.tasks={}", "loss.tasks.birads.weight=3"]).loss.tasks == {
        "birads": TaskLossConfig(weight=3.0)
    }


@pytest.mark.parametrize("text", ["run.seed", "=3", ""])
def test_an_override_without_key_and_value_is_refused(text: str) -> None:
    assert "section.key=value" in refusal(None, text)


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert refusal(None, "run.name=[a").startswith("--set run.name=[a: the value is not valid YAML")


def test_mistakes_in_overrides_name_the_override() -> None:
    assert refusal(None, "run.sede=3").startswith("--set run.sede=3: unknown key run.sede")
    assert refusal(None, "model.msoe={depth: deep}").startswith("--set model.msoe={depth: deep}: model.msoe.depth must")


# ------------------------------------------------------------------------------------------- several, and meaning


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n  sede: 1\n  num_epochs: x\nmodel:\n  msoe: {depth: 1.5}\nlos: {}\n")
    lines = refusal(path, "run.tensorboard=3").splitlines()
    found = sorted(line.split(": ", 1)[0] for line in lines)
    assert found == sorted([f"{path}:2", f"{path}:3", f"{path}:5", f"{path}:6", "--set run.tensorboard=3"])


def test_several_contradictions_are_reported_together() -> None:
    message = refusal(None, "loss.alpha=-1", "model.msoe.num_heads=5", "data.image_size=[4, 4]", "config_version=99")
    assert len(message.splitlines()) == 4
    assert "loss.alpha=-1" in message
    assert "model.msoe.num_heads=5 does not divide model.dim=768" in message
    assert "data.image_size" in message
    assert f"config_version 99; this package reads {CONFIG_VERSION}" in message


@pytest.mark.parametrize(
    ("override", "named", "hint"),
    [
        ("data.tasks=[density, riks1]", "'riks1'", "risk1"),
        ("data.modalities=[ffdm_c]", "'ffdm_c'", "ffdm_cc"),
        ("loss.tasks.densty.weight=2", "'densty'", "density"),
        ("data.dataset=embde", "'embde'", "embed"),
        ("run.checkpoint.metric=accuracy", "'accuracy'", "balanced_accuracy"),
        ("model.mtoe.num_experts=0", "model.mtoe.num_experts=0", "at least 1"),
        ("data.image_size=[32]", "[32]", "[height, width]"),
    ],
)
def test_unknown_names_and_impossible_values(override: str, named: str, hint: str) -> None:
    message = refusal(None, override)
    assert named in message
    assert hint in message


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("loss: {tasks: {density: {weight: -1}}}", 2, "loss.tasks.density.weight=-1.0 must be at least 0"),
        ("run:\n  seed: -3", 3, "run.seed=-3 must be at least 0 and at most 9223372036854775807"),
        ("data:\n  max_bad_fraction: 2", 3, "data.max_bad_fraction=2.0 must be at least 0 and at most 1"),
        ("parallel: {timeout_minutes: 0}", 2, "parallel.timeout_minutes=0.0 must be at most 10080 and above 0"),
        ("data:\n  augment:\n    scale: 1", 4, "data.augment.scale=1.0 must be at least 0 and below 1"),
        ("data:\n  image_size: [64, 4]", 3, "data.image_size=[64, 4] must be at least 8 and at most 16384"),
        ("loss: {alpha: .nan}", 2, "loss.alpha must be a finite number, got nan"),
    ],
    ids=["at least, in a mapping", "at least", "at most", "above", "below", "element of a tuple", "NaN"],
)
def test_a_number_out_of_bounds_is_named_with_line_value_and_bound(
    tmp_path: Path, section: str, line: int, message: str
) -> None:
    path = write(tmp_path, f"# first line\n{section}\n")
    assert refusal(path) == f"{path}:{line}: {message}"


def test_a_number_out_of_bounds_in_an_override_names_the_override() -> None:
    assert refusal(None, "loss.alpha=-1") == "--set loss.alpha=-1: loss.alpha=-1.0 must be at least 0"


@pytest.mark.parametrize(
    "override",
    ["data.max_bad_fraction=0", "data.max_bad_fraction=1", "data.image_size=[16, 16]", "run.num_epochs=1"],
)
def test_the_bounds_themselves_are_allowed(override: str) -> None:
    config_loader.load(None, [override])


def numbers(cls: type, path: str = "") -> Iterator[tuple[str, Bounds]]:
    """Name and bounds of every number below a section."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, f"{path}{field.name}.")
        elif {hint, *typing.get_args(hint)} & {int, float}:
            yield f"{path}{field.name}", field.metadata["bounds"]


def test_every_number_has_bounds() -> None:
    """But the version, of which there is one."""
    assert [name for name, bounds in numbers(Config) if bounds == Bounds()] == ["config_version"]
    assert [name for name, bounds in numbers(TaskLossConfig) if bounds == Bounds()] == []


def test_tasks_are_checked_against_the_chosen_data_set() -> None:
    assert config_loader.load(None, ["data.dataset=gamma", "data.tasks=[cup]"]).data.tasks == ("cup",)
    assert "'cup' is not one of the tasks of rsna" in refusal(None, "data.dataset=rsna", "data.tasks=[cup]")


# --------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", ["run", "1e-4", "010", "08", "yes", "2024-01-01", "a: b # c", "-", "null", "1.50"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    overrides = [
        f"run.name='{name}'",
        "run.expects={train_batch_size: 8, optimizer.params.lr: 0.001}",
        "data.image_size=[32, 40]",
        "data.tasks=[density]",
        "loss.alpha=1e-7",
        "loss.tasks={density: {kind: focal, weight: 0.1}}",
        "model.embedder.options={patch_size: 8, x: [1, {y: z}]}",
        "schedule.min_factor=1e-12",
    ]
    config = config_loader.load(None, overrides)
    assert config.run.name == name
    text = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
    assert config_loader.load(write(tmp_path, text)) == config
