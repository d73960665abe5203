"""What a checkpoint is of, option by option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from m4oe_ds import config_loader
from m4oe_ds.errors import CheckpointError
from m4oe_ds.models import spec_for
from m4oe_ds.runs.described import describe, differences
from m4oe_ds.training.checkpoint import CheckpointStore

ALL = "birads, risk1, risk2, risk3, risk4, risk5, density"


def described(*overrides: str, digest: str = "d" * 64) -> dict[str, Any]:
    config = config_loader.load(None, overrides)
    manifest: Any = type("Shards", (), {"digest": digest})()
    found: dict[str, Any] = json.loads(json.dumps(describe(config, spec_for(config), manifest)))
    return found


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.dim=64"], ["model.dim=768, now 64"]),
        (["model.mtoe.num_experts=64", "run.seed=3"], ["model.mtoe.num_experts=128, now 64", "run.seed=0, now 3"]),
        (["model.embedder.options={depth: 2}"], ["model.embedder.options.depth=None, now 2"]),
        (["data.tasks=[density]"], [f"data.tasks={ALL.split(', ')}, now ['density']"]),
        (["model.freeze=[backbone]"], ["model.freeze=[], now ['backbone']"]),
    ],
)
def test_every_option_that_differs_is_named_with_both_values(overrides: list[str], says: list[str]) -> None:
    assert differences(described(), described(*overrides)) == says


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.activation_checkpointing=true"],
        ["model.embedder.weights=somewhere/vit.pth"],
        [f"data.tasks=[{ALL}]"],  # written out what empty means
        ["loss.alpha=0.5", "run.num_epochs=7", "optim.parts={heads: {lr_factor: 2}}"],
    ],
)
def test_what_changes_no_tensor_does_not_differ(overrides: list[str]) -> None:
    assert differences(described(), described(*overrides)) == []


def test_other_shards_are_named() -> None:
    assert differences(described(), described(digest="e" * 64)) == [
        "the training shards=dddddddddddd, now eeeeeeeeeeee"
    ]


def test_an_option_that_a_version_lacks_has_its_default() -> None:
    older = {name: value for name, value in described().items() if name not in ("model.freeze", "model.mask_channels")}
    assert differences(older, described()) == differences(described(), older) == []
    assert differences(older, described("model.mask_channels=64")) == ["model.mask_channels=256, now 64"]


def test_the_store_compares_options_where_it_can_and_fingerprints_where_it_must(tmp_path: Path) -> None:
    def check(then: Any, now: Any, before: str = "a", after: str = "b") -> None:
        store = CheckpointStore(tmp_path, {"model": after, "world": 2}, 1, described=now)
        store._check_stamp({"model": before, "world": 2}, "step-1", then)

    check(described(), described("model.activation_checkpointing=true"))
    with pytest.raises(CheckpointError, match=r"step-1: written with model\.dim=768, now 64; use the same values"):
        check(described(), described("model.dim=64"))
    with pytest.raises(CheckpointError, match=r"written with model=a; this run has model=b"):
        check(None, described())  # a checkpoint of an older version
    check(None, described(), before="a", after="a")
