"""What a run says of the modalities that its training samples lack, and training steps with modality dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m4oe_ds import config_loader
from m4oe_ds.config import Config
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.task_statistics import statistics_of
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.models import build, spec_for
from m4oe_ds.report.card import card
from m4oe_ds.runs import assemble
from m4oe_ds.runs.objective import objective
from tests.integration import shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the training samples lack the two synthetic views."""
    return shards.write(tmp_path_factory.mktemp("shards") / "demo", {"train": 24, "val": 8})


def loaded(root: Path, *overrides: str) -> tuple[Config, dict[str, Manifest]]:
    config = config_loader.load(None, (*shards.SMALL, f"data.root={root}", *overrides))
    return config, assemble.load_manifests(config, ("train", "val"))


def test_the_presence_of_the_samples_that_are_trained_on(root: Path) -> None:
    config, manifests = loaded(root)
    found, warning = assemble.training_presence(config, spec_for(config), manifests["train"])
    assert (found.samples, found.complete, warning) == (24, 16, "")
    assert "67 % of the training samples" in found.line()
    assert "syn_cc in 33 %, syn_mlo in 33 %" in found.line()
    config, manifests = loaded(root, "data.complete_only=true")
    found, _ = assemble.training_presence(config, spec_for(config), manifests["train"])
    assert (found.samples, found.line()) == (16, "")


def test_a_modality_that_never_occurs_is_refused_and_a_rare_one_is_named(root: Path) -> None:
    config, manifests = loaded(root)
    train = manifests["train"]
    both = train.modalities.index("syn_cc")
    for shard in train.shards:
        shard.present[:] = [mask & ~(1 << both) for mask in shard.present]
    with pytest.raises(
        DataError, match=r"no training sample has syn_cc.*data\.modalities=\[ffdm_cc, ffdm_mlo, syn_mlo"
    ):
        assemble.training_presence(config, spec_for(config), train)
    train.shards[0].present[:] = [0b1111, *[0b1111 & ~(1 << both)] * 200]
    found, warning = assemble.training_presence(config, spec_for(config), train)
    assert found.never() == []
    assert "fewer than 1% of the training samples have syn_cc" in warning


def test_the_model_card_says_what_was_missing_and_dropped(root: Path) -> None:
    config, manifests = loaded(root)
    found, _ = assemble.training_presence(config, spec_for(config), manifests["train"])
    environment = {"dataset": "embed", "presence": found.as_dict()}
    text = dict(card(environment, {}, [], {"data": {"modality_dropout": 0.3}}, {}, {}, None))["Data"]
    assert "67 % of the training samples have every modality; missing: syn_cc in 33 %" in text
    assert "left out with probability 0.3" in text
    whole = {**environment, "presence": {"samples": 24, "lacking": {"a": 0}, "complete": 24}}
    text = dict(card(whole, {}, [], {"data": {"modality_dropout": 0.0}}, {}, {}, None))["Data"]
    assert "missing" not in text
    assert "left out" not in text


@pytest.mark.parametrize("value", ["-0.1", "1", "1.5"])
def test_dropout_is_a_probability_below_one(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.modality_dropout"):
        config_loader.load(None, (f"data.modality_dropout={value}",))


@pytest.mark.parametrize("missing", ["mask", "bank"])
def test_a_step_with_dropout_trains_mask_and_bank(root: Path, missing: str) -> None:
    """Both learn from samples that lost modalities, of the bank those rows too that only dropout makes occur."""
    gradients = {}
    for dropout in (0.0, 0.5):
        config, manifests = loaded(root, f"model.missing_modality={missing}", f"data.modality_dropout={dropout}")
        spec = spec_for(config)
        torch.manual_seed(0)
        model = build(config)
        goal = objective(config, spec, statistics_of(manifests["train"], spec.tasks), torch.device("cpu"))
        (batch,) = next(iter(assemble.stream(config, "train", spec, 24, 1, manifests).epoch(0)))
        parts = goal.task_parts(model(batch), batch)
        loss = torch.stack([part.sum / part.count.clamp_min(1) for part in parts.values()]).sum()
        assert torch.isfinite(loss)
        loss.backward()
        gradients[dropout] = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        assert all(torch.isfinite(one).all() for one in gradients[dropout].values())
        assert (
            not next(iter(assemble.stream(config, "val", spec, 8, 1, manifests).epoch(0)))[0]
            .views["ffdm_cc"]
            .eq(0)
            .flatten(1)
            .all(1)
            .any()
        )
    assert any(not torch.equal(gradients[0.0][name], gradients[0.5][name]) for name in gradients[0.0])
    if missing == "bank":
        rows = {
            dropout: sum(
                int(one.abs().amax(1).gt(0).sum()) for name, one in found.items() if name.startswith("missing_bank")
            )
            for dropout, found in gradients.items()
        }
        assert rows[0.0] == 2  # the two synthetic views of the one combination there is
        assert rows[0.5] > 10
