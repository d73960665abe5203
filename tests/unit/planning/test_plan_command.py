"""The recommendation and the command, on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.cli import main
from m4oe_ds.errors import ConfigError
from m4oe_ds.planning.candidates import Costs, Wishes
from m4oe_ds.planning.hardware import parse_cluster
from m4oe_ds.planning.recommend import recommend, scaling

SMALL = """
data: {dataset: rsna, image_size: [32, 24]}
model:
  dim: 32
  embedder: {backbone: vit_tiny_patch16_224, options: {patch_size: 8, embed_dim: 32, depth: 1, num_heads: 4}}
  msoe: {num_experts: 4, depth: 1, num_heads: 4}
  mtoe: {num_experts: 8, num_heads: 4}
  fusion: {num_experts: 4, depth: 1, num_heads: 4}
run: {expects: {train_batch_size: 16, optimizer.params.lr: 0.0003, gradient_clipping: 0.5}}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plan") / "small.yaml"
    file.write_text(SMALL, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def costs(path: Path) -> Costs:
    return Costs(config_loader.load(path))


def test_the_fastest_fitting_candidate_is_chosen_and_every_choice_has_a_reason(costs: Costs) -> None:
    plan = recommend(costs.config, parse_cluster("1xA100-80+1xL40S"), Wishes(batch=16), costs)
    assert plan.fits
    assert plan.chosen.time.total <= 1.03 * min(item.time.total for item in plan.candidates if item.fits)
    assert {str(item.cluster) for item in plan.candidates} == {"1xA100-80+1xL40S", "1xA100-80", "1xL40S"}
    assert {item.layout.ep for item in plan.candidates} == {1, 2}
    assert {item.layout.stage for item in plan.candidates} == {1, 2, 3}
    assert all(item.layout.batch == 16 for item in plan.candidates)
    choices = " ".join(choice for choice, _ in plan.reasons)
    for word in ("ranks", "ep ", "ZeRO-", "micro-batch", "bf16", "overlap", "offload", "checkpointing"):
        assert word in choices
    assert all(len(reason) > 20 for _, reason in plan.reasons)


def test_mixed_devices_wait_for_the_slowest_kind(costs: Costs) -> None:
    wishes = Wishes(batch=4, ep=2, stage=2, micro=2, all_devices=True)
    mixed = recommend(costs.config, parse_cluster("1xA100-80+1xL40"), wishes, costs).chosen
    assert str(mixed.cluster) == "1xA100-80+1xL40"
    assert mixed.time.slowest == "L40"
    assert mixed.time.by_device["L40"] > mixed.time.by_device["A100-80"]


def test_the_json_is_what_the_trainer_accepts(costs: Costs, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        wishes = Wishes(batch=16, precision=precision, ep=2, stage=2, micro=4)  # type: ignore[arg-type]
        plan = recommend(costs.config, parse_cluster("2xH200"), wishes, costs)
        file = tmp_path / f"{precision}.json"
        file.write_text(json.dumps(plan.ds_config), encoding="utf-8")
        content = deepspeed_json.read(file)
        deepspeed_json.check(content, str(file), costs.config.run.expects, "small.yaml")
        sizes = deepspeed_json.batch_sizes(content, 2, str(file))
        assert (sizes.train, sizes.micro, sizes.accumulation) == (16, 4, 2)
        assert content["zero_optimization"]["stage"] == 2
        assert plan.overrides == ("parallel.ep_size=2",)


def test_too_small_a_device_says_no_after_trying_everything(
    costs: Costs, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from m4oe_ds.planning import hardware

    tiny = dataclasses.replace(hardware.ACCELERATORS["L40"], name="tiny", memory=1.1e6, reserved=1e6)
    monkeypatch.setitem(hardware.ACCELERATORS, "tiny", tiny)
    wishes = Wishes(batch=4, ep=1, micro=2)
    plan = recommend(costs.config, parse_cluster("2xtiny"), wishes, costs)
    assert not plan.fits
    assert any(item.layout.offload and item.recompute for item in plan.candidates)
    assert (
        main(["plan", "--config", str(path), "--cluster", "2xtiny", "--batch", "4", "--ep", "1", "--micro", "2"]) == 1
    )
    assert "fits: NO" in capsys.readouterr().out


def test_contradictions_are_reported(costs: Costs) -> None:
    with pytest.raises(ConfigError, match="not a multiple of 3 ranks"):
        recommend(costs.config, parse_cluster("3xL40"), Wishes(batch=16), costs)
    with pytest.raises(ConfigError, match="ep 3 does not fit"):
        recommend(costs.config, parse_cluster("2xL40"), Wishes(batch=16, ep=3), costs)
    with pytest.raises(ConfigError, match="micro-batch 5"):
        recommend(costs.config, parse_cluster("2xL40"), Wishes(batch=16, micro=5), costs)


def test_weak_scaling_keeps_the_mix_and_the_samples_per_rank(costs: Costs) -> None:
    wishes = Wishes(batch=4, ep=2, stage=2, micro=2, all_devices=True)
    chosen = recommend(costs.config, parse_cluster("1xA100-80+1xL40"), wishes, costs).chosen
    rows = scaling(costs, chosen, [8, 64, 4096])
    assert [row.layout.world for row in rows] == [8, 64, 4096]
    assert all(row.layout.batch == 2 * row.layout.world for row in rows)
    assert all(row.cluster.pools[0].count * 2 == row.layout.world for row in rows)
    per_device = [row.samples_per_second / row.layout.world for row in rows]
    assert per_device == sorted(per_device, reverse=True)
    with pytest.raises(ConfigError, match="mix"):
        scaling(costs, chosen, [7])


def test_command_prints_json_and_writes_the_ds_config(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ds.json"
    arguments = [
        "--config",
        str(path),
        "--cluster",
        "2xA100-40",
        "--ep",
        "2",
        "--zero",
        "2",
        "--micro",
        "2",
        "--batch",
        "4",
        "--scale",
        "2,4",
    ]
    assert main(["plan", *arguments, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"] is True
    assert printed["ds_config"] == json.loads(out.read_text(encoding="utf-8"))
    assert printed["ds_config"]["optimizer"]["params"]["lr"] == 0.0003
    assert len(printed["scaling_simulated"]) == 2
    assert printed["parameters"]["total"] == sum(
        count for name, count in printed["parameters"].items() if name not in ("total", "experts")
    )


def test_command_describes_a_given_ds_config(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given.json"
    content = {"train_batch_size": 8, "fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    given.write_text(json.dumps(content), encoding="utf-8")
    assert main(["plan", "--config", str(path), "--cluster", "2xL40S", "--ds_config", str(given), "--ep", "1"]) == 0
    text = capsys.readouterr().out
    for word in ("fits: YES", "SIMULATED", "ZeRO-1", "fp16", "micro-batch 4 x 1", "held per rank", "L40S data sheet"):
        assert word in text
    assert f"\n  m4oe train --config {path} --ds_config FILE --set parallel.ep_size=1\n" in text


def test_a_model_without_experts_is_offered_no_expert_parallel_layout(capsys: pytest.CaptureFixture[str]) -> None:
    baseline = str(Path(__file__).parents[3] / "configs" / "baselines" / "mirai.yaml")
    shrunk = ["--set", "data.image_size=[64, 48]", "--set", "model.embedder.weights="]
    assert main(["plan", "--config", baseline, *shrunk, "--cluster", "4xA100-80", "--batch", "8", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"]["experts"] == 0
    assert {item["layout"]["ep"] for item in printed["candidates"]} == {1}
