"""Labels, kinds and follow-ups of the schema."""

from __future__ import annotations

from typing import Any

import pytest

from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import KEY_PATTERN, Column, ModalitySpec, TaskSpec, follow_ups

NUMBER = TaskSpec("pressure", "number", 1, unit="mmHg")
SURVIVAL = TaskSpec("death", "survival", 2, horizons=(1.0, 5.0))
MASK = TaskSpec("cup", "mask", 2, ("disc", "cup"), of="fundus")


def within(event: str, *horizons: float) -> list[TaskSpec]:
    return [TaskSpec(f"{event}_{k}", "binary", 2, horizon=h, event=event) for k, h in enumerate(horizons)]


def test_a_follow_up_goes_by_its_horizon_whatever_the_order_and_the_names() -> None:
    tasks = [*within("cancer", 10, 2, 1), find_card("embed").task("density"), *within("death", 0.5)]
    found = follow_ups(tasks)
    assert [task.horizon for task in found["cancer"]] == [1, 2, 10]
    assert [task.name for task in found["death"]] == ["death_0"]
    assert set(found) == {"cancer", "death"}
    shipped = follow_ups(find_card("embed").tasks)
    assert [task.name for task in shipped["cancer"]] == ["risk1", "risk2", "risk3", "risk4", "risk5"]


@pytest.mark.parametrize(
    ("task", "label", "good"),
    [
        (NUMBER, 12, True),
        (NUMBER, -1, True),  # a number below zero is no missing one
        (NUMBER, None, True),
        (NUMBER, True, False),
        (NUMBER, "12", False),
        (NUMBER, float("nan"), False),
        (NUMBER, float("inf"), False),
        (SURVIVAL, [3.5, 1], True),
        (SURVIVAL, [0, 0], True),
        (SURVIVAL, None, True),
        (SURVIVAL, [-1, 0], False),
        (SURVIVAL, [1, 2], False),
        (SURVIVAL, [1], False),
        (SURVIVAL, -1, False),
        (MASK, 1, True),
        (MASK, -1, True),
        (MASK, 2, False),
        (MASK, None, False),
    ],
)
def test_labels_are_judged_by_the_kind_of_their_task(task: TaskSpec, label: Any, good: bool) -> None:
    assert (task.problem(label) == "") is good


def test_what_is_known_depends_on_the_kind() -> None:
    density = find_card("embed").task("density")
    assert [density.known(code) for code in (-1, 0)] == [False, True]
    assert [NUMBER.known(value) for value in (None, -1.0)] == [False, True]
    assert [task.unknown for task in (density, MASK, NUMBER, SURVIVAL)] == [-1, -1, None, None]


def test_shapes_of_tensors() -> None:
    sizes = ((32, 24), (8, 16, 12))
    assert ModalitySpec("a", "image", 3).shape(*sizes) == (3, 32, 24)
    assert ModalitySpec("a", "volume").shape(*sizes) == (1, 8, 16, 12)
    assert ModalitySpec("a", "volume", slices=40).shape(*sizes) == (40, 32, 24)
    assert ModalitySpec("a", "table", columns=(Column("age", "number"), Column("sex", "number"))).shape(*sizes) == (
        2,
        2,
    )


@pytest.mark.parametrize("key", ["embed-0123456789abcdef-l", "my-eyes-2-0123456789abcdef", "x-0123456789abcdef"])
def test_keys_of_samples_with_and_without_a_side(key: str) -> None:
    assert KEY_PATTERN.fullmatch(key)


@pytest.mark.parametrize("key", ["Embed-0123456789abcdef-l", "e_d-0123456789abcdef", "0123456789abcdef", "x-0123"])
def test_other_texts_are_no_keys(key: str) -> None:
    assert not KEY_PATTERN.fullmatch(key)
