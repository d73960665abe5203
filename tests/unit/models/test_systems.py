"""The table of systems, their options, and the names of networks: known without torch, and the same as with it."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys

import pytest

from m4oe_ds import config_loader
from m4oe_ds.config import CalibratedOptions
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import backbone_names
from m4oe_ds.models.fit import Question
from m4oe_ds.models.options import OPTIONS, EyemostOptions, NoOptions, clash
from m4oe_ds.models.systems import MODELS, available, find_system, settings_of, unfit


def test_nothing_here_imports_torch() -> None:
    modules = ("systems", "options", "backbone_names", "fit")
    code = "import sys; " + "; ".join(f"import m4oe_ds.models.{name}" for name in modules)
    code += "; from m4oe_ds.models.backbone_names import unknown; unknown('vit_tinny')"
    code += "; print([name for name in ('torch', 'timm', 'deepspeed') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_entry_names_what_exists() -> None:
    assert available() == tuple(sorted(MODELS))
    for entry in MODELS.values():
        for text in filter(None, (entry.builder, entry.model_loss)):
            module, _, name = text.partition(":")
            assert hasattr(importlib.import_module(module), name), text


def test_an_unknown_system_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model\.name 'mirrai'; did you mean mirai\? \(known: aide, "):
        find_system("mirrai")


def test_why_a_system_does_not_fit() -> None:
    eyes, views = (Question.of(find_card(name)) for name in ("gamma", "embed"))
    assert unfit("m4oe", eyes) == unfit("mirai", views) == ""
    assert unfit("mirai", eyes)
    assert unfit("asymmirai", views, {"pairs": "bilateral", "regime": "vit"}) == ""
    assert settings_of(config_loader.load(None, ["model.name=mirai", "model.options={pool: mean}"])) == {
        "pool": "mean",
        "regime": "vit",
    }


def test_every_system_has_options_and_only_those_that_it_reads() -> None:
    assert set(OPTIONS) == set(MODELS)
    for name, entry in MODELS.items():
        module = importlib.import_module(entry.builder.partition(":")[0])
        own = getattr(module, "Options", NoOptions)
        assert {field.name for field in dataclasses.fields(own)} == {f.name for f in dataclasses.fields(OPTIONS[name])}


def test_options_of_the_evidential_loss_have_the_defaults_of_the_loss() -> None:
    from m4oe_ds.models.baselines.eyemost import Options

    assert dataclasses.asdict(Options()) == dataclasses.asdict(EyemostOptions())


def test_options_of_the_calibrated_policy_are_its_arguments() -> None:
    import inspect

    from m4oe_ds.training.gradient_policy import CalibratedPolicy

    taken = {name: one.default for name, one in inspect.signature(CalibratedPolicy).parameters.items()}
    assert taken == dataclasses.asdict(CalibratedOptions())


@pytest.mark.parametrize(
    ("name", "options", "dim", "said"),
    [
        ("mirai", {"hidden": 512, "heads": 7}, 64, "model.options.heads=7 does not divide model.options.hidden=512"),
        ("aide", {"hidden": 30, "heads": 4}, 64, "model.options.heads=4 does not divide model.options.hidden=30"),
        ("fuller", {"heads": 5}, 64, "model.options.heads=5 does not divide model.dim=64"),
        ("evif", {"heads": 3}, 63, "model.dim=63 must be even for evif"),
        ("mirai", {}, 64, ""),
        ("mmodn", {}, 63, ""),
    ],
)
def test_options_that_contradict_each_other(name: str, options: dict[str, int], dim: int, said: str) -> None:
    found = clash(name, OPTIONS[name](**options), dim)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_names_of_networks_are_those_of_timm() -> None:
    from m4oe_ds.compat import import_torchvision

    import_torchvision()
    import timm

    known = backbone_names.networks()
    assert {name for name in timm.list_models() if not name.startswith("volume_")} <= known  # this package's own
    assert [name for name in known if not timm.is_model(name)] == []


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet18", "vit_base_patch16_224.augreg_in21k", "hf-hub:someone/model"]
)
def test_networks_that_exist_pass(name: str) -> None:
    assert backbone_names.unknown(name) == ""


def test_a_misspelt_network_and_those_near() -> None:
    assert "near: vit_tiny_patch16_224" in backbone_names.unknown("vit_tinny")
    assert "resnet18" in backbone_names.unknown("resnt18")


def test_without_timm_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_names, "_sources", list)
    backbone_names.networks.cache_clear()
    try:
        assert backbone_names.unknown("no_such_network") == ""
    finally:
        backbone_names.networks.cache_clear()
        backbone_names._defined.cache_clear()
